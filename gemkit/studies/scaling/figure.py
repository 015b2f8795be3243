"""The metric against cost: for the HTML report, and as an SVG file for other pages."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from pathlib import Path

from markupsafe import Markup

from gemkit.runs.svg import svg_figure
from gemkit.studies.answer import metric_name
from gemkit.studies.page.axes import Axis, linear, logarithmic
from gemkit.studies.page.plot import Plot
from gemkit.studies.page.series import legend, series_color, series_dash
from gemkit.studies.page.text import fixed, si
from gemkit.studies.scaling import words as w
from gemkit.studies.scaling.result import (
    ArchResult,
    Comparison,
    CurvePoint,
    EqualQuality,
    Point,
    ScaleResult,
)

_MARKERS = "osD^vPX*"


def ladder_plot(result: ScaleResult) -> tuple[Plot, Markup] | None:
    """The plot and its legend; None without a point."""
    known = _known(result)
    if not known:
        return None
    metric, cost = metric_name(result.metric), w.COST_TITLES[result.cost]
    x, y = _axes(result, known)
    plot = Plot(
        x,
        y,
        x_title=f"{cost} (log scale)",
        x_hint="← cheaper",
        y_title=f"{metric}, {'mean ± sd over seeds' if len(result.seeds) > 1 else 'one seed'}",
        y_hint="↓ better",
        description=f"{metric} against {cost} of {len(result.archs)} architectures. {w.answer(result)}",
        heights=(440, 340),
    )
    decimals = w.decimals_of(result)
    for i, arch in enumerate(result.archs):
        for piece in _pieces(arch):
            bands = [(p.cost, *ends) for p in piece if (ends := _band(p, y)) is not None]
            plot.band(bands, color=series_color(i), faint=not _is_inside(piece))
    for i, arch in enumerate(result.archs):
        for piece in _pieces(arch):
            line = [(p.cost, _within(p.value, y)) for p in piece]
            plot.line(line, color=series_color(i), dash=series_dash(i), faint=not _is_inside(piece))
    for i, point, at, mean in known:
        sd = point.score.sd
        plot.point(
            at,
            mean,
            color=series_color(i),
            names=(str(point.rung),),
            whisker=(mean - sd, mean + sd) if sd else None,
            title=f"{point.name}: {metric} {fixed(mean, decimals)}, {si(at)} {w.COST_NAMES[result.cost]}",
        )
    if (widest := _widest(result)) is not None:  # more arrows would hide the points
        one, level = widest
        start, end = (_cost_at(arch, level.value) for arch in result.archs if arch.name in (one.arch, one.other))
        plot.span(start, end, level.value, w.ratio_words(max(level.ratio, 1 / level.ratio)))
    return plot, legend([(arch.name, series_color(i), series_dash(i)) for i, arch in enumerate(result.archs)])


def write_svg(result: ScaleResult, path: Path) -> None:
    """The plot as a picture, with a white ground; the same result makes the same bytes.

    Raises:
        GemkitError: matplotlib is missing, or the file cannot be written.
    """
    known = _known(result)
    with svg_figure(path, 7.2, 4.6) as figure:
        axes = figure.add_subplot()
        axes.set_xlabel(f"{w.COST_TITLES[result.cost]} (log scale)")
        axes.set_ylabel(f"{metric_name(result.metric)} of {result.task}, test split (lower is better)")
        axes.grid(alpha=0.25)
        for i, arch in enumerate(result.archs):
            color, marker = f"C{i}", _MARKERS[i % len(_MARKERS)]
            for piece in _pieces(arch):
                alpha, costs = (1.0 if _is_inside(piece) else 0.3), [p.cost for p in piece]
                axes.plot(costs, [p.value for p in piece], color=color, alpha=alpha, linewidth=1.5)
                ends = [_band(p, None) for p in piece]
                if bands := [end for end in ends if end is not None]:
                    lows, highs = zip(*bands, strict=True)
                    axes.fill_between(costs, lows, highs, color=color, alpha=0.15 * alpha, linewidth=0)
            own = [(cost, mean, point.score.sd or 0.0) for j, point, cost, mean in known if j == i]
            if own:
                at, means, spreads = zip(*own, strict=True)
                axes.errorbar(at, means, spreads, color=color, fmt=marker, markersize=5, capsize=2, label=arch.name)
        if known:
            x, y = _axes(result, known)
            axes.set_xscale("log")
            axes.set_xlim(x.low, x.high)
            axes.set_ylim(y.low, y.high)
            axes.set_xticks([value for value, _ in x.ticks], [text for _, text in x.ticks])
            axes.minorticks_off()
            axes.legend(frameon=False)


def _known(result: ScaleResult) -> list[tuple[int, Point, float, float]]:
    """Index of the architecture, point, cost and mean of those that have both."""
    return [
        (i, point, cost, point.score.mean)
        for i, arch in enumerate(result.archs)
        for point in arch.points
        if (cost := point.cost(result.cost)) and point.score.mean is not None
    ]


def _axes(result: ScaleResult, known: Sequence[tuple[int, Point, float, float]]) -> tuple[Axis, Axis]:
    """As wide as the curves, and as high as points and curves within the ladders: a band may leave the plot."""
    curves = [p for arch in result.archs if arch.fit for p in arch.fit.curve]
    x = logarithmic([cost for _, _, cost, _ in known] + [p.cost for p in curves], margin=0.02)
    ends = [mean + sign * (point.score.sd or 0.0) for _, point, _, mean in known for sign in (-1, 1)]
    return x, linear(ends + [p.value for p in curves if p.inside])


def _pieces(arch: ArchResult) -> Iterator[list[CurvePoint]]:
    """The curve before, within and after the ladder; neighbours share their end."""
    curve = arch.fit.curve if arch.fit else ()
    inside = [i for i, point in enumerate(curve) if point.inside]
    if inside:
        for piece in (curve[: inside[0] + 1], curve[inside[0] : inside[-1] + 1], curve[inside[-1] :]):
            if len(piece) > 1:
                yield list(piece)


def _is_inside(piece: Sequence[CurvePoint]) -> bool:
    return piece[0].inside and piece[-1].inside


def _band(point: CurvePoint, axis: Axis | None) -> tuple[float, float] | None:
    """The ends of a band that has both; cut at a plot's height, if it has one, as they may be far beyond it."""
    if point.band is None or point.band.low is None or point.band.high is None:
        return None
    if axis is None:
        return point.band.low, point.band.high
    return min(max(point.band.low, axis.low), axis.high), max(min(point.band.high, axis.high), axis.low)


def _widest(result: ScaleResult) -> tuple[Comparison, EqualQuality] | None:
    """The comparison with the first architecture whose costs differ most, in the middle of what both reached."""
    own = [one for one in result.comparisons if one.levels and one.arch == result.archs[0].name]
    middles = [(one, one.levels[len(one.levels) // 2]) for one in own]
    return max(middles, key=lambda pair: abs(math.log(pair[1].ratio)), default=None)


def _within(value: float, axis: Axis) -> float:
    """A value, or one not too far beyond the axis: a law may be anywhere outside its ladder."""
    height = axis.high - axis.low
    return min(max(value, axis.low - height), axis.high + height)


def _cost_at(arch: ArchResult, value: float) -> float:
    """Where a law reaches a value that it does reach."""
    assert arch.fit is not None
    share: float = (arch.fit.scale / (value - arch.fit.floor)) ** (1 / arch.fit.alpha)
    return arch.fit.unit * share
