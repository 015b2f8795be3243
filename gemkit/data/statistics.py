"""Sums whose result does not depend on the order or the division of what is summed."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np

UNIT_BITS = 1140
"""Sums are kept in units of 2**-1140: the smallest float64 is 2**-1074."""

MAX_BLOCK = 1 << 24


class ExactSum:
    """Adds float64 numbers without rounding, as `math.fsum` does, but piece by piece and at the speed of arrays."""

    def __init__(self) -> None:
        self.count = 0
        self._units = 0

    def add(self, values: np.ndarray, counts: np.ndarray | None = None) -> None:
        """Adds finite numbers, each as often as `counts` says."""
        if counts is not None:
            for bit in range(int(counts.max(initial=0)).bit_length()):
                chosen = values[(counts >> bit) & 1 == 1]
                self._add(np.ldexp(chosen, bit))
                self.count += len(chosen) << bit
            return
        self._add(values)
        self.count += len(values)

    def _add(self, values: np.ndarray) -> None:
        for start in range(0, len(values), MAX_BLOCK):
            fractions, exponents = np.frexp(values[start : start + MAX_BLOCK])
            whole = np.ldexp(fractions, 53).astype(np.int64)
            lowest = int(exponents.min())
            # Halves of 27 bits: float64, in which `bincount` adds, holds 2**24 of them exactly.
            for part, shift in ((whole >> 26, 26), (whole & (2**26 - 1), 0)):
                for i, total in enumerate(np.bincount(exponents - lowest, weights=part).tolist()):
                    self._units += int(total) << (UNIT_BITS + lowest + i - 53 + shift)

    @property
    def mean(self) -> float:
        """Correctly rounded; 0 if there are no numbers."""
        return float(Fraction(self._units, self.count << UNIT_BITS)) if self.count else 0.0


def deviation(mean: float, squares: ExactSum) -> float:
    """The standard deviation, from the squares of what differs from the mean; 1 for a constant column."""
    std = math.sqrt(squares.mean)
    # A constant column has a rounding error for a standard deviation.
    return std if std > 1e-12 * max(1.0, abs(mean)) else 1.0
