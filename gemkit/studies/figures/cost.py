"""Quality against cost, and what is worth its cost."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

from gemkit.metrics.names import HIGHER_IS_BETTER
from gemkit.studies.answer import metric_name
from gemkit.studies.figures.values import better_hint, score_of
from gemkit.studies.page.axes import linear, logarithmic
from gemkit.studies.page.plot import Plot
from gemkit.studies.page.series import series_dash
from gemkit.studies.page.text import decimals_for, fixed, si
from gemkit.studies.result import StudyResult

COSTS = {
    "flops_per_example": ("FLOPs/example", "FLOPs per example, forward and backward"),
    "params": ("parameters", "parameters"),
    "examples_per_s": ("examples/s", "examples per second of training"),
}
"""What quality is set against: in short, and in words. Of the last one, more is better."""


def pareto(points: Sequence[tuple[float, float]], *, cheap_is_low: bool, high_is_good: bool) -> list[int]:
    """Indices of the points (cost, quality) that no other beats in one without losing in the other, cheapest first."""
    signed = [(x if cheap_is_low else -x, -y if high_is_good else y) for x, y in points]

    def beaten(i: int) -> bool:
        (x, y) = signed[i]
        return any(a <= x and b <= y and (a, b) != (x, y) for a, b in signed)

    return sorted((i for i in range(len(points)) if not beaten(i)), key=lambda i: signed[i])


def cost_plot(result: StudyResult, cost: str) -> Plot | None:
    """The main metric against one of `COSTS`, with the front; None if fewer than two variants have both."""
    known = [
        (number, variant, float(value), score, score.mean)
        for number, variant in enumerate(result.variants)
        if (value := getattr(variant, cost)) and (score := score_of(variant, result.task, result.metric))
        if score.mean is not None
    ]
    if len(known) < 2:
        return None
    high_is_good, cheap_is_low = HIGHER_IS_BETTER.get(result.metric), cost != "examples_per_s"
    points = [(value, mean) for _, _, value, _, mean in known]
    front = [] if high_is_good is None else pareto(points, cheap_is_low=cheap_is_low, high_is_good=high_is_good)
    decimals = decimals_for(score.sd for _, _, _, score, _ in known)
    ends = [end for _, _, _, score, mean in known for end in (mean - (score.sd or 0), mean + (score.sd or 0))]
    names = ", ".join(known[i][1].name for i in front)
    plot = Plot(
        logarithmic([value for value, _ in points], margin=0.08),
        linear(ends),
        x_title=f"{COSTS[cost][1]} (log scale)",
        x_hint="← cheaper" if cheap_is_low else "faster →",
        y_title=f"{metric_name(result.metric)}, {'mean ± sd over seeds' if len(result.seeds) > 1 else 'one seed'}",
        y_hint=better_hint(result.metric),
        description=f"{metric_name(result.metric)} against {COSTS[cost][1]} of {len(known)} variants. "
        f"On the Pareto front, cheapest first: {names or 'none'}. The table of results has all numbers.",
    )
    plot.line(_stairs([points[i] for i in front]), color="better", dash=series_dash(1))
    # Those of the front choose first where their names go.
    for i in [*front, *(i for i in range(len(known)) if i not in front)]:
        number, variant, value, score, mean = known[i]
        plot.point(
            value,
            mean,
            color="better" if i in front else "ink" if number == 0 else "soft",
            filled=i in front,
            whisker=(mean - score.sd, mean + score.sd) if score.sd else None,
            names=(variant.name, str(number)),
            title=f"{variant.name}: {fixed(mean, decimals)}, {si(value)} {COSTS[cost][1]}",
        )
    return plot


def _stairs(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """What is within reach between two points of a front is the cheaper one."""
    corners = [corner for (_, y), (x, next_y) in itertools.pairwise(points) for corner in ((x, y), (x, next_y))]
    return [*points[:1], *corners]
