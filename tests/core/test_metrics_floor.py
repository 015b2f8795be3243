"""What a known truth tells."""

from __future__ import annotations

import math

import numpy as np
import pytest

from gemkit.errors import GemkitError
from gemkit.metrics.floor import floor, learned, with_floors


def naive_entropy(p: float) -> float:
    return -p * math.log(p) - (1 - p) * math.log(1 - p)


def naive_loss(p: float, y: int) -> float:
    return -math.log(p if y else 1 - p)


def test_floor_equals_a_loop_over_examples_that_count() -> None:
    rng = np.random.default_rng(0)
    truth, labels = rng.uniform(0.01, 0.9, 200), rng.integers(-1, 2, 200).astype(np.int8)
    weights = rng.integers(0, 3, 200).astype(np.float32)
    found = floor(truth, labels, weights, base_rate=0.3)
    rows = [(float(p), int(y), float(w)) for p, y, w in zip(truth, labels, weights, strict=True) if y >= 0 and w > 0]
    total = sum(w for *_, w in rows)
    expected = sum(w * naive_entropy(p) for p, _, w in rows) / total
    realised = sum(w * naive_loss(p, y) for p, y, w in rows) / total
    assert found["examples"] == len(rows) < 200
    assert found["logloss_expected"] == pytest.approx(expected, rel=1e-12)
    assert found["logloss"] == pytest.approx(realised, rel=1e-12)
    assert found["ne_floor"] == pytest.approx(realised / naive_entropy(0.3), rel=1e-12)
    assert found["ne_floor_expected"] == pytest.approx(expected / naive_entropy(0.3), rel=1e-12)
    assert found["calibration"] == pytest.approx(
        sum(w * p for p, _, w in rows) / sum(w * y for _, y, w in rows), rel=1e-12
    )
    pairs = [(wp * wn, (pp > pn) + (pp == pn) / 2) for pp, yp, wp in rows if yp for pn, yn, wn in rows if not yn]
    assert found["auc_best"] == pytest.approx(sum(w * s for w, s in pairs) / sum(w for w, _ in pairs), rel=1e-12)


def test_without_a_base_rate_it_is_that_of_the_examples() -> None:
    truth, labels = np.array([0.2, 0.4, 0.6, 0.5]), np.array([0, 1, 1, -1], np.int8)
    assert floor(truth, labels)["base_rate"] == pytest.approx(2 / 3)


def test_a_certain_truth_has_no_loss_and_no_label_has_no_floor() -> None:
    found = floor(np.array([0.0, 1.0]), np.array([0, 1], np.int8))
    assert found["ne_floor"] == pytest.approx(0, abs=1e-9)
    assert found["auc_best"] == 1
    nothing = floor(np.array([0.5]), np.array([-1], np.int8), base_rate=0.5)
    assert nothing["ne_floor"] is None and nothing["auc_best"] is None and nothing["examples"] == 0


@pytest.mark.parametrize("bad", [-0.1, 1.1, math.nan])
def test_a_truth_that_is_no_probability_is_refused(bad: float) -> None:
    with pytest.raises(GemkitError, match="no probability"):
        floor(np.array([0.5, bad]), np.array([0, 1], np.int8))
    floor(np.array([0.5, bad]), np.array([0, -1], np.int8), base_rate=0.5)  # nobody asks for it


def test_the_floor_is_below_every_other_prediction() -> None:
    """With many labels: the truth beats shrunk, stretched and shifted versions of itself."""
    rng = np.random.default_rng(1)
    z = rng.normal(-1, 1.5, 100_000)
    truth = 1 / (1 + np.exp(-z))
    labels = (rng.random(100_000) < truth).astype(np.int8)
    best = floor(truth, labels)
    assert best["ne_floor"] == pytest.approx(best["ne_floor_expected"], rel=0.01)
    for other in (0.8 * z, 1.25 * z, z + 0.2, z - 0.2):
        assert floor(1 / (1 + np.exp(-other)), labels)["ne_floor"] > best["ne_floor"]


def test_learned_is_0_for_the_base_rate_and_1_for_the_truth() -> None:
    assert learned(1.0, 0.8) == 0
    assert learned(0.8, 0.8) == 1
    assert learned(0.9, 0.8) == pytest.approx(0.5)
    assert learned(1.1, 0.8) < 0
    assert learned(None, 0.8) is None and learned(0.9, None) is None and learned(0.9, 1.0) is None


def test_only_tasks_with_a_truth_gain_keys() -> None:
    best = {"click": {"ne_floor": 0.8, "auc_best": 0.75}}
    found = with_floors({"click": {"ne": 0.9}, "like": {"ne": 0.9}}, best)
    assert found["click"] == {"ne": 0.9, "ne_floor": 0.8, "auc_best": 0.75, "learned": pytest.approx(0.5)}
    assert found["like"] == {"ne": 0.9}
