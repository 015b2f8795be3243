"""From the run folders of a ladder to its result: points, laws, comparisons."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from statistics import median

from gemkit.config.ladder import FROM_DATA, LadderConfig
from gemkit.errors import GemkitError
from gemkit.runs.predictions import load_predictions
from gemkit.studies.answer import metric_name
from gemkit.studies.bootstrap import check_same
from gemkit.studies.collect import Run, config_text, environment_of, task_of, version_notes
from gemkit.studies.folder import StudyFolder
from gemkit.studies.plan import Variant
from gemkit.studies.scaling.fit import LEAST_SIZES, Fitted, compare, fit_law
from gemkit.studies.scaling.plan import Ladder
from gemkit.studies.scaling.result import ArchResult, Comparison, Point, ScaleResult
from gemkit.studies.statistics import score

MARGIN = 2.0
"""Curves are drawn this many times beyond the cheapest and the dearest size of all."""
DOUBTFUL = 0.05
"""Seeds that scatter the sizes about the law as much as here only this often do not explain it."""


def collect_ladder(ladder: Ladder, folder: StudyFolder, command: str) -> ScaleResult:
    """What a ladder has found so far; at least one run must have finished.

    Raises:
        GemkitError: The ladder's task is not one of the data set, or its floor is not known; or runs were tested on
            different examples.
    """
    config, plan = ladder.config, ladder.plan
    runs = {
        (v.name, seed): Run(path)
        for v in plan.variants
        for seed in plan.seeds
        if (path := folder.finished(v, seed)) is not None
    }
    first = next(iter(runs.values()))
    task = task_of(plan, list(first.test))
    saved = [(f"{name}, seed {s}", load_predictions(run.folder.path)) for (name, s), run in runs.items()]
    check_same([(name, predictions) for name, predictions in saved if predictions is not None])
    known_floor = _known_floor(first, task, config.metric)
    if config.floor == FROM_DATA and known_floor is None:
        raise no_truth(task)
    floor = known_floor if config.floor == FROM_DATA else config.floor
    assert not isinstance(floor, str)
    points = {
        arch: tuple(
            _point(v, i, {s: runs[v.name, s] for s in plan.seeds if (v.name, s) in runs}, ladder, folder, task)
            for i, v in enumerate(variants, 1)
        )
        for arch, variants in ladder.points.items()
    }
    archs, fitted = _fit(ladder, points, floor)
    comparisons = [_compare(a, b, fitted, config.metric) for a, b in itertools.combinations(ladder.archs, 2)]
    return ScaleResult(
        name=folder.path.name,
        command=command,
        base=config.base,
        rungs=config.rungs,
        seeds=plan.seeds,
        task=task,
        metric=config.metric,
        cost=config.cost,
        floor_from="fitted" if config.floor is None else "data" if config.floor == FROM_DATA else "given",
        known_floor=known_floor,
        dataset=plan.base.run.data.folder_name,
        num_examples=int(first.test[task]["examples"]),
        archs=archs,
        comparisons=tuple(comparisons),
        notes=(*_notes(config, plan.seeds, archs, known_floor), *version_notes(runs.values())),
        environment=environment_of(first),
    )


def no_truth(task: str) -> GemkitError:
    """The error for a floor that nobody knows."""
    return GemkitError(
        f"the data set does not know the true probabilities of {task}", where="--floor", allowed="a number, or fit"
    )


def _known_floor(run: Run, task: str, metric: str) -> float | None:
    """The metric of the true probabilities on the test split."""
    floor, ne, logloss = (run.metric(task, name) for name in ("ne_floor", "ne", "logloss"))
    if floor is None or metric == "ne":
        return floor
    return floor * logloss / ne if ne and logloss else None  # NE is logloss over a constant


def _point(
    variant: Variant, rung: int, own: Mapping[int, Run], ladder: Ladder, folder: StudyFolder, task: str
) -> Point:
    seeds = ladder.plan.seeds
    any_run = next(iter(own.values()), None)
    train = any_run.train if any_run else {}
    return Point(
        name=variant.name,
        rung=rung,
        words=variant.words,
        score=score([own[s].metric(task, ladder.config.metric) if s in own else None for s in seeds]),
        flops_per_example=train.get("flops_per_example"),
        examples=_examples(any_run) if any_run else None,
        params=train.get("params"),
        dense_params=train.get("dense_params"),
        examples_per_s=median(run.train["examples_per_s"] for run in own.values()) if own else None,
        failures={s: error for s in seeds if (error := folder.error(variant, s)) is not None},
        config=config_text(variant),
    )


def _examples(run: Run) -> int | None:
    """Those that a run was trained on: as its last validation says."""
    seen = [row["examples"] for row in run.folder.rows() if row["split"] == "valid" and "examples" in row]
    return seen[-1] if seen else None


# --- laws ---------------------------------------------------------------------------------------------------


def _fit(
    ladder: Ladder, points: Mapping[str, Sequence[Point]], floor: float | None
) -> tuple[tuple[ArchResult, ...], dict[str, Fitted]]:
    axis = ladder.config.cost
    costs = [cost for row in points.values() for point in row if (cost := point.cost(axis))]
    limits = (min(costs) / MARGIN, max(costs) * MARGIN) if costs else (1.0, 1.0)
    archs, fitted = [], {}
    for stream, (name, words) in enumerate(ladder.archs.items()):
        usable = [p for p in points[name] if p.score.mean is not None and p.cost(axis)]
        obstacle = _obstacle(usable, len(points[name]), ladder.config, floor)
        if not obstacle:
            by_seed = [[value for value in p.score.by_seed if value is not None] for p in usable]
            own = [cost for point in usable if (cost := point.cost(axis))]
            fitted[name] = fit_law(own, by_seed, floor, limits, stream)
        fit = fitted[name].fit if name in fitted else None
        archs.append(ArchResult(name=name, words=words, points=tuple(points[name]), fit=fit, obstacle=obstacle))
    return tuple(archs), fitted


def _obstacle(usable: Sequence[Point], num_rungs: int, config: LadderConfig, floor: float | None) -> str:
    """Why there is no law through these points; empty if there is one."""
    different = len({point.cost(config.cost) for point in usable})
    if different < LEAST_SIZES:
        what = f"{len(usable)} of {num_rungs} sizes have a value"
        if different < len(usable):
            what += f", and {different} different costs"
        return f"{what}: a law takes {LEAST_SIZES}"
    below = [p for p in usable if floor is not None and p.score.mean is not None and p.score.mean < floor]
    if below:
        value = below[0].score.mean
        return f"{below[0].name} is at {value:.4f}, below the floor of {floor:.4f}: it is no floor"
    return ""


def _compare(one: str, other: str, fitted: Mapping[str, Fitted], metric: str) -> Comparison:
    if missing := [name for name in (one, other) if name not in fitted]:
        return Comparison(arch=one, other=other, levels=(), obstacle=f"{' and '.join(missing)} has no law")
    return compare(one, fitted[one], other, fitted[other], metric_name(metric))


# --- notes --------------------------------------------------------------------------------------------------


def _notes(
    config: LadderConfig, seeds: Sequence[int], archs: Sequence[ArchResult], known_floor: float | None
) -> list[str]:
    """What a reader must know."""
    metric = metric_name(config.metric)
    notes = [config.note] if config.note else []
    failed = [f"{p.name} (seed {s})" for arch in archs for p in arch.points for s in p.failures]
    total = len(seeds) * sum(len(arch.points) for arch in archs)
    if failed:
        notes.append(f"{len(failed)} of {total} runs failed: {', '.join(failed)}.")
    missing = [
        f"{p.name} (seed {s})"
        for arch in archs
        for p in arch.points
        for s, value in zip(seeds, p.score.by_seed, strict=True)
        if value is None and s not in p.failures
    ]
    if missing:
        what = f"have no {metric} yet, or none that is defined"
        notes.append(f"{len(missing)} of {total} runs {what}: {', '.join(missing)}.")
    uncounted = [p.name for a in archs for p in a.points if p.score.mean is not None and p.flops_per_example is None]
    if uncounted:
        notes.append(f"The FLOPs of {', '.join(uncounted)} could not be counted: they are in no law.")
    notes += [f"{arch.name} has no law: {arch.obstacle}." for arch in archs if arch.obstacle]
    for arch in archs:
        if arch.fit is None:
            continue
        if arch.fit.resolved is False:
            notes.append(
                f"{arch.name}: alpha is not resolved from 0. {metric} does not fall with cost beyond chance on this "
                "ladder."
            )
        if arch.fit.misfit is not None and arch.fit.misfit < DOUBTFUL:
            notes.append(
                f"{arch.name}: the sizes lie further from the law than seeds explain (p = {arch.fit.misfit:.2g}). The "
                "intervals allow for it, but a power law may not be the right form."
            )
    if any(arch.fit and arch.fit.alpha_interval is None for arch in archs):
        notes.append("With one seed, and no more sizes than the law has parameters, there are no intervals.")
    elif any(arch.fit and arch.fit.scatter_sd is None for arch in archs):
        notes.append("With no more sizes than the law has parameters, the intervals know of the chance of seeds alone.")
    if config.floor is None and known_floor is not None:
        notes.append(
            f"The floor was fitted. The data set's own is {known_floor:.4f}; --floor data takes it, which is right if "
            "the models can see all that the labels depend on."
        )
    return notes
