"""Learning curves: in one plot if they can be told apart there, else in small ones."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import NamedTuple

from markupsafe import Markup

from gemkit.studies.answer import metric_name
from gemkit.studies.figures.values import better_hint
from gemkit.studies.page.axes import Axis, linear
from gemkit.studies.page.plot import Plot
from gemkit.studies.page.series import NUM_COLORS, legend, series_color, series_dash
from gemkit.studies.result import StudyResult, VariantResult

BySeed = dict[int, dict[float, float]]
"""Seed -> examples seen -> value."""


class CurvePoint(NamedTuple):
    """Mean and range of a metric over the seeds, after so many examples."""

    examples: float
    mean: float
    low: float
    high: float


class Curve(NamedTuple):
    """A variant's learning curve."""

    number: int
    variant: VariantResult
    points: tuple[CurvePoint, ...]


@dataclasses.dataclass(frozen=True)
class Curves:
    """Learning curves of one quantity.

    Attributes:
        quantity: The metric, or its difference to the base.
        together: All in one plot, if they are few enough to be told apart there; else None.
        apart: A small plot for each variant but the base, all on the same axes; empty if `together` is there.
    """

    quantity: str
    curves: tuple[Curve, ...]
    together: tuple[Plot, Markup] | None
    apart: tuple[tuple[Curve, Plot], ...]


def learning_curves(result: StudyResult) -> list[Curves]:
    """The main metric on the validation split, and its difference to the base, paired by seed.

    As far as all seeds of a variant go; without any curve, which takes two points, an empty list.
    """
    name = metric_name(result.metric)
    values = [_by_examples(variant, result.metric) for variant in result.variants]
    minus = [_minus(value, values[0]) for value in values]
    zero = {seed: dict.fromkeys(by_examples, 0.0) for seed, by_examples in values[0].items()}
    views = [_curves(result, name, values), _curves(result, f"{name} minus the base's", [zero, *minus[1:]])]
    return [view for view in views if any(curve.number for curve in view.curves)] or [v for v in views[:1] if v.curves]


def _curves(result: StudyResult, quantity: str, values: Sequence[BySeed]) -> Curves:
    found = [Curve(i, v, _over_seeds(x)) for i, (v, x) in enumerate(zip(result.variants, values, strict=True))]
    found = [curve for curve in found if len(curve.points) > 1]
    few = len(found) <= NUM_COLORS + 1
    hint = better_hint(result.metric)
    return Curves(
        quantity,
        tuple(found),
        _together(found, quantity, hint) if few else None,
        () if few else _apart(found, quantity),
    )


def _by_examples(variant: VariantResult, metric: str) -> BySeed:
    found = {
        seed: {row["examples"]: row[metric] for row in rows if None not in (row.get("examples"), row.get(metric))}
        for seed, rows in variant.curves.items()
    }
    return {seed: values for seed, values in found.items() if values}


def _minus(values: BySeed, base: BySeed) -> BySeed:
    common = {seed: values[seed].keys() & base[seed].keys() for seed in values.keys() & base.keys()}
    return {seed: {x: values[seed][x] - base[seed][x] for x in found} for seed, found in common.items() if found}


def _over_seeds(values: BySeed) -> tuple[CurvePoint, ...]:
    common = sorted(set.intersection(*(set(by_examples) for by_examples in values.values()))) if values else []
    columns = [(x, [by_examples[x] for by_examples in values.values()]) for x in common]
    return tuple(CurvePoint(x, sum(column) / len(column), min(column), max(column)) for x, column in columns)


def _together(found: Sequence[Curve], quantity: str, hint: str) -> tuple[Plot, Markup]:
    # A variant keeps its colour if others have no curve.
    styles = [
        ("ink", "") if curve.number == 0 else (series_color(curve.number - 1), series_dash(curve.number - 1))
        for curve in found
    ]
    plot = Plot(
        *_axes(found, num_ticks=6),
        x_title="examples seen in training",
        y_title=f"{quantity}, validation split",
        y_hint=hint,
        description=f"Learning curves: {quantity}, of {len(found)} variants. The table below has where they end.",
        heights=(400, 320),
    )
    for curve, (color, dash) in zip(found, styles, strict=True):
        _draw(plot, curve, color, dash)
    return plot, legend([(curve.variant.name, *style) for curve, style in zip(found, styles, strict=True)])


def _apart(found: Sequence[Curve], quantity: str) -> tuple[tuple[Curve, Plot], ...]:
    base = next((curve for curve in found if curve.number == 0), None)
    pairs = []
    for curve in found:
        if curve is base:
            continue
        description = f"Learning curve of {curve.variant.name}: {quantity}. The table below has where it ends."
        plot = Plot(*_axes(found, num_ticks=3), x_title="", y_title="", description=description, heights=(130, 110))
        if base is not None:
            plot.line([(p.examples, p.mean) for p in base.points], color="soft", dash=series_dash(2))
        _draw(plot, curve, "c1", "")
        pairs.append((curve, plot))
    return tuple(pairs)


def _axes(found: Sequence[Curve], num_ticks: int) -> tuple[Axis, Axis]:
    points = [point for curve in found for point in curve.points]
    x = linear([0.0, *(p.examples for p in points)], margin=0.0, num_ticks=num_ticks)
    return x, linear([end for p in points for end in (p.low, p.high)], num_ticks=num_ticks)


def _draw(plot: Plot, curve: Curve, color: str, dash: str) -> None:
    plot.band([(p.examples, p.low, p.high) for p in curve.points], color=color)
    plot.line([(p.examples, p.mean) for p in curve.points], color=color, dash=dash, strong=curve.number == 0)
