"""What a known truth tells: the best that any model can reach, and how much of it a model has reached."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from gemkit.data import storage
from gemkit.data.dataset import Dataset
from gemkit.errors import GemkitError
from gemkit.metrics import functional as M
from gemkit.metrics.collector import NeBase

SMALLEST = 1e-15
"""A true probability of 0 or 1 has an infinite logit; within this distance of them it makes no difference."""


def floor(
    truth: np.ndarray, labels: np.ndarray, weights: np.ndarray | None = None, base_rate: float | None = None
) -> dict[str, Any]:
    """The best possible metrics of a task, from the true probabilities.

    Two losses, which differ by the luck of the labels: `logloss_expected`, the mean entropy of the truth, is what the
    best model's logloss would be on average over all labels that might have come; `logloss` is what the truth itself
    has on the labels that came. A model is evaluated on those, so NE's floor is of the latter: both have the same luck.

    Args:
        labels: 0, 1, or below 0 where it does not count.
        base_rate: That of the NE to compare with; None: the label rate of these examples.

    Returns:
        `logloss`, `logloss_expected`, `ne_floor`, `ne_floor_expected`, `base_rate`, `auc_best`, `calibration` (of the
        truth: near 1, else the truth is none) and `examples`; None where undefined.

    Raises:
        GemkitError: A truth is no probability.

    Shape: truth, labels, weights (n,).
    """
    w = np.ones(len(labels)) if weights is None else np.asarray(weights, np.float64)
    counts = (labels >= 0) & (w > 0)
    bad = counts & ~((truth >= 0) & (truth <= 1))
    if bad.any():
        raise GemkitError(f"{truth[bad][0]} is no probability", where="truth", allowed="0 to 1")
    p = torch.from_numpy(np.clip(truth[counts], SMALLEST, 1 - SMALLEST).astype(np.float64))
    y = torch.from_numpy(labels[counts].astype(np.float64))
    weight = torch.from_numpy(w[counts])
    total = float(weight.sum())
    logit = torch.logit(p)
    realised = M.logloss(logit, y, weight)
    # Entropy is the logloss of p with p itself as a (soft) label.
    expected = M.logloss(logit, p, weight)
    if base_rate is None and total > 0:
        base_rate = float((y * weight).sum()) / total
    return {
        "logloss": realised,
        "logloss_expected": expected,
        "ne_floor": M.ne(realised, base_rate),
        "ne_floor_expected": M.ne(expected, base_rate),
        "base_rate": base_rate,
        "auc_best": M.auc(logit, y, weight),
        "calibration": M.calibration(p, y, weight),
        "examples": int(counts.sum()),
    }


def learned(ne: float | None, ne_floor: float | None) -> float | None:
    """Share of the learnable signal: 0 for the base rate (whose NE is 1), 1 for the truth; None if there is no signal.

    Below 0 if the model is worse than the base rate. All three NEs need the same base rate.
    """
    if ne is None or ne_floor is None or ne_floor >= 1:
        return None
    return (1 - ne) / (1 - ne_floor)


def floors(
    dataset: Dataset, split: str, base_rates: Mapping[str, float | None], ne_base: NeBase = "train"
) -> dict[str, dict[str, Any]]:
    """`floor` of each task whose truth the data set knows.

    Args:
        base_rates: Task -> label rate of the training split.
        ne_base: As for `MetricCollector`: whose label rate NE is normalised by.
    """
    rows = dataset.split(split)
    found = {}
    for task in dataset.schema.tasks:
        if task.truth is None:
            continue
        truth = dataset.columns[storage.TRUTH + task.name][rows]
        labels, weights = dataset.columns[task.name][rows], dataset.columns[storage.WEIGHT][rows]
        rate = base_rates.get(task.name) if ne_base == "train" else None
        found[task.name] = floor(truth, labels, weights, rate)
    return found


def with_floors(metrics: Mapping[str, Mapping[str, Any]], found: Mapping[str, Mapping[str, Any]]) -> dict[str, Any]:
    """Metrics by task, with `ne_floor`, `auc_best` and `learned` where the truth is known."""
    result: dict[str, Any] = {}
    for task, values in metrics.items():
        result[task] = dict(values)
        if task in found:
            best = found[task]
            result[task] |= {"ne_floor": best["ne_floor"], "auc_best": best["auc_best"]}
            result[task]["learned"] = learned(values.get("ne"), best["ne_floor"])
    return result
