"""The law of one architecture with what chance there is in it, and the cost of two at equal quality.

Intervals come from a parametric bootstrap: the sizes' means are drawn anew about the fitted law, with the noise that
the runs tell of (`noise`), and fitted again. Drawing the seeds again instead would promise too much: three of them have
ten distinct resamples, which are narrower than they are.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from gemkit.studies.scaling import law
from gemkit.studies.scaling.law import Laws
from gemkit.studies.scaling.noise import Noise
from gemkit.studies.scaling.result import Comparison, CurvePoint, EqualQuality, Fit, Interval

DRAWS = 2000
SEED = 0
LEAST_SIZES = 3
_INSIDE, _OUTSIDE = 41, 12
"""Points of a curve within the ladder, and on each side of it."""


class Fitted(NamedTuple):
    """A fit, and what comparisons need of it.

    Attributes:
        law: The one fitted law.
        draws: Those of the bootstrap; None without intervals.
        low, high: The ladder's costs.
    """

    fit: Fit
    law: Laws
    draws: Laws | None
    low: float
    high: float


def fit_law(
    costs: Sequence[float],
    by_seed: Sequence[Sequence[float]],
    floor: float | None,
    limits: tuple[float, float],
    stream: int = 0,
) -> Fitted:
    """The law through the sizes of one architecture.

    Args:
        costs: Of each size; at least three are different.
        by_seed: The metric of each of its runs.
        floor: None: fitted too.
        limits: Costs between which the curve is wanted.
        stream: Of random numbers: a different one for each architecture, whose chances are independent.
    """
    x, means = np.array(costs), np.array([np.mean(runs) for runs in by_seed])
    counts = np.array([len(runs) for runs in by_seed], dtype=float)
    best = law.fit(x, means[None], counts, floor)
    noise = Noise.of(by_seed, means - best.at(x)[0], _num_parameters(best, floor))
    draws, scatter = None, None
    if noise.is_known:
        rng = np.random.default_rng((SEED, stream))
        spreads, scatters = noise.draw(rng, DRAWS)
        sd = np.sqrt(spreads[:, None] / counts + scatters[:, None])
        draws = law.fit(x, best.at(x) + sd * rng.standard_normal((DRAWS, len(x))), counts, floor)
        scatter = float(np.sqrt(np.median(scatters))) if noise.law_dof else None
    alpha = None if draws is None else interval(draws.alpha)
    if alpha is not None and alpha.high is not None and alpha.high > 0.999 * law.steepest_alpha(x):
        alpha = Interval(low=alpha.low, high=None)
    found = Fit(
        floor=float(best.floor[0]),
        scale=float(best.scale[0]),
        alpha=float(best.alpha[0]),
        unit=best.unit,
        floor_interval=None if draws is None or floor is not None else interval(draws.floor),
        alpha_interval=alpha,
        resolved=None if alpha is None else bool(alpha.low),
        seed_sd=math.sqrt(noise.seeds_sum / noise.seeds_dof) if noise.seeds_dof else None,
        scatter_sd=scatter,
        misfit=noise.misfit,
        curve=_curve(best, draws, x.min(), x.max(), limits),
    )
    return Fitted(found, best, draws, float(x.min()), float(x.max()))


def _num_parameters(best: Laws, floor: float | None) -> int:
    """Those that are free where the fit ended: a floor of 0, a scale of 0 and an alpha of 0 are bounds."""
    free_floor = floor is None and best.floor[0] > 0
    return int(free_floor) + int(best.scale[0] > 0) + int(best.alpha[0] > 0)


def interval(draws: np.ndarray) -> Interval:
    """The middle 95 % of draws; NaN counts as both very low and very high. Shape: (n,)."""
    low = np.quantile(np.where(np.isnan(draws), -np.inf, draws), 0.025, method="inverted_cdf")
    high = np.quantile(np.where(np.isnan(draws), np.inf, draws), 0.975, method="inverted_cdf")
    return Interval(low=float(low) if np.isfinite(low) else None, high=float(high) if np.isfinite(high) else None)


# --- curves and comparisons ---------------------------------------------------------------------------------


def _curve(
    best: Laws, draws: Laws | None, low: float, high: float, limits: tuple[float, float]
) -> tuple[CurvePoint, ...]:
    inside = np.geomspace(low, high, _INSIDE)
    before = np.geomspace(min(limits[0], low), low, _OUTSIDE + 1)[:-1]
    after = np.geomspace(high, max(limits[1], high), _OUTSIDE + 1)[1:]
    costs = np.concatenate([before[before < low], inside, after[after > high]])
    bands = [None] * len(costs) if draws is None else [interval(column) for column in draws.at(costs).T]
    return tuple(
        CurvePoint(cost=float(cost), value=float(value), band=band, inside=bool(low <= cost <= high))
        for cost, value, band in zip(costs, best.at(costs)[0], bands, strict=True)
    )


def compare(name: str, one: Fitted, other_name: str, other: Fitted, metric: str) -> Comparison:
    """Costs of two architectures at values that both have reached, by their laws within their ladders."""

    def not_comparable(obstacle: str) -> Comparison:
        return Comparison(arch=name, other=other_name, levels=(), obstacle=obstacle)

    for who, fitted in ((name, one), (other_name, other)):
        if fitted.fit.resolved is False:
            return not_comparable(f"{metric} of {who} does not fall with cost beyond chance")
    reached = [fitted.law.at(np.array([fitted.low, fitted.high]))[0] for fitted in (one, other)]
    worst, best = min(ends[0] for ends in reached), max(ends[1] for ends in reached)
    if best >= worst:
        (a, b), (c, d) = reached
        return not_comparable(
            f"{metric} of {name} goes from {a:.4f} to {b:.4f} and that of {other_name} from {c:.4f} to {d:.4f}: "
            "no value was reached by both"
        )
    levels = (float(worst), float(worst + best) / 2, float(best))
    return Comparison(
        arch=name, other=other_name, levels=tuple(_at_equal(value, one, other) for value in levels), obstacle=""
    )


def _at_equal(value: float, one: Fitted, other: Fitted) -> EqualQuality:
    ratio = float(other.law.costs_at(value)[0] / one.law.costs_at(value)[0])
    found = None
    if one.draws is not None and other.draws is not None:
        with np.errstate(divide="ignore", invalid="ignore"):
            ratios = other.draws.costs_at(value) / one.draws.costs_at(value)
        found = interval(ratios)
    return EqualQuality(value=value, ratio=ratio, interval=found)
