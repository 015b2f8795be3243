"""Collating and loading: what a batch holds, and which examples come when."""

from __future__ import annotations

import threading
import time

import numpy as np
import pytest
import torch

from gemkit.data import storage
from gemkit.data.collate import collate, plain_layout
from gemkit.data.loader import Loader
from gemkit.errors import GemkitError
from gemkit.testing.data import make_dataset, make_source


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_dataset(tmp_path_factory.mktemp("data") / "d", num_users=12)


def gather(data, rows, **changes):
    options = {"max_history": 50, "read_events": True, "shares_histories": True} | changes
    return collate(data, np.asarray(rows), **options)


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
        wanted = examples[row]
        assert items[batch.ids["item_id"][i]] in (wanted["item_id"], "?")
        bag = batch.ids["tags"][batch.bag_offsets["tags"][i] : batch.bag_offsets["tags"][i + 1]]
        assert [tags[t] for t in bag] == wanted["tags"]
        assert batch.dense[i, 0] == pytest.approx((np.log1p(wanted["price"]) - price.mean) / price.std, rel=1e-5)
        assert batch.vectors["content"][i].tolist() == wanted["content"]
        assert batch.labels[i].tolist() == [wanted["click"], wanted["buy"]]
        assert batch.masks[i].tolist() == [1.0, float(wanted["click"])]
        assert batch.weights[i] == wanted["weight"]
        assert data.schema.surfaces[batch.surface[i]] == wanted["surface"]
        assert (batch.timestamp[i], batch.example_id[i]) == (wanted["timestamp"], row)
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
    example, first = 700, histories(gather(data, [700], max_history=1))[0][0]
    newest = data.events[storage.TIMESTAMP][data.columns[storage.HISTORY_END][example] - 1]
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
    planned = gather(data, [3, 1, 4], layout=lambda lengths: plain_layout(lengths)._replace(plan=lengths.tolist()))
    assert planned.history.layout.plan == lengths


def test_unread_events_are_left_out(data):
    batch = gather(data, [1, 2], read_events=False)
    assert batch.history is None
    assert not [k for k in batch.ids if k.startswith("events.")]


def test_users_without_events_have_empty_histories(data):
    lengths = data.columns[storage.HISTORY_END] - data.columns[storage.HISTORY_START]
    rows = np.flatnonzero(lengths == 0)[:3]
    batch = gather(data, rows)
    assert len(rows) == 3 and batch.history.layout.max_length == 0 and batch.history.ages.numel() == 0


def test_an_empty_batch_has_the_right_shapes(data):
    batch = gather(data, np.array([], np.int64))
    assert batch.size == 0 and batch.dense.shape == (0, 2) and batch.history.offsets.tolist() == [0]


def ids(batches) -> list[list[int]]:
    return [b.example_id.tolist() for b in batches]


def flat(batches) -> list[int]:
    return [i for b in ids(batches) for i in b]


def loader(data, **changes):
    return Loader(data, **({"split": "train", "batch_size": 64, "shuffle": True, "seed": 1} | changes))


def test_an_epoch_reads_every_example_once(data):
    for shuffle in (True, False):
        batches = loader(data, shuffle=shuffle)
        got = flat(batches.epoch(0))
        assert sorted(got) == data.split("train").tolist()
        assert len(ids(batches.epoch(0))) == len(batches) == -(-len(got) // 64)


def test_order_depends_on_seed_and_epoch_only(data):
    first = ids(loader(data).epoch(3))
    assert first == ids(loader(data, prefetch=0).epoch(3))
    assert first != ids(loader(data).epoch(4))
    assert first != ids(loader(data, seed=2).epoch(3))


@pytest.mark.parametrize("start", [1, 5, 100])
def test_resuming_gives_the_rest_of_the_epoch(data, start):
    assert ids(loader(data).epoch(2, start)) == ids(loader(data).epoch(2))[start:]


def test_shuffling_keeps_shared_histories_together(data):
    numbers = data.columns[storage.HISTORY][flat(loader(data).epoch(0))]
    changes = np.count_nonzero(np.diff(numbers)) + 1
    assert changes == len(set(numbers.tolist())) < len(numbers)


@pytest.mark.parametrize("world_size", [2, 3])
@pytest.mark.parametrize("drop_last", [False, True])
def test_ranks_share_the_global_batch(data, world_size, drop_last):
    whole = loader(data, batch_size=16 * world_size, drop_last=drop_last)
    ranks = [loader(data, batch_size=16, rank=r, world_size=world_size, drop_last=drop_last) for r in range(world_size)]
    assert {len(r) for r in ranks} == {len(whole)}
    shares = zip(*(ids(r.epoch(0)) for r in ranks), strict=True)
    assert [[i for part in parts for i in part] for parts in shares] == ids(whole.epoch(0))
    if drop_last:
        assert {len(b) for r in ranks for b in ids(r.epoch(0))} == {16}


def test_a_split_smaller_than_a_batch_is_an_error_only_with_drop_last(data):
    assert len(loader(data, batch_size=100_000)) == 1
    with pytest.raises(GemkitError, match="less than one batch"):
        loader(data, batch_size=100_000, drop_last=True)


def test_unknown_split(data):
    with pytest.raises(GemkitError, match="unknown split 'tests'"):
        loader(data, split="tests")


def loader_threads():
    return [t for t in threading.enumerate() if t.name == "gemkit-loader"]


def test_errors_of_the_thread_reach_the_consumer(data):
    def layout(lengths):
        raise ValueError("no layout")

    with pytest.raises(ValueError, match="no layout"):
        list(loader(data, layout=layout).epoch(0))
    assert not loader_threads()


def test_the_thread_ends_when_the_iterator_is_dropped(data):
    batches = loader(data).epoch(0)
    next(batches)
    assert loader_threads()
    batches.close()
    assert not loader_threads()


def test_batches_are_made_ahead(data):
    made = []
    batches = loader(data, layout=lambda lengths: made.append(1), prefetch=3).epoch(0)
    next(batches)
    deadline = time.monotonic() + 5
    while len(made) < 4 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert len(made) >= 4
    batches.close()
