"""How far metrics would move with other test examples: the same resamples for all runs of a study.

Each run is sorted once. A resample is how often each example was drawn, so that AUC is a running sum over the sorted
negatives, and logloss a product with the examples' losses: both in time proportional to their number.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np

from gemkit.errors import GemkitError
from gemkit.runs.predictions import Predictions

RESAMPLED = ("auc", "logloss", "ne")
"""Metrics whose chance from examples is known; that of NE is logloss's, its base rate being fixed."""

SEED = 0


class Ranked(NamedTuple):
    """One run's examples of a task: positives, and negatives in order of its logits.

    Attributes:
        positives, negatives: (n+,), (n-,) rows of the examples.
        positive_weights, negative_weights: (n+,), (n-,)
        below, upto: (n+,) how many negatives have a smaller logit than each positive; a smaller or equal one.
    """

    positives: np.ndarray
    negatives: np.ndarray
    positive_weights: np.ndarray
    negative_weights: np.ndarray
    below: np.ndarray
    upto: np.ndarray


def resample(
    runs: Sequence[Predictions], resamples: int, by: str = "examples", advance: Callable[[int], None] = lambda _: None
) -> dict[str, dict[str, np.ndarray]]:
    """Task -> "auc" and "logloss" -> their values in each resample for each run; NaN where undefined.

    Args:
        runs: Predictions for the same examples (`check_same`).
        by: "examples", or "groups": all examples of a group are drawn together.
        advance: Called with 1 after each resample.

    Raises:
        GemkitError: There is one unit only: the data set names no group.

    Shape: (resamples, runs).
    """
    first = runs[0]
    rng = np.random.default_rng(SEED)
    units, unit_of = len(first.example_id), None
    if by == "groups":
        names, unit_of = np.unique(first.group, return_inverse=True)
        units = len(names)
    if units < 2:
        raise GemkitError(f"there are no {by} to draw from", where="--resample", allowed="examples, or groups")
    tasks = {task: _Task(runs, p) for p, task in enumerate(first.tasks)}
    found = {t: {m: np.full((resamples, len(runs)), np.nan) for m in ("auc", "logloss")} for t in tasks}
    for r in range(resamples):
        drawn = np.bincount(rng.integers(units, size=units), minlength=units).astype(np.float64)
        counts = drawn if unit_of is None else drawn[unit_of]
        for name, task in tasks.items():
            found[name]["auc"][r] = [auc(ranked, counts) for ranked in task.ranked]
            found[name]["logloss"][r] = task.logloss(counts)
        advance(1)
    return found


class _Task:
    """One task of all runs, made ready for resampling."""

    def __init__(self, runs: Sequence[Predictions], task: int) -> None:
        first = runs[0]
        self.rows = np.flatnonzero(first.masks[:, task] & (first.weights > 0))
        labels = first.labels[self.rows, task]
        self.weights = first.weights[self.rows].astype(np.float64)
        logits = [run.logits[self.rows, task].astype(np.float64) for run in runs]
        self.ranked = [self._ranked(z, labels) for z in logits]
        self.losses = np.stack([np.logaddexp(0.0, z) - labels * z for z in logits])

    def _ranked(self, logits: np.ndarray, labels: np.ndarray) -> Ranked:
        order = np.argsort(logits)
        positives, negatives = order[labels[order]], order[~labels[order]]
        below, upto = (np.searchsorted(logits[negatives], logits[positives], side) for side in ("left", "right"))
        rows, weights = self.rows, self.weights
        return Ranked(rows[positives], rows[negatives], weights[positives], weights[negatives], below, upto)

    def logloss(self, counts: np.ndarray) -> np.ndarray:
        """Shape: (N,) -> (runs,)."""
        weights = counts[self.rows] * self.weights
        total = weights.sum()
        return self.losses @ weights / total if total > 0 else np.full(len(self.losses), np.nan)


def auc(ranked: Ranked, counts: np.ndarray) -> float:
    """AUC of a resample; NaN if it has one class only. Shape: counts (N,)."""
    positives = counts[ranked.positives] * ranked.positive_weights
    negatives = np.zeros(len(ranked.negatives) + 1)
    np.cumsum(counts[ranked.negatives] * ranked.negative_weights, out=negatives[1:])
    pairs = positives.sum() * negatives[-1]
    if not pairs > 0:
        return float("nan")
    return float(positives @ (negatives[ranked.below] + negatives[ranked.upto]) / (2 * pairs))


def check_same(runs: Sequence[tuple[str, Predictions]]) -> None:
    """
    Raises:
        GemkitError: Two runs were tested on other examples, or on other labels of them: there are no pairs.
    """
    first_name, first = runs[0]
    for name, other in runs[1:]:
        for what in ("tasks", "example_id", "labels", "masks", "weights", "group"):
            if not np.array_equal(getattr(first, what), getattr(other, what)):
                raise GemkitError(
                    f"the runs {first_name} and {name} have other test {_WORDS[what]}: they cannot be compared",
                    where=what,
                    allowed="the same test split, in the same data set, for all variants",
                    fix="remove the runs that were made with another data set, and run them again",
                )


_WORDS = {name: name for name in ("tasks", "labels", "masks", "weights")} | {
    "example_id": "examples",
    "group": "groups",
}
