"""Random streams that do not depend on each other, and draws from many distributions at once."""

from __future__ import annotations

import numpy as np

PURPOSES = ("items", "advertisers", "directions", "users", "events", "journeys", "requests", "labels")


def generator(seed: int, purpose: str, block: int = 0) -> np.random.Generator:
    """The random numbers of one purpose in one block of users: whatever else is drawn, or not, they are the same."""
    return np.random.Generator(np.random.PCG64(np.random.SeedSequence([seed, PURPOSES.index(purpose), block])))


class Choices:
    """Many distributions over the same few outcomes; one search draws from all.

    Args:
        weights: (rows, outcomes), not negative, each row with a sum above 0.
    """

    def __init__(self, weights: np.ndarray) -> None:
        cumulative = np.cumsum(weights, axis=1)
        cumulative /= cumulative[:, -1:]
        self._outcomes = weights.shape[1]
        # Row r spans r to r + 1, so that all rows are one ascending array.
        self._edges = (cumulative + np.arange(len(weights))[:, None]).ravel()

    def draw(self, row: np.ndarray, uniform: np.ndarray) -> np.ndarray:
        """An outcome of each `row`. Shape: (n,), (n,) -> (n,) int64."""
        found = np.searchsorted(self._edges, row + uniform, side="right") - row * self._outcomes
        outcome: np.ndarray = np.minimum(found, self._outcomes - 1)
        return outcome


def runs(counts: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Of `counts[i]` rows of owner i: where each owner's begin, each row's owner, and its number within it."""
    starts = np.zeros(len(counts) + 1, np.int64)
    np.cumsum(counts, out=starts[1:])
    owner = np.repeat(np.arange(len(counts)), counts)
    return starts, owner, np.arange(starts[-1]) - starts[owner]
