"""What a ladder says, in words: laws, intervals, and which architecture is how much cheaper at equal quality."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from statistics import median

from gemkit.studies.answer import metric_name
from gemkit.studies.page.text import MISSING, decimals_for, fixed, si
from gemkit.studies.scaling.result import Comparison, EqualQuality, Fit, Interval, ScaleResult

COST_NAMES = {"flops_per_example": "FLOPs/example", "training_flops": "training FLOPs"}
COST_TITLES = {
    "flops_per_example": "FLOPs per example, forward and backward",
    "training_flops": "FLOPs of the whole training",
}

_IN_A_SENTENCE = 4
"""Decimals."""

FLOORS = {"fitted": "fitted", "given": "given", "data": "that of the true probabilities"}


def decimals_of(result: ScaleResult) -> int:
    """Decimals of the metric, by the usual spread of seeds."""
    spreads = [point.score.sd for arch in result.archs for point in arch.points if point.score.sd]
    return decimals_for([median(spreads)] if spreads else [])


def law_words(fit: Fit, decimals: int) -> str:
    """``0.8500 + 0.0310 (C / 120 k)^-0.35``."""
    power = fixed(-fit.alpha, 3)
    return f"{fixed(fit.floor, decimals)} + {fixed(fit.scale, decimals)} (C / {si(fit.unit)})^{power}"


def interval_words(interval: Interval | None, text: Callable[[float], str]) -> str:
    """``0.31 to 0.40``, ``above 0.31``, ``unbounded``; a dash without one.

    Args:
        interval: Of a number that is at least 0.
    """
    if interval is None:
        return MISSING
    if interval.high is None:
        return f"above {text(interval.low)}" if interval.low else "unbounded"
    return f"{text(interval.low or 0.0)} to {text(interval.high)}"


def alpha_note(fit: Fit) -> str:
    """Its interval, and whether that reaches 0; empty without one."""
    if fit.alpha_interval is None:
        return ""
    words = interval_words(fit.alpha_interval, lambda x: fixed(x, 3))
    return words + (", not resolved from 0" if fit.resolved is False else "")


def floor_note(fit: Fit, floor_from: str, decimals: int) -> str:
    """Its interval if it was fitted, else where it came from; empty without either."""
    if floor_from != "fitted":
        return FLOORS[floor_from]
    return interval_words(fit.floor_interval, lambda x: fixed(x, decimals)) if fit.floor_interval else ""


def with_note(words: str, note: str) -> str:
    """``0.350 (0.310 to 0.400)``."""
    return f"{words} ({note})" if note else words


def ratio_words(ratio: float) -> str:
    """``3.14x``, ``31.4x``, ``314x``."""
    decimals = 2 if ratio < 9.995 else 1
    return f"{fixed(ratio, decimals) if ratio < 99.95 else si(ratio)}x"


# --- answers ------------------------------------------------------------------------------------------------


def answer(result: ScaleResult) -> str:
    """What the ladder found, in a few sentences."""
    if not any(arch.fit for arch in result.archs):
        return "No architecture has a law yet."
    decimals, first = min(decimals_of(result), _IN_A_SENTENCE), result.archs[0]
    if len(result.archs) == 1 and first.fit is not None:
        falls = f"goes as {law_words(first.fit, decimals)}, C in {COST_NAMES[result.cost]}"
        if first.fit.resolved is False:
            falls = "does not fall with cost beyond chance"
        return f"{metric_name(result.metric)} of {first.name} {falls}."
    own = [one for one in result.comparisons if one.arch == first.name]
    return " ".join(comparison_words(one, result.cost, result.metric, decimals) for one in own)


def comparison_words(one: Comparison, cost: str, metric: str, decimals: int) -> str:
    """A sentence on two architectures, with their costs in the middle of what both reached."""
    if not one.levels:
        return f"{one.arch} and {one.other} are not comparable: {one.obstacle}."
    cheap, dear, level = _cheap_first(one, one.levels[len(one.levels) // 2])
    words = f"At {metric_name(metric)} {fixed(level.value, decimals)} {dear} takes {ratio_words(level.ratio)} the "
    words += f"{COST_NAMES[cost]} of {cheap}"
    if level.interval is not None:
        words += f" (95 % interval {interval_words(level.interval, ratio_words)})"
        if not resolved(level):
            words += ", which is not resolved from equal"
    return words + "."


def resolved(level: EqualQuality) -> bool | None:
    """Whether the interval of a ratio excludes 1; None without one."""
    if level.interval is None:
        return None
    low, high = level.interval.low or 0.0, level.interval.high
    return low > 1 or (high is not None and high < 1)


def _cheap_first(one: Comparison, level: EqualQuality) -> tuple[str, str, EqualQuality]:
    """The cheaper, the dearer, and the ratio that is at least 1."""
    if level.ratio >= 1:
        return one.arch, one.other, level
    turned = None
    if level.interval is not None:
        low, high = level.interval.low, level.interval.high
        turned = Interval(low=1 / high if high else 0.0 if high is None else None, high=1 / low if low else None)
    return one.other, one.arch, EqualQuality(value=level.value, ratio=1 / level.ratio, interval=turned)


def listed(values: Iterable[object]) -> str:
    return ", ".join(map(str, values))
