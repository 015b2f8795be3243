"""The exact collector and its streaming form: masks, weights, surfaces, ranks, and what is undefined."""

from __future__ import annotations

import itertools
import json
import threading
from typing import Any

import pytest
import torch
from torch import Tensor

from gemkit.data.batch import Batch
from gemkit.data.schema import Schema, Task
from gemkit.errors import GemkitError
from gemkit.metrics import functional as M
from gemkit.metrics.collector import MetricCollector
from gemkit.metrics.streaming import StreamingMetrics, auc_from_histogram

SCHEMA = Schema(
    name="tiny",
    tasks=(Task(name="like"), Task(name="love", masked_by="like")),
    surfaces=("feed", "reels"),
    group="user",
)
RATES = {"like": 0.4, "love": 0.2}
BOTH = pytest.mark.parametrize("kind", [MetricCollector, StreamingMetrics])


def make(n: int, seed: int = 0) -> tuple[Tensor, Batch]:
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, 2, generator=generator)
    labels = (torch.rand(n, 2, generator=generator) < torch.sigmoid(logits)).float()
    masks = torch.stack([torch.ones(n), labels[:, 0]], dim=1)

    def integers(below: int) -> Tensor:
        return torch.randint(below, (n,), generator=generator)

    batch = Batch(
        ids={},
        bag_offsets={},
        dense=torch.zeros(n, 0),
        vectors={},
        history=None,
        labels=labels * masks,
        masks=masks,
        delays=torch.full((n, 2), float("nan")),
        elapsed=torch.full((n,), float("inf")),
        weights=torch.rand(n, generator=generator) + 0.5,
        surface=integers(2),
        group=integers(20),
        timestamp=torch.zeros(n, dtype=torch.int64),
        example_id=torch.arange(n) + 1000 * seed,
    )
    return logits, batch


def split(logits: Tensor, batch: Batch, *cuts: int) -> list[tuple[Tensor, Batch]]:
    bounds = [0, *cuts, len(logits)]
    rows = ("labels", "masks", "weights", "surface", "group", "timestamp", "example_id", "dense")
    return [
        (logits[a:b], batch._replace(**{name: getattr(batch, name)[a:b] for name in rows}))
        for a, b in itertools.pairwise(bounds)
    ]


def close(a: Any, b: Any) -> bool:
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(close(a[key], b[key]) for key in a)
    return a == (pytest.approx(b, rel=1e-11) if isinstance(b, float) else b)


def test_values_are_those_of_the_functions_over_labels_that_count() -> None:
    logits, batch = make(500)
    metrics = MetricCollector(SCHEMA, RATES)
    for part in split(logits, batch, 100, 101, 350):
        metrics.update(*part)
    result = metrics.compute()
    for p, task in enumerate(("like", "love")):
        for name, here in {None: batch.surface >= 0, "feed": batch.surface == 0, "reels": batch.surface == 1}.items():
            rows = here & (batch.masks[:, p] > 0)
            z, y, w = logits[rows, p].double(), batch.labels[rows, p].double(), batch.weights[rows].double()
            got = result[task] if name is None else result[task]["surfaces"][name]
            loss = M.logloss(z, y, w)
            assert got["auc"] == M.auc(z, y, w)
            assert got["logloss"] == loss
            assert got["ne"] == M.ne(loss, RATES[task])
            assert (got["ne_base"], got["base_rate"]) == ("train", RATES[task])
            assert got["ece"] == M.ece(torch.sigmoid(z), y, w)
            assert got["calibration"] == M.calibration(torch.sigmoid(z), y, w)
            assert got["pr_auc"] == M.pr_auc(z, y, w)
            value, used, skipped = M.gauc(z, y, batch.group[rows], "positives", w)
            assert got["gauc_positives"] == value
            assert (got["gauc_groups_used"], got["gauc_groups_skipped"]) == (used, skipped)
            assert got["examples"] == int(rows.sum())
    assert result["love"]["examples"] < result["like"]["examples"] == 500


def test_streaming_equals_exact_except_for_auc_which_is_within_its_bound() -> None:
    logits, batch = make(5000)
    exact, streaming = MetricCollector(SCHEMA, RATES), StreamingMetrics(SCHEMA, RATES, num_bins=64)
    for part in split(logits, batch, 700, 4000):
        exact.update(*part)
        streaming.update(*part)
    left, right = exact.compute(), streaming.compute()
    assert "auc" not in right["like"]
    for task in ("like", "love"):
        cells = [(left[task], right[task])]
        cells += [(left[task]["surfaces"][s], right[task]["surfaces"][s]) for s in SCHEMA.surfaces]
        for a, b in cells:
            for name in ("logloss", "ne", "calibration", "ece", "base_rate", "label_rate", "examples", "positives"):
                assert close(a[name], b[name]), name
            assert 0 < abs(a["auc"] - b["auc_histogram"]) <= b["auc_histogram_error"] < 0.1


def test_the_bound_is_tight() -> None:
    # 3 positives and 2 negatives share the middle bin: 6 of 4 * 4 pairs may be right or wrong, 10 are right.
    auc, error = auc_from_histogram(torch.tensor([[0.0, 3.0, 1.0], [2.0, 2.0, 0.0]]).double())
    assert auc is not None and error is not None
    assert (auc - error, auc + error) == (10 / 16, 16 / 16)


def test_streaming_error_is_small_with_rare_positives() -> None:
    generator = torch.Generator().manual_seed(1)
    n = 50_000
    logits, batch = make(n)
    logits = torch.randn(n, 2, generator=generator) - 5  # a click rate of 1 %
    batch = batch._replace(labels=(torch.rand(n, 2, generator=generator) < torch.sigmoid(logits)).float())
    streaming, exact = StreamingMetrics(SCHEMA, RATES), MetricCollector(SCHEMA, RATES)
    streaming.update(logits, batch)
    exact.update(logits, batch)
    got = streaming.compute()["like"]
    assert abs(got["auc_histogram"] - exact.compute()["like"]["auc"]) <= got["auc_histogram_error"] < 4e-4


