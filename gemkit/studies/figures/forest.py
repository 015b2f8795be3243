"""Differences to the base with their intervals, on one axis."""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple

from gemkit.metrics.names import HIGHER_IS_BETTER
from gemkit.studies.figures.values import difference_of, score_of
from gemkit.studies.page.axes import Axis, linear
from gemkit.studies.result import Difference, Score, StudyResult, VariantResult

_FAR = 3.0
"""An axis stops short of differences that would make it this many times longer than most of them need."""


class ForestRow(NamedTuple):
    """One variant's difference, in percent of the axis; `low` and `high` None without an interval.

    Attributes:
        beyond: "left" or "right" if a part of it lies off the axis.
    """

    number: int
    variant: VariantResult
    difference: Difference
    mean: float
    low: float | None
    high: float | None
    seeds: tuple[float, ...]
    beyond: tuple[str, ...]


@dataclasses.dataclass(frozen=True)
class Forest:
    """A forest plot: rows from the best to the worst, on one axis.

    Attributes:
        zero: Where no difference lies, in percent of the axis.
        ticks: (percent, label).
        good: "left" or "right": on which side of zero a variant is better; None if the metric has no better side.
    """

    rows: tuple[ForestRow, ...]
    zero: float
    ticks: tuple[tuple[float, str], ...]
    good: str | None
    clipped: bool


def forest(result: StudyResult, task: str, metric: str) -> Forest | None:
    """The forest plot of one metric; None if no variant can be compared."""
    base = score_of(result.variants[0], task, metric)
    found = [(i, v, d) for i, v in enumerate(result.variants) if (d := difference_of(v, task, metric)) is not None]
    if not found or base is None:
        return None
    reach = [max(abs(end) for end in (d.low, d.high, d.mean) if end is not None) for _, _, d in found]
    usual = 1.5 * sorted(reach)[math.ceil(0.75 * len(reach)) - 1]
    limit = usual if 0 < _FAR * usual < max(reach) else math.inf
    by_seed = [tuple(x for x in _paired(score_of(v, task, metric), base) if abs(x) <= limit) for _, v, _ in found]
    ends = [end for _, _, d in found for end in (d.low, d.high, d.mean) if end is not None]
    seen = [*ends, *(x for values in by_seed for x in values)]
    axis = linear([0.0, *(max(-limit, min(limit, x)) for x in seen)], margin=0.04, num_ticks=4)
    rows = [
        ForestRow(
            number,
            variant,
            d,
            _clipped(axis, d.mean),
            None if d.low is None else _clipped(axis, d.low),
            None if d.high is None else _clipped(axis, d.high),
            tuple(_clipped(axis, x) for x in values),
            _beyond(axis, d),
        )
        for (number, variant, d), values in zip(found, by_seed, strict=True)
    ]
    sign = 1 if HIGHER_IS_BETTER.get(metric) is False else -1
    return Forest(
        rows=tuple(sorted(rows, key=lambda row: sign * row.difference.mean)),
        zero=_clipped(axis, 0.0),
        ticks=tuple((_clipped(axis, value), text) for value, text in axis.ticks),
        good={True: "right", False: "left", None: None}[HIGHER_IS_BETTER.get(metric)],
        clipped=any(row.beyond for row in rows),
    )


def _paired(score: Score | None, base: Score) -> list[float]:
    """The differences of single seeds."""
    pairs = zip(score.by_seed, base.by_seed, strict=True) if score else []
    return [a - b for a, b in pairs if a is not None and b is not None]


def _clipped(axis: Axis, value: float) -> float:
    return 100 * min(1.0, max(0.0, axis.at(value)))


def _beyond(axis: Axis, difference: Difference) -> tuple[str, ...]:
    ends = [end for end in (difference.low, difference.high, difference.mean) if end is not None]
    left, right = min(ends) < axis.low, max(ends) > axis.high
    return ("left",) * left + ("right",) * right
