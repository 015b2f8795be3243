"""An ablation's report as one HTML file."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from gemkit.metrics.names import HIGHER_IS_BETTER
from gemkit.runs.files import write_text
from gemkit.studies.answer import answer, metric_name, remedy, seeds, verdict
from gemkit.studies.figures.cost import COSTS, cost_plot
from gemkit.studies.figures.curves import learning_curves
from gemkit.studies.figures.forest import Forest, forest
from gemkit.studies.figures.values import difference_of, score_of
from gemkit.studies.page.render import render
from gemkit.studies.page.text import decimals_for
from gemkit.studies.result import Difference, Score, StudyResult, VariantResult


class Row(NamedTuple):
    """A variant's line of a table."""

    number: int
    variant: VariantResult
    score: Score | None
    difference: Difference | None


class Comparison(NamedTuple):
    """Everything about one metric of one task.

    Attributes:
        decimals, difference_decimals: Of the columns with scores and with differences.
        counts: ``1 better, 2 not resolved``.
    """

    task: str
    metric: str
    rows: tuple[Row, ...]
    forest: Forest | None
    decimals: int
    difference_decimals: int
    counts: str


def write_html(result: StudyResult, path: Path) -> None:
    """Writes the report of a study; it opens from disk and from a mail, and loads nothing.

    Raises:
        GemkitError: It cannot be written.
    """
    write_text(path, to_html(result))


def to_html(result: StudyResult) -> str:
    """The report as text."""
    curves = learning_curves(result)
    return render(
        "ablation.html.j2",
        result=result,
        answer=answer(result),
        environment=environment_facts(result.environment),
        environment_text=json.dumps(result.environment, indent=2, ensure_ascii=False, default=str),
        main=compare(result, result.task, result.metric),
        others=[compare(result, *pair) for pair in _other_metrics(result)],
        costs=[(name, plot) for cost, (name, _) in COSTS.items() if (plot := cost_plot(result, cost)) is not None],
        curves=curves,
        curve_decimals=decimals_for(p.high - p.low for view in curves for c in view.curves for p in c.points[-1:]),
        higher_is_better=HIGHER_IS_BETTER,
        metric_name=metric_name,
        remedy=remedy,
        seeds=seeds,
        verdict=verdict,
    )


def compare(result: StudyResult, task: str, metric: str) -> Comparison:
    """One metric of one task, over all variants."""
    rows = tuple(
        Row(i, v, score_of(v, task, metric), difference_of(v, task, metric)) for i, v in enumerate(result.variants)
    )
    differences = [row.difference for row in rows if row.difference]
    verdicts = [difference.verdict for difference in differences]
    half_widths = [(d.high - d.low) / 2 for d in differences if d.high is not None and d.low is not None]
    return Comparison(
        task=task,
        metric=metric,
        rows=rows,
        forest=forest(result, task, metric),
        decimals=decimals_for([row.score.sd for row in rows if row.score]),
        difference_decimals=decimals_for(half_widths),
        counts=", ".join(f"{verdicts.count(word)} {word}" for word in sorted(set(verdicts))) or "means only",
    )


def environment_facts(environment: Mapping[str, Any]) -> str:
    """What a reader asks first, in one line; the rest is in the report's environment block."""
    packages = environment.get("packages") or {}
    git = environment.get("git") or {}
    commit = str(git.get("commit") or "")[:10]
    gpus = [str(gpu.get("name")) for gpu in environment.get("gpus") or []]
    threads = environment.get("threads")
    facts = [
        f"gemkit {environment['gemkit']}" if environment.get("gemkit") else "",
        f"commit {commit}{' with changes' if git.get('dirty') else ''}" if commit else "",
        f"Python {environment['python']}" if environment.get("python") else "",
        f"torch {packages['torch']}" if packages.get("torch") else "",
        *(gpus or [str(environment.get("cpu") or "")]),
        f"{threads} thread{'' if threads == 1 else 's'}" if threads else "",
    ]
    return " · ".join(fact for fact in facts if fact)


def _other_metrics(result: StudyResult) -> list[tuple[str, str]]:
    """(task, metric) of all others that have a value; those with a better direction first."""
    pairs = {(task, metric): None for v in result.variants for task, scores in v.scores.items() for metric in scores}
    shown = [
        pair
        for pair in pairs
        if pair != (result.task, result.metric) and any(score_of(v, *pair) is not None for v in result.variants)
    ]
    return sorted(shown, key=lambda pair: pair[1] not in HIGHER_IS_BETTER)
