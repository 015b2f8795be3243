"""Exact metrics against brute force (pairs counted one by one) and against torchmetrics."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_average_precision,
    binary_calibration_error,
)

from gemkit.errors import GemkitError
from gemkit.metrics import functional as M
from gemkit.metrics.names import is_better


def brute_auc(rows: list[tuple[float, int, float]]) -> float | None:
    """Rows of (score, label, weight)."""
    right = pairs = 0.0
    for score, label, weight in rows:
        for other, other_label, other_weight in rows:
            if label == 1 and other_label == 0:
                pairs += weight * other_weight
                right += weight * other_weight * (1.0 if score > other else 0.5 if score == other else 0.0)
    return right / pairs if pairs else None


def brute_gauc(rows: list[tuple[float, int, float, int]], weighting: str) -> tuple[float | None, int, int]:
    """Rows of (score, label, weight, group)."""
    total = mass = 0.0
    used = skipped = 0
    for group in {row[3] for row in rows}:
        members = [row[:3] for row in rows if row[3] == group]
        value = brute_auc(members)
        if value is None:
            skipped += 1
            continue
        used += 1
        impressions = sum(w for _, _, w in members)
        positives = sum(w for _, y, w in members if y)
        weight = {"impressions": impressions, "positives": positives, "none": 1.0}[weighting]
        total += weight * value
        mass += weight
    return (total / mass if used else None), used, skipped


def columns(rows: list[tuple[float, ...]]) -> list[Tensor]:
    return [torch.tensor(column, dtype=torch.float64) for column in zip(*rows, strict=True)]


# Few distinct scores, so that ties are the rule.
SCORES = st.sampled_from([-2.0, -0.5, 0.0, 0.25, 3.0])
WEIGHTS = st.sampled_from([0.0, 0.5, 1.0, 2.0])
ROWS = st.lists(st.tuples(SCORES, st.integers(0, 1), WEIGHTS, st.integers(-2, 3)), min_size=1, max_size=40)


@settings(deadline=None)
@given(ROWS)
def test_auc_and_gauc_equal_brute_force(rows: list[tuple[float, int, float, int]]) -> None:
    scores, labels, weights, groups = columns(rows)
    assert M.auc(scores, labels, weights) == pytest.approx(brute_auc([r[:3] for r in rows]))
    for weighting in ("impressions", "positives", "none"):
        expected = brute_gauc(rows, weighting)
        assert tuple(M.gauc(scores, labels, groups.long(), weighting, weights)) == pytest.approx(expected)


@settings(deadline=None)
@given(ROWS)
def test_integer_weights_equal_repeated_rows(rows: list[tuple[float, int, float, int]]) -> None:
    scores, labels, weights, groups = columns([(s, y, 2 * w, g) for s, y, w, g in rows])
    again = weights.long()
    s, y, g = (values.repeat_interleave(again) for values in (scores, labels, groups))
    p, q = torch.sigmoid(scores), torch.sigmoid(s)
    assert M.auc(scores, labels, weights) == pytest.approx(M.auc(s, y))
    assert M.pr_auc(scores, labels, weights) == pytest.approx(M.pr_auc(s, y))
    assert M.logloss(scores, labels, weights) == pytest.approx(M.logloss(s, y))
    assert M.calibration(p, labels, weights) == pytest.approx(M.calibration(q, y))
    assert M.ece(p, labels, weights) == pytest.approx(M.ece(q, y))
    assert M.gauc(scores, labels, groups, "impressions", weights)[0] == pytest.approx(M.gauc(s, y, g)[0])


@pytest.fixture
def sample() -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(3)
    logits = torch.randn(20_000, dtype=torch.float64, generator=generator).mul(2).round(decimals=2)  # with ties
    labels = (torch.rand(20_000, generator=generator) < torch.sigmoid(logits - 1)).double()
    return logits, labels


def test_equal_to_torchmetrics(sample: tuple[Tensor, Tensor]) -> None:
    logits, labels = sample
    p, y = torch.sigmoid(logits), labels.long()
    # torchmetrics answers in float32
    assert M.auc(logits, labels) == pytest.approx(float(binary_auroc(p, y)), abs=2e-6)
    assert M.pr_auc(logits, labels) == pytest.approx(float(binary_average_precision(p, y)), abs=2e-6)
    assert M.ece(p, labels) == pytest.approx(float(binary_calibration_error(p, y, n_bins=M.ECE_BINS)), abs=1e-12)


def test_auc_depends_on_the_order_only(sample: tuple[Tensor, Tensor]) -> None:
    logits, labels = sample
    assert M.auc(logits, labels) == M.auc(torch.sigmoid(logits), labels) == M.auc(logits * 100 + 7, labels)


def test_large_logits_keep_their_order() -> None:
    # A sigmoid makes all of these 1.0 and the AUC 0.5.
    assert M.auc(torch.tensor([500.0, 501.0, 600.0]), torch.tensor([0.0, 1.0, 1.0])) == 1.0


def test_logloss_of_huge_logits_is_finite_and_exact() -> None:
    logits = torch.tensor([1000.0, -1000.0, 1000.0, 0.0], dtype=torch.float64)
    assert M.logloss(logits[:2], torch.tensor([1.0, 0.0])) == 0.0
    assert M.logloss(logits[2:3], torch.tensor([0.0])) == 1000.0
    assert M.logloss(logits[3:], torch.tensor([1.0])) == pytest.approx(math.log(2))


@pytest.mark.parametrize("label", [0.0, 1.0])
def test_single_class_is_undefined_not_nan(label: float) -> None:
    scores, labels = torch.tensor([0.1, 0.2, 0.3]).double(), torch.full((3,), label).double()
    assert M.auc(scores, labels) is None
    assert M.gauc(scores, labels, torch.tensor([1, 1, 2])) == (None, 0, 2)
    assert M.logloss(scores, labels) is not None
    assert (M.pr_auc(scores, labels) is None) == (label == 0.0)
    assert (M.calibration(torch.sigmoid(scores), labels) is None) == (label == 0.0)


def test_nothing_is_undefined_everywhere() -> None:
    none = torch.zeros(0, dtype=torch.float64)
    assert [f(none, none) for f in (M.auc, M.logloss, M.calibration, M.ece, M.pr_auc)] == [None] * 5
    assert M.gauc(none, none, none.long()) == (None, 0, 0)


def test_one_group_is_auc(sample: tuple[Tensor, Tensor]) -> None:
    logits, labels = sample
    value, used, skipped = M.gauc(logits, labels, torch.full_like(labels, 7).long(), "positives")
    assert (value, used, skipped) == (pytest.approx(M.auc(logits, labels), abs=1e-12), 1, 0)


def test_ne_is_one_for_the_base_rate_and_undefined_without_entropy() -> None:
    labels = torch.tensor([1.0, 0.0, 0.0, 0.0], dtype=torch.float64)
    logits = torch.full((4,), math.log(0.25 / 0.75), dtype=torch.float64)
    assert M.ne(M.logloss(logits, labels), 0.25) == pytest.approx(1.0)
    assert M.ne(0.3, 0.0) is None
    assert M.ne(0.3, 1.0) is None
    assert M.ne(None, 0.5) is None


def test_calibration_and_ece_by_hand() -> None:
    p, y = torch.tensor([0.02, 0.04, 0.9, 1.0]).double(), torch.tensor([0.0, 0.0, 1.0, 0.0]).double()
    assert M.calibration(p, y) == pytest.approx(1.96)
    # bins: {0.02, 0.04} off by 0.03; {0.9} (bin 13) off by 0.1; {1.0} (bin 14) off by 1.0
    assert M.ece(p, y) == pytest.approx((2 * 0.03 + 0.1 + 1.0) / 4, abs=1e-6)


def test_better() -> None:
    assert is_better("auc", 0.8, 0.7)
    assert not is_better("logloss", 0.8, 0.7)
    assert is_better("ne", 0.8, None)
    assert not is_better("ne", None, None)
    with pytest.raises(GemkitError, match="examples"):
        is_better("examples", 1, 2)
