"""Exact metrics of binary predictions, on 1-D float64 CPU tensors.

`weights` are example weights (None: all 1); a metric that is undefined, say the AUC of a single class, is
None, never NaN.

Why not torchmetrics' or TorchRec's: torchmetrics' AUROC, average precision and calibration error take no
example weights, its first two answer in float32 and call the AUC of a single class 0, and it puts scores
outside [0, 1] through a float sigmoid, which makes large logits equal. TorchRec's AUC and gAUC give tied
scores an order instead of half a point, and its NE smooths with an epsilon. Where theirs are defined and
unweighted, the tests hold ours against torchmetrics'.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

ECE_BINS = 15

Weighting = Literal["impressions", "positives", "none"]


def auc(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> float | None:
    """Chance that a positive scores above a negative, ties counting one half; None if a class is missing.

    Any increasing function of the probability will do for `scores`; logits are best, they saturate last.

    Shape: scores, labels, weights (n,).
    """
    areas = _areas(scores, labels, weights, None)
    return _ratio(areas.concordant.sum(), (areas.positives * areas.negatives).sum())


class GroupedAuc(NamedTuple):
    """The value of `gauc`, and how many groups it rests on."""

    value: float | None
    groups_used: int
    groups_skipped: int


def gauc(
    scores: Tensor,
    labels: Tensor,
    groups: Tensor,
    weighting: Weighting = "impressions",
    weights: Tensor | None = None,
) -> GroupedAuc:
    """Mean over groups (mostly users) of the AUC within the group.

    Args:
        weighting: A group counts by its examples, by its positives, or like any other. With `weights`,
            examples and positives are sums of weights.

    Groups with one class have no AUC: they are skipped and counted.

    Shape: scores, labels, groups, weights (n,); groups int64, any values.
    """
    return gauc_all(scores, labels, groups, weights)[weighting]


def gauc_all(
    scores: Tensor, labels: Tensor, groups: Tensor, weights: Tensor | None = None
) -> dict[Weighting, GroupedAuc]:
    """`gauc` under every weighting, for one sort."""
    areas = _areas(scores, labels, weights, groups)
    pairs = areas.positives * areas.negatives
    used = pairs > 0
    count, skipped = int(used.sum()), int((~used).sum())
    values = areas.concordant[used] / pairs[used]
    positives, negatives = areas.positives[used], areas.negatives[used]
    by: dict[Weighting, Tensor] = {
        "impressions": positives + negatives,
        "positives": positives,
        "none": torch.ones_like(values),
    }
    return {k: GroupedAuc(_ratio((values * w).sum(), w.sum()), count, skipped) for k, w in by.items()}


def logloss(logits: Tensor, labels: Tensor, weights: Tensor | None = None) -> float | None:
    """Mean binary cross-entropy in nats, from logits: finite for any finite logit."""
    w = _weights(labels, weights)
    losses = F.binary_cross_entropy_with_logits(logits.double(), labels.double(), reduction="none")
    return _ratio((losses * w).sum(), w.sum())


def entropy(rate: float) -> float:
    """Entropy in nats of a coin that shows heads with probability `rate`."""
    return -sum(p * math.log(p) for p in (rate, 1.0 - rate) if p > 0)


def ne(logloss: float | None, base_rate: float | None) -> float | None:
    """Normalised entropy: logloss over that of always predicting `base_rate`; None if the rate is 0 or 1."""
    if logloss is None or base_rate is None or not 0.0 < base_rate < 1.0:
        return None
    return logloss / entropy(base_rate)


def calibration(probabilities: Tensor, labels: Tensor, weights: Tensor | None = None) -> float | None:
    """Sum of predictions over sum of labels: 1 is right, 2 predicts twice as many positives as there are."""
    w = _weights(labels, weights)
    return _ratio((probabilities.double() * w).sum(), (labels.double() * w).sum())


def ece(probabilities: Tensor, labels: Tensor, weights: Tensor | None = None, num_bins: int = ECE_BINS) -> float | None:
    """Expected calibration error: mean over examples of |mean prediction - mean label| of the example's bin.

    Bins are of equal width in probability: [0, 1/15), ..., [14/15, 1].
    """
    return ece_from_bins(ece_bins(probabilities, labels, _weights(labels, weights), num_bins))


def ece_bins(probabilities: Tensor, labels: Tensor, weights: Tensor, num_bins: int = ECE_BINS) -> Tensor:
    """Per bin the sums of weights, predictions and labels; sums over parts of the data add up.

    Shape: (n,) -> (3, num_bins).
    """
    p, y, w = probabilities.double(), labels.double(), weights.double()
    index = (p * num_bins).long().clamp_(0, num_bins - 1)
    return p.new_zeros(3, num_bins).index_add_(1, index, torch.stack([w, p * w, y * w]))


def ece_from_bins(bins: Tensor) -> float | None:
    """`ece` from the sums of `ece_bins`. Shape: (3, num_bins)."""
    return _ratio((bins[1] - bins[2]).abs().sum(), bins[0].sum())


def pr_auc(scores: Tensor, labels: Tensor, weights: Tensor | None = None) -> float | None:
    """Average precision: precision at each distinct score, weighted by the recall gained there.

    None without positives. No interpolation between points, which would be optimistic.
    """
    blocks = _tie_blocks(scores, labels, weights, None)
    positives, negatives = blocks.positives.flip(0), blocks.negatives.flip(0)
    hits, seen = positives.cumsum(0), (positives + negatives).cumsum(0)
    precision = torch.where(seen > 0, hits / seen, torch.zeros_like(seen))
    return _ratio((precision * positives).sum(), positives.sum())


class _Blocks(NamedTuple):
    """Examples of equal score (and group) as one block, in order of group and then of score."""

    positives: Tensor
    negatives: Tensor
    group: Tensor
    num_groups: int


class _Areas(NamedTuple):
    """Per group: weight of the positives, of the negatives, and of the pairs in the right order."""

    positives: Tensor
    negatives: Tensor
    concordant: Tensor


def _tie_blocks(scores: Tensor, labels: Tensor, weights: Tensor | None, groups: Tensor | None) -> _Blocks:
    scores, order = torch.sort(scores)
    group = torch.zeros_like(order)
    if groups is not None:
        values, by_group = torch.sort(groups[order], stable=True)  # stable: scores stay sorted within a group
        group = _starts(values).cumsum(0) - 1
        order, scores = order[by_group], scores[by_group]
    starts = _starts(scores) | _starts(group)
    block, first = starts.cumsum(0) - 1, torch.nonzero(starts).squeeze(1)
    w, y = _weights(labels, weights)[order], labels.double()[order]
    positives = w.new_zeros(len(first)).index_add_(0, block, w * y)
    negatives = w.new_zeros(len(first)).index_add_(0, block, w * (1 - y))
    num_groups = int(group[-1]) + 1 if len(group) else 0
    return _Blocks(positives, negatives, group[first], num_groups)


def _starts(values: Tensor) -> Tensor:
    """Where a sorted tensor takes a new value."""
    starts = torch.ones_like(values, dtype=torch.bool)
    starts[1:] = values[1:] != values[:-1]
    return starts


def _areas(scores: Tensor, labels: Tensor, weights: Tensor | None, groups: Tensor | None) -> _Areas:
    blocks = _tie_blocks(scores, labels, weights, groups)

    def per_group(values: Tensor) -> Tensor:
        return values.new_zeros(blocks.num_groups).index_add_(0, blocks.group, values)

    negatives = per_group(blocks.negatives)
    earlier_groups = negatives.cumsum(0) - negatives
    below = blocks.negatives.cumsum(0) - blocks.negatives - earlier_groups[blocks.group]
    concordant = per_group(blocks.positives * (below + blocks.negatives / 2))
    return _Areas(per_group(blocks.positives), negatives, concordant)


def _weights(labels: Tensor, weights: Tensor | None) -> Tensor:
    return torch.ones_like(labels, dtype=torch.float64) if weights is None else weights.double()


def _ratio(numerator: Tensor, denominator: Tensor) -> float | None:
    below = float(denominator)
    return float(numerator) / below if below > 0 else None
