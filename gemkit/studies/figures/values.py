"""Values of a variant that may be missing, and which way they are better."""

from __future__ import annotations

from gemkit.metrics.names import HIGHER_IS_BETTER
from gemkit.studies.result import Difference, Score, VariantResult


def score_of(variant: VariantResult, task: str, metric: str) -> Score | None:
    """None if there is none, or none that is defined."""
    score = variant.scores.get(task, {}).get(metric)
    return None if score is None or score.mean is None else score


def difference_of(variant: VariantResult, task: str, metric: str) -> Difference | None:
    """None for the base, and where nothing can be compared."""
    return variant.differences.get(task, {}).get(metric)


def better_hint(metric: str) -> str:
    return {True: "↑ better", False: "↓ better", None: ""}[HIGHER_IS_BETTER.get(metric)]
