"""The two kinds of chance in a ladder, and how uncertain they are themselves.

Other seeds would have given other runs: the spread of the seeds tells how much, that of all sizes together, as three
seeds tell no better than to a factor of two. And sizes lie off the law by more than that, because it is not all that
there is: how much, their scatter tells, which is hardly anything where there are few. So both are drawn, as likely as
the runs make them.

Why not one noise, the scatter where a test finds it larger than the seeds', else both together? Where the test misses
it, intervals are too narrow, and where there is but a size to spare it makes them so wide that nothing is resolved.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

SCATTER = 1.0
"""What scatter is expected before the sizes are looked at: scale of a half-Cauchy distribution, as a multiple of the
seeds' noise of a mean. The form is Gelman's (Bayesian Analysis 2006) for deviations that few groups tell about; the
scale says that scatter of the seeds' order is nothing odd, and much more not excluded."""


class Noise(NamedTuple):
    """What tells of the two kinds of chance: sums of squares and their degrees of freedom.

    Attributes:
        seeds_sum: Of runs about the mean of their size.
        law_sum: Of sizes about the law, times their numbers of runs.
        runs: Of a size, mean.
    """

    seeds_sum: float
    seeds_dof: int
    law_sum: float
    law_dof: int
    runs: float

    @classmethod
    def of(cls, by_seed: Sequence[Sequence[float]], missed: np.ndarray, num_parameters: int) -> Noise:
        """
        Args:
            missed: The sizes' means minus the law.
        """
        counts = np.array([len(runs) for runs in by_seed])
        return cls(
            seeds_sum=sum(float(np.var(runs)) * len(runs) for runs in by_seed),
            seeds_dof=int((counts - 1).sum()),
            law_sum=float((counts * missed**2).sum()),
            law_dof=max(0, len(counts) - num_parameters),
            runs=float(counts.mean()),
        )

    @property
    def is_known(self) -> bool:
        """Whether anything tells of chance: seeds, or more sizes than the law has parameters."""
        return bool(self.seeds_dof or self.law_dof)

    @property
    def misfit(self) -> float | None:
        """Probability that seeds alone scatter sizes about the law as much; None if that cannot be told."""
        if not (self.seeds_sum and self.law_dof):
            return None
        f = np.random.default_rng(0).f(self.law_dof, self.seeds_dof, 100_000)
        return float((f * self.seeds_sum / self.seeds_dof >= self.law_sum / self.law_dof).mean())

    def draw(self, rng: np.random.Generator, num: int) -> tuple[np.ndarray, np.ndarray]:
        """Variances of runs about their size's mean, and of sizes about the law beyond those.

        With one seed (or with seeds that are all alike) the scatter is all that is known; without a size to spare, the
        spread of seeds.

        Shape: (num,), (num,).
        """
        if not self.seeds_sum:
            scatters = self.law_sum / self.runs / rng.chisquare(self.law_dof, num) if self.law_dof else np.zeros(num)
            return np.zeros(num), scatters
        spreads = self.seeds_sum / rng.chisquare(self.seeds_dof, num)
        if not self.law_dof:
            return spreads, np.zeros(num)
        # Scatter as a multiple of the seeds' noise of a mean, on a grid: prior times likelihood of `law_sum`.
        times = np.geomspace(1e-2, 1e3, 120)
        prior = times / (1 + (times / SCATTER) ** 2)
        expected = spreads[:, None] * (1 + times**2)
        log_likelihood = -self.law_dof / 2 * np.log(expected) - self.law_sum / 2 / expected
        weights = prior * np.exp(log_likelihood - log_likelihood.max(axis=1, keepdims=True))
        sums = weights.cumsum(axis=1)
        chosen = (sums < sums[:, -1:] * rng.random((num, 1))).sum(axis=1)
        return spreads, spreads * times[chosen] ** 2 / self.runs
