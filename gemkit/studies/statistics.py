"""What a difference between two variants is worth, with chance from seeds and chance from test examples in it.

A difference is the mean of the differences of runs of the same seed, which share first weights and the order of the
data. Its 95 % interval is mean +- sqrt(seeds_part^2 + examples_part^2):

* seeds_part: other seeds would have given other differences. Student's t of the paired differences.
* examples_part: other test examples would have, too. 1.96 standard deviations of the mean difference over resamples
  of the test examples (`gemkit.studies.bootstrap`); all runs are resampled alike.

Why not resample seeds and examples together and take percentiles? Three seeds have only ten distinct resamples, none
of which is wider than the seeds themselves: such an interval holds the truth far less often than it says. The tests
simulate both.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from statistics import mean, stdev

from gemkit.metrics.names import HIGHER_IS_BETTER
from gemkit.studies.result import Difference, Score

NORMAL_95 = 1.959963984540054
"""97.5 % quantile of the normal distribution."""

MOST_SEEDS = 10_000
"""More seeds than this are no answer to how many would resolve a difference."""

BETTER, WORSE, NOT_RESOLVED = "better", "worse", "not resolved"


def score(by_seed: Sequence[float | None]) -> Score:
    """One metric of one variant, over the seeds that have it."""
    known = [value for value in by_seed if value is not None]
    return Score(
        by_seed=tuple(by_seed),
        mean=mean(known) if known else None,
        sd=stdev(known) if len(known) > 1 else None,
    )


def difference(metric: str, variant: Score, base: Score, examples_part: float | None) -> Difference | None:
    """A metric of a variant minus the base's; None without a seed that both have.

    Args:
        metric: One that has a better direction.
        examples_part: Half-width of the 95 % interval from the chance of the test examples; None: unknown, and then
            the interval is about seeds alone.
    """
    pairs = [(v, b) for v, b in zip(variant.by_seed, base.by_seed, strict=True) if v is not None and b is not None]
    if not pairs:
        return None
    by_seed = [v - b for v, b in pairs]
    center, base_mean = mean(by_seed), mean(b for _, b in pairs)
    sd = stdev(by_seed) if len(by_seed) > 1 else None
    half = None if sd is None else half_width(len(by_seed), sd, examples_part or 0.0)
    resolved = half is not None and abs(center) > half
    better = (center > 0) == HIGHER_IS_BETTER[metric]
    return Difference(
        num_seeds=len(by_seed),
        mean=center,
        low=None if half is None else center - half,
        high=None if half is None else center + half,
        seeds_part=None if sd is None else half_width(len(by_seed), sd, 0.0),
        examples_part=examples_part,
        relative=center / base_mean if base_mean else None,
        verdict=(BETTER if better else WORSE) if resolved else NOT_RESOLVED,
        seeds_needed=None if sd is None else seeds_needed(center, sd, examples_part or 0.0),
    )


def half_width(num_seeds: int, sd: float, examples_part: float) -> float:
    """Half of the 95 % interval of a mean difference of `num_seeds` seeds with this standard deviation."""
    return math.hypot(t_quantile(num_seeds - 1) * sd / math.sqrt(num_seeds), examples_part)


def seeds_needed(center: float, sd: float, examples_part: float) -> int | None:
    """The least number of seeds at which a difference of this size would be resolved; None if no number would be."""

    def resolves(num_seeds: int) -> bool:
        return half_width(num_seeds, sd, examples_part) < abs(center)

    low, high = 1, 2  # one seed never does
    while not resolves(high):
        low, high = high, 2 * high
        if low >= MOST_SEEDS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if resolves(middle) else (middle, high)
    return high


@functools.lru_cache(maxsize=1024)
def t_quantile(dof: int) -> float:
    """97.5 % quantile of Student's t with `dof` degrees of freedom, by bisection."""
    if dof > 1000:
        return NORMAL_95 + (NORMAL_95**3 + NORMAL_95) / (4 * dof)  # the next term is below 1e-5
    low, high = NORMAL_95, 13.0
    for _ in range(50):
        middle = (low + high) / 2
        low, high = (middle, high) if _inside(middle, dof) < 0.95 else (low, middle)
    return (low + high) / 2


def _inside(t: float, dof: int) -> float:
    """P(-t < T < t): the finite series of Abramowitz and Stegun, 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(dof))
    cos2 = math.cos(angle) ** 2
    odd = dof % 2 == 1
    term, total = (math.cos(angle) if odd else 1.0), 0.0
    for k in range(dof // 2):
        total += term
        term *= cos2 * ((2 * k + 2) / (2 * k + 3) if odd else (2 * k + 1) / (2 * k + 2))
    if odd:
        return 2 / math.pi * (angle + math.sin(angle) * total)
    return math.sin(angle) * total
