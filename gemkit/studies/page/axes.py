"""Axes of a plot, linear or logarithmic: limits, ticks, and where a value lies."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Iterable, Sequence

from gemkit.studies.page.text import fixed, si

_SI_FROM = 10_000
"""Ticks get SI prefixes once one of them is as large as this."""
_LOG_STEPS = ((1.0, 2.0, 5.0), (1.0, 3.0), (1.0,))
"""Multiples of a power of ten that get a tick on a logarithmic axis; the finest that is not too many is taken."""


@dataclasses.dataclass(frozen=True)
class Axis:
    """One direction of a plot.

    Attributes:
        low, high: Its limits.
        log: Whether equal distances are equal ratios.
        ticks: (value, label), all within the limits.
    """

    low: float
    high: float
    log: bool
    ticks: tuple[tuple[float, str], ...]

    def at(self, value: float) -> float:
        """Where a value lies: 0 at `low`, 1 at `high`, beyond them outside."""
        if self.log:
            return math.log(value / self.low) / math.log(self.high / self.low)
        return (value - self.low) / (self.high - self.low)


def linear(values: Iterable[float], *, margin: float = 0.06, num_ticks: int = 6) -> Axis:
    """An axis that shows all values, with some of its length left free at both ends.

    Args:
        num_ticks: At most so many.
    """
    known = list(values)
    low, high = (min(known), max(known)) if known else (0.0, 1.0)
    if low == high:
        spread = abs(low) * 0.05 or 1.0
        low, high = low - spread, high + spread
    free = margin * (high - low)
    low, high = low - free, high + free
    return Axis(low, high, False, _label(_round_values(low, high, num_ticks)))


def logarithmic(values: Iterable[float], *, margin: float = 0.06, num_ticks: int = 6) -> Axis:
    """As `linear`, of positive values."""
    known = list(values)
    low, high = (min(known), max(known)) if known else (1.0, 10.0)
    if low == high:
        low, high = low / 1.5, high * 1.5
    free = (high / low) ** margin
    low, high = low / free, high * free
    for steps in _LOG_STEPS:
        powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
        ticks = [step * 10.0**power for power in powers for step in steps if low <= step * 10.0**power <= high]
        if 3 <= len(ticks) <= num_ticks:
            return Axis(low, high, True, _label(ticks))
    if high / low > 100:  # too many decades for a tick at each
        powers = range(math.ceil(math.log10(low)), math.floor(math.log10(high)) + 1)
        return Axis(low, high, True, _label([10.0**p for p in powers[:: -(-len(powers) // num_ticks)]]))
    return Axis(low, high, True, _label(_round_values(low, high, num_ticks)))


def _round_values(low: float, high: float, num: int) -> list[float]:
    """The multiples of 1, 2 or 5 times a power of ten, as many as there can be without being more than `num`."""
    power = 10.0 ** (math.floor(math.log10((high - low) / num)) - 1)
    for multiple in (1, 2, 5, 10, 20, 50, 100, 200, 500):
        step = multiple * power
        ticks = range(math.ceil(low / step), math.floor(high / step) + 1)
        if len(ticks) <= num:
            break
    return [i * step for i in ticks]


def _label(ticks: Sequence[float]) -> tuple[tuple[float, str], ...]:
    """With as many digits as tell neighbours apart."""
    gaps = [after - before for before, after in itertools.pairwise(ticks)]
    largest = max(map(abs, ticks), default=0.0)
    gap = min(gaps, default=largest or 1.0)
    if largest >= _SI_FROM:
        digits = max(3, math.ceil(math.log10(largest / gap)) + 1)
        return tuple((value, si(value, digits)) for value in ticks)
    decimals = max(0, -math.floor(math.log10(gap) + 1e-9))
    return tuple((value, fixed(value, decimals)) for value in ticks)
