"""Collating: what a batch holds."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gemkit.data import storage
from gemkit.data.collate import Reading, collate, plain_layout
from gemkit.testing.data import make_dataset, make_source


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "d", num_users=12)


def gather(data, rows, **changes):
    return collate(data, np.asarray(rows), Reading(**({"max_history": 50} | changes)))


def histories(batch):
    """Each example's history as plain lists: [(event ids, age, stream), ...]."""
    h = batch.history
    events = [k for k in batch.ids if k.startswith("events.")]
    spans = list(zip(h.offsets[:-1].tolist(), h.offsets[1:].tolist(), strict=True))
    return [
        [(*(int(batch.ids[k][t]) for k in events), float(h.ages[t]), int(h.stream[t])) for t in range(*spans[u])]
        for u in h.history_index.tolist()
    ]


def test_a_batch_holds_the_examples_values(data):
    source, rows = make_source(num_users=12), [5, 900, 17, 5]
    batch = gather(data, rows)
    examples = source.examples.to_pylist()
    items, tags = (["?", *data.vocabulary(t)] for t in ("item_id", "tags"))
    price = data.schema.dense[0]
    for i, row in enumerate(rows):
        wanted = examples[int(batch.example_id[i])]
        assert items[batch.ids["item_id"][i]] in (wanted["item_id"], "?")
        bag = batch.ids["tags"][batch.bag_offsets["tags"][i] : batch.bag_offsets["tags"][i + 1]]
        assert [tags[t] for t in bag] == wanted["tags"]
        assert batch.dense[i, 0] == pytest.approx((np.log1p(wanted["price"]) - price.mean) / price.std, rel=1e-5)
        assert batch.vectors["content"][i].tolist() == wanted["content"]
        assert batch.labels[i].tolist() == [wanted["click"], wanted["buy"]]
        assert batch.masks[i].tolist() == [1.0, float(wanted["click"])]
        assert batch.weights[i] == wanted["weight"]
        assert data.schema.surfaces[batch.surface[i]] == wanted["surface"]
        assert batch.timestamp[i] == wanted["timestamp"]
        assert batch.example_id[i] == data.columns[storage.EXAMPLE_ID][row]
    assert batch.size == 4


def test_dtypes(data):
    batch = gather(data, [1, 2, 3])
    ints = [
        *batch.ids.values(),
        *batch.bag_offsets.values(),
        batch.surface,
        batch.group,
        batch.timestamp,
        batch.example_id,
    ]
    ints += [batch.history.offsets, batch.history.stream, batch.history.history_index, batch.history.first_example]
    assert {t.dtype for t in ints} == {torch.int64}
    floats = [batch.dense, batch.labels, batch.masks, batch.weights, batch.history.ages, *batch.vectors.values()]
    assert {t.dtype for t in floats} == {torch.float32}


def test_max_history_keeps_the_newest(data):
    rows = data.split("test")
    everything, some = histories(gather(data, rows, max_history=10_000)), histories(gather(data, rows, max_history=7))
    assert max(map(len, everything)) > 7
    assert some == [h[-7:] for h in everything]


def test_ages_are_positive_and_oldest_comes_first(data):
    batch = gather(data, np.arange(data.num_examples))
    assert batch.history.ages.min() > 0
    for history in histories(batch):
        ages = [event[-2] for event in history]
        assert ages == sorted(ages, reverse=True)
    example = int(data.history_lengths(np.arange(data.num_examples), 9).argmax())
    first = histories(gather(data, [example], max_history=1))[0][0]
    newest = data.shards[0].events[storage.TIMESTAMP][data.columns[storage.HISTORY_END][example] - 1]
    assert first[-2] == data.columns[storage.TIMESTAMP][example] - newest


def test_shared_histories_are_fewer_and_equal(data):
    rows = np.random.default_rng(0).permutation(data.num_examples)[:400]
    shared, own = gather(data, rows), gather(data, rows, shares_histories=False)
    assert len(shared.history.offsets) < len(own.history.offsets) == 401
    assert histories(shared) == histories(own)
    first, index = shared.history.first_example, shared.history.history_index
    assert torch.equal(index[first], torch.arange(len(first)))
    assert torch.equal(shared.group, shared.group[first][index]), "a history has one user"
    assert torch.equal(shared.timestamp, shared.timestamp[first][index]), "and one time, so that ages agree"


def test_layout_is_known_to_the_host(data):
    batch = gather(data, [3, 1, 4])
    lengths = batch.history.offsets.diff().tolist()
    assert batch.history.layout.max_length == max(lengths)
    assert batch.history.layout.chunks.position.numel() == sum(lengths)

    def layout(lengths, stream):
        return plain_layout(lengths)._replace(plan=lengths.tolist())

    planned = gather(data, [3, 1, 4], layout=layout)
    assert planned.history.layout.plan == lengths


def test_unread_events_are_left_out(data):
    batch = gather(data, [1, 2], read_events=False)
    assert batch.history is None
    assert not [k for k in batch.ids if k.startswith("events.")]


def test_users_without_events_have_empty_histories(data):
    lengths = data.history_lengths(np.arange(data.num_examples), 9)
    rows = np.flatnonzero(lengths == 0)[:3]
    batch = gather(data, rows)
    assert len(rows) == 3 and batch.history.layout.max_length == 0 and batch.history.ages.numel() == 0


def test_an_empty_batch_has_the_right_shapes(data):
    batch = gather(data, np.array([], np.int64))
    assert batch.size == 0 and batch.dense.shape == (0, 2) and batch.history.offsets.tolist() == [0]
