"""Which way a metric is better. No torch here: tables and plots use it too."""

from __future__ import annotations

from gemkit.errors import GemkitError

HIGHER_IS_BETTER = {
    "auc": True,
    "auc_histogram": True,
    "pr_auc": True,
    "gauc_impressions": True,
    "gauc_positives": True,
    "gauc_unweighted": True,
    "logloss": False,
    "ne": False,
    "ece": False,
}


def is_better(metric: str, new: float | None, best: float | None) -> bool:
    """Whether `new` beats `best`. An undefined value (None) never beats anything, and any value beats None.

    Raises:
        GemkitError: `metric` is not one that has a better direction.
    """
    if metric not in HIGHER_IS_BETTER:
        raise GemkitError(
            f"cannot pick a best checkpoint by {metric!r}", where="train.monitor", allowed=", ".join(HIGHER_IS_BETTER)
        )
    if new is None:
        return False
    if best is None:
        return True
    return new > best if HIGHER_IS_BETTER[metric] else new < best
