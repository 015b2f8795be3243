"""From the run folders of a study to its result."""

from __future__ import annotations

import difflib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import yaml

from gemkit.errors import GemkitError, did_you_mean
from gemkit.metrics.names import HIGHER_IS_BETTER
from gemkit.runs.folder import ENVIRONMENT, RunFolder
from gemkit.runs.predictions import Predictions, load_predictions
from gemkit.studies.bootstrap import RESAMPLED, check_same, resample
from gemkit.studies.folder import StudyFolder, comparable
from gemkit.studies.plan import Plan, Variant
from gemkit.studies.result import Difference, Score, StudyResult, VariantResult
from gemkit.studies.statistics import NORMAL_95, difference, score

Tasks = Mapping[str, Mapping[str, Any]]
Moved = dict[str, dict[str, np.ndarray]]
"""Task -> metric -> its value in each resample. Shape: (resamples,)."""

CONSTANTS = ("base_rate", "label_rate", "ne_floor", "auc_best")
"""Numbers of a test split that no model changes."""


class Run:
    """What one finished run left."""

    def __init__(self, path: Path) -> None:
        self.folder = RunFolder(path)
        metrics = self.folder.metrics()
        self.test: Tasks = metrics["test"]
        self.train: Mapping[str, Any] = metrics["train"]

    def metric(self, task: str, metric: str) -> float | None:
        return self.test.get(task, {}).get(metric)


def collect(
    plan: Plan, folder: StudyFolder, command: str, advance: Callable[[int], None] = lambda _: None
) -> StudyResult:
    """What a study has found so far; at least one run must have finished.

    Args:
        advance: Called with 1 after each resample of the test examples.

    Raises:
        GemkitError: The study's task is not one of the data set; or runs were tested on different examples.
    """
    runs = {
        (variant.name, seed): Run(path)
        for variant in plan.variants
        for seed in plan.seeds
        if (path := folder.finished(variant, seed)) is not None
    }
    first = next(iter(runs.values()))
    task = task_of(plan, list(first.test))
    moved, num_examples = _resampled(runs, plan, advance)
    scores = {v.name: _scores(v, plan, runs) for v in plan.variants}
    variants = []
    for v in plan.variants:
        own = [run for (name, _), run in runs.items() if name == v.name]
        variants.append(
            VariantResult(
                name=v.name,
                words=v.words,
                matched=dict(v.matched),
                failures={s: error for s in plan.seeds if (error := folder.error(v, s)) is not None},
                scores=scores[v.name],
                differences={} if v is plan.base else _differences(v, plan, runs, scores, moved),
                params=_first(own, "params"),
                dense_params=_first(own, "dense_params"),
                flops_per_example=_first(own, "flops_per_example"),
                examples_per_s=median(run.train["examples_per_s"] for run in own) if own else None,
                curves={s: _curve(runs[v.name, s], task) for s in plan.seeds if (v.name, s) in runs},
                config=config_text(v),
                config_diff="" if v is plan.base else _diff(plan.base, v),
            )
        )
    return StudyResult(
        name=folder.path.name,
        command=command,
        base=plan.config.base,
        seeds=plan.seeds,
        task=task,
        metric=plan.config.metric,
        match=plan.config.match,
        dataset=plan.base.run.data.folder_name,
        num_examples=num_examples or int(first.test[task]["examples"]),
        resampled=plan.config.resample,
        variants=tuple(variants),
        notes=tuple(_notes(plan, variants, runs, bool(moved))),
        environment=environment_of(first),
    )


def config_text(variant: Variant) -> str:
    """The composed config as YAML, without what differs between its runs."""
    return yaml.safe_dump(comparable(variant), sort_keys=False, allow_unicode=True, width=120)


# --- metrics ------------------------------------------------------------------------------------------------


def task_of(plan: Plan, tasks: Sequence[str]) -> str:
    """The task that the verdicts are about.

    Raises:
        GemkitError: The data set has no such task.
    """
    wanted = plan.config.task
    if wanted is not None and wanted not in tasks:
        raise GemkitError(
            f"the data set has no task {wanted}",
            where="--task",
            allowed=", ".join(tasks),
            fix=did_you_mean(wanted, tasks),
        )
    return wanted or tasks[0]


def _scores(variant: Variant, plan: Plan, runs: Mapping[tuple[str, int], Run]) -> dict[str, dict[str, Score]]:
    """Task -> metric -> score: all numbers of metrics.json that a model can change."""
    own = {seed: runs[variant.name, seed] for seed in plan.seeds if (variant.name, seed) in runs}
    found: dict[str, dict[str, Score]] = {}
    for run in own.values():
        for task, values in run.test.items():
            for metric, value in values.items():
                if isinstance(value, float) and metric not in CONSTANTS and metric not in found.setdefault(task, {}):
                    by_seed = [own[s].metric(task, metric) if s in own else None for s in plan.seeds]
                    found[task][metric] = score(by_seed)
    return found