def test_ne_base_eval_uses_the_label_rate_of_what_is_evaluated() -> None:
    logits, batch = make(300)
    for kind in (MetricCollector, StreamingMetrics):
        metrics = kind(SCHEMA, ne_base="eval")
        metrics.update(logits, batch)
        result = metrics.compute()["like"]
        for got in (result, *result["surfaces"].values()):
            assert got["ne_base"] == "eval"
            assert got["base_rate"] == got["label_rate"]
            assert got["ne"] == M.ne(got["logloss"], got["label_rate"])
        assert result["surfaces"]["feed"]["base_rate"] != result["base_rate"]


@BOTH
def test_missing_base_rate_is_an_error(kind: type) -> None:
    with pytest.raises(GemkitError, match="unknown for love"):
        kind(SCHEMA, {"like": 0.3})


@BOTH
def test_one_surface_and_no_group_leave_their_metrics_out(kind: type) -> None:
    metrics = kind(Schema(name="plain", tasks=SCHEMA.tasks), RATES)
    logits, batch = make(50)
    metrics.update(logits, batch._replace(surface=torch.zeros_like(batch.surface)))
    result = metrics.compute()["like"]
    assert "surfaces" not in result
    assert not any(name.startswith("gauc") for name in result)


@BOTH
def test_undefined_values_are_null_with_their_count(kind: type) -> None:
    logits, batch = make(40)
    metrics = kind(SCHEMA, RATES)
    metrics.update(logits, batch._replace(labels=torch.ones(40, 2), masks=torch.tensor([[1.0, 0.0]]).expand(40, 2)))
    result = metrics.compute()
    auc = "auc" if kind is MetricCollector else "auc_histogram"
    assert result["like"][auc] is None
    assert result["like"]["logloss"] > 0
    assert result["like"]["examples"] == result["like"]["positives"] == 40
    for name in (auc, "logloss", "ne", "calibration", "ece", "label_rate"):
        assert result["love"][name] is None
    assert result["love"]["examples"] == 0
    assert "NaN" not in json.dumps(result, allow_nan=False)


@BOTH
def test_weight_zero_does_not_count(kind: type) -> None:
    logits, batch = make(60)
    weights = batch.weights.clone()
    weights[30:] = 0
    metrics, expected = kind(SCHEMA, RATES), kind(SCHEMA, RATES)
    metrics.update(logits, batch._replace(weights=weights))
    expected.update(*split(logits, batch, 30)[0])
    assert close(metrics.compute(), expected.compute())


@BOTH
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_a_prediction_that_is_no_number_is_an_error(kind: type, value: float) -> None:
    logits, batch = make(20, seed=3)
    logits[7, 0] = value
    metrics = kind(SCHEMA, RATES)
    metrics.update(logits, batch)
    with pytest.raises(GemkitError, match="NaN or infinity") as caught:
        metrics.compute()
    if kind is MetricCollector:
        assert "3007" in str(caught.value)


def test_a_masked_prediction_may_be_anything() -> None:
    logits, batch = make(20)
    metrics = [MetricCollector(SCHEMA, RATES), StreamingMetrics(SCHEMA, RATES)]
    before, after = [], []
    for m in metrics:
        m.update(logits, batch)
        before.append(m.compute())
        m.reset()
    logits[int(torch.nonzero(batch.masks[:, 1] == 0)[0, 0]), 1] = float("nan")
    for m in metrics:
        m.update(logits, batch)
        after.append(m.compute())
    assert before == after


@BOTH
def test_state_comes_back(kind: type) -> None:
    logits, batch = make(200)
    first, second = split(logits, batch, 90)
    whole, resumed = kind(SCHEMA, RATES), kind(SCHEMA, RATES)
    whole.update(*first)
    resumed.load_state_dict({name: values.clone() for name, values in whole.state_dict().items()})
    for metrics in (whole, resumed):
        metrics.update(*second)
    assert resumed.compute() == whole.compute()
    whole.reset()
    whole.update(*second)
    assert whole.compute()["like"]["examples"] == 110


@BOTH
@pytest.mark.parametrize("cuts", [(70, 150), (0, 150), (200, 200)])
def test_ranks_together_equal_one_process(kind: type, cuts: tuple[int, int]) -> None:
    """Three ranks in three threads, with a gather that refuses shares of different shape, like all_gather."""
    logits, batch = make(200)
    whole = kind(SCHEMA, RATES)
    whole.update(logits, batch)
    barrier, box, results = threading.Barrier(3, timeout=20), [torch.zeros(0)] * 3, [{}] * 3

    def rank(index: int, part: tuple[Tensor, Batch]) -> None:
        def gather(values: Tensor) -> Tensor:
            box[index] = values
            barrier.wait()
            shapes = {(v.shape, v.dtype) for v in box}
            gathered = torch.cat(box) if len(shapes) == 1 else None
            barrier.wait()
            assert gathered is not None, shapes
            return gathered

        metrics = kind(SCHEMA, RATES)
        if len(part[0]):
            metrics.update(*part)
        results[index] = metrics.compute(gather)

    threads = [threading.Thread(target=rank, args=(i, part)) for i, part in enumerate(split(logits, batch, *cuts))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(threads) == 3
    for result in results:
        assert close(result, whole.compute())


def test_nothing_to_evaluate_is_an_error() -> None:
    with pytest.raises(GemkitError, match="no examples"):
        MetricCollector(SCHEMA, RATES).compute()
