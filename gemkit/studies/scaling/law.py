"""Power laws of cost, `floor + scale * (cost / unit)^-alpha`, and their least-squares fit.

Paper: the form of Kaplan et al. (arXiv 2001.08361) with a floor, as Hoffmann et al. (arXiv 2203.15556) have it.
Differs: of one variable, the cost; `unit` is the ladder's cheapest cost, so that `scale` is what lies above the floor
    there.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np

NUM_ALPHAS = 80
"""Exponents that are tried before the best of them is refined."""
SMALLEST_ALPHA = 1e-3
_GOLDEN = (math.sqrt(5) - 1) / 2
_REFINEMENTS = 40
"""Each leaves 0.62 of the interval between two exponents."""


class Laws(NamedTuple):
    """Many laws at once. A flat one has scale 0 or alpha 0.

    Shape: floor, scale, alpha (n,).
    """

    unit: float
    floor: np.ndarray
    scale: np.ndarray
    alpha: np.ndarray

    def at(self, costs: np.ndarray) -> np.ndarray:
        """What they say of these costs. Shape: (k,) -> (n, k)."""
        powers = (np.asarray(costs) / self.unit) ** -self.alpha[:, None]
        values: np.ndarray = self.floor[:, None] + self.scale[:, None] * powers
        return values

    def costs_at(self, value: float) -> np.ndarray:
        """Where they reach a value: infinity if no cost does, 0 if every cost does. Shape: (n,)."""
        with np.errstate(divide="ignore", over="ignore", invalid="ignore"):
            ratio = np.where(value > self.floor, self.scale / (value - self.floor), np.inf)
            costs = self.unit * ratio ** (1 / self.alpha)
        flat = self.alpha == 0
        return np.where(flat, np.where(ratio <= 1, 0.0, np.inf), costs)


def fit(costs: np.ndarray, values: np.ndarray, weights: np.ndarray, floor: float | None = None) -> Laws:
    """The laws that miss the values by the least weighted sum of squares, among those that do not rise.

    At a given exponent the law is linear in the rest, so that alpha alone is searched: on a grid, which no starting
    value can lead astray, then between the best one's neighbours.

    Args:
        costs: Above 0, at least two of them different.
        floor: None: fitted too, at least 0.

    Shape: costs (k,), values (n, k), weights (k,).
    """
    unit, steepest = costs.min(), steepest_alpha(costs)
    u = costs / unit
    grid = np.concatenate([[0.0], np.geomspace(SMALLEST_ALPHA, steepest, NUM_ALPHAS)])
    _, _, missed = _linear(u, values[:, None], weights, grid, floor)
    best = missed.argmin(axis=1)
    low, high = grid[np.maximum(best - 1, 0)], grid[np.minimum(best + 1, len(grid) - 1)]
    for _ in range(_REFINEMENTS):  # golden section
        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        is_left = _linear(u, values, weights, left, floor)[2] <= _linear(u, values, weights, right, floor)[2]
        low, high = np.where(is_left, low, left), np.where(is_left, right, high)
    middle = (low + high) / 2
    ends = np.stack([grid[best], middle], axis=1)
    # At the ends of the grid the refinement stays a hair inside.
    refined = _linear(u, values[:, None], weights, ends, floor)[2].argmin(axis=1)
    alpha = np.where(refined == 0, ends[:, 0], ends[:, 1])
    floors, scales, _ = _linear(u, values, weights, alpha, floor)
    return Laws(float(unit), floors, scales, np.where(scales > 0, alpha, 0.0))


def steepest_alpha(costs: np.ndarray) -> float:
    """The largest exponent that is tried: it leaves 1 % of `scale` at the second cheapest of the different costs.

    No data could tell a steeper one from it.
    """
    first, second = np.unique(costs)[:2]
    return math.log(100) / math.log(second / first)


def _linear(
    u: np.ndarray, values: np.ndarray, weights: np.ndarray, alpha: np.ndarray, floor: float | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Floor, scale and weighted sum of squares of the best laws with given exponents.

    Shape: u (k,), values (..., k), alpha (...,) -> (...,) each.
    """
    x = u ** -alpha[..., None]
    if floor is None:
        mean_x, mean_y = (np.average(z, axis=-1, weights=weights) for z in (x, values))
        dx, dy = x - mean_x[..., None], values - mean_y[..., None]
        spread = (weights * dx * dx).sum(-1)
        scale = np.maximum((weights * dx * dy).sum(-1), 0) / np.where(spread > 0, spread, 1.0)
        floors = mean_y - scale * mean_x
        through_zero = floors < 0
        scale = np.where(through_zero, _through(0.0, x, values, weights), scale)
        floors = np.where(through_zero, 0.0, floors)
    else:
        scale = _through(floor, x, values, weights)
        floors = np.full(scale.shape, floor)
    missed = values - floors[..., None] - scale[..., None] * x
    return floors, scale, (weights * missed * missed).sum(-1)


def _through(floor: float, x: np.ndarray, values: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """The best scale at least 0 for a given floor."""
    best = (weights * x * (values - floor)).sum(-1) / (weights * x * x).sum(-1)
    clipped: np.ndarray = np.maximum(best, 0)
    return clipped