def _differences(
    variant: Variant,
    plan: Plan,
    runs: Mapping[tuple[str, int], Run],
    scores: Mapping[str, Mapping[str, Mapping[str, Score]]],
    moved: Mapping[tuple[str, int], Moved],
) -> dict[str, dict[str, Difference]]:
    """Task -> metric -> difference from the base, of metrics that have a better direction."""
    base = plan.base.name
    pairs = [s for s in plan.seeds if (variant.name, s) in runs and (base, s) in runs]

    def examples_part(task: str, metric: str) -> float | None:
        if metric not in RESAMPLED or not all((name, s) in moved for s in pairs for name in (base, variant.name)):
            return None
        drawn = [moved[variant.name, s][task][metric] - moved[base, s][task][metric] for s in pairs]
        return _spread(np.mean(drawn, axis=0)) if drawn else None

    found: dict[str, dict[str, Difference]] = {}
    for task, metrics in scores[variant.name].items():
        shared = HIGHER_IS_BETTER.keys() & metrics.keys() & scores[base].get(task, {}).keys()
        made = {m: difference(m, metrics[m], scores[base][task][m], examples_part(task, m)) for m in sorted(shared)}
        found[task] = {metric: one for metric, one in made.items() if one is not None}
    return found


def _spread(values: np.ndarray) -> float | None:
    """Half-width of the 95 % interval of resampled values; None if they are undefined. Shape: (resamples,)."""
    known = values[np.isfinite(values)]
    return NORMAL_95 * float(known.std(ddof=1)) if len(known) > 1 else None


def _resampled(
    runs: Mapping[tuple[str, int], Run], plan: Plan, advance: Callable[[int], None]
) -> tuple[dict[tuple[str, int], Moved], int]:
    """The metrics of each run that saved its predictions, in each resample; and the number of test examples."""
    saved: dict[tuple[str, int], Predictions] = {}
    for key, run in runs.items():
        if (found := load_predictions(run.folder.path)) is not None:
            saved[key] = found
    if not saved:
        return {}, 0
    names = [(f"{name}, seed {seed}", p) for (name, seed), p in saved.items()]
    check_same(names)
    values = resample(list(saved.values()), plan.config.resamples, plan.config.resample, advance)
    moved: dict[tuple[str, int], Moved] = {}
    for i, key in enumerate(saved):
        moved[key] = {task: {m: drawn[:, i] for m, drawn in metrics.items()} for task, metrics in values.items()}
        for task, metrics in moved[key].items():
            ne, logloss = runs[key].metric(task, "ne"), runs[key].metric(task, "logloss")
            # The base rate is the training split's, which no resample of the test split changes.
            metrics["ne"] = metrics["logloss"] * (ne / logloss if ne and logloss else np.nan)
    return moved, len(names[0][1].example_id)


# --- the rest -----------------------------------------------------------------------------------------------


def _first(runs: Sequence[Run], key: str) -> Any:
    return next((run.train[key] for run in runs if run.train.get(key) is not None), None)


def _curve(run: Run, task: str) -> list[dict[str, Any]]:
    """The validations of a run: step, examples and the task's metrics."""
    rows = [row for row in run.folder.rows() if row["split"] == "valid" and task in row]
    return [
        {"step": row["step"], "examples": row.get("examples")}
        | {metric: value for metric, value in row[task].items() if isinstance(value, float)}
        for row in rows
    ]


def _diff(base: Variant, variant: Variant) -> str:
    here, there = config_text(base).splitlines(), config_text(variant).splitlines()
    return "\n".join(difflib.unified_diff(here, there, base.name, variant.name, lineterm="", n=1))


def environment_of(run: Run) -> dict[str, Any]:
    """environment.json of a run; empty if it has none."""
    path = run.folder.path / ENVIRONMENT
    loaded: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return loaded


def _notes(
    plan: Plan, variants: Sequence[VariantResult], runs: Mapping[tuple[str, int], Run], resampled: bool
) -> list[str]:
    """What a reader must know."""
    notes = [plan.config.note] if plan.config.note else []
    notes += [*plan.notes, *(v.note for v in plan.variants if v.note)]
    failed = [f"{v.name} (seed {s})" for v in variants for s in v.failures]
    missing = [
        f"{v.name} (seed {s})" for v in variants for s in plan.seeds if s not in v.failures and (v.name, s) not in runs
    ]
    for names, what in ((failed, "failed"), (missing, "not finished")):
        if names:
            notes.append(f"{len(names)} of {len(variants) * len(plan.seeds)} runs {what}: {', '.join(names)}.")
    if len(plan.seeds) == 1:
        notes.append("One seed says nothing about the chance of seeds: no difference is resolved.")
    if not resampled:
        notes.append("No run saved its test predictions: the intervals are about seeds alone.")
    notes += version_notes(runs.values())
    count = len(variants) - 1
    notes.append(
        f"Comparisons with the base in each table: {count}. If no variant differed from it, chance alone would have "
        f"about {0.05 * count:.2g} of them called better or worse, at 95 %."
    )
    return notes


def version_notes(runs: Iterable[Run]) -> list[str]:
    """A sentence, if not all runs were made by the same version of gemkit."""
    commits = {json.dumps([e.get("gemkit"), e.get("git")], sort_keys=True) for e in map(environment_of, runs)}
    sentence = "The runs were made by different versions of gemkit (environment.json in their folders)."
    return [sentence] if len(commits) > 1 else []
