"""The loader: which examples come when, who gets them, and who makes the batches."""

from __future__ import annotations

import itertools
import multiprocessing
import os
import signal
import threading
import time
import tracemalloc
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

import gemkit.data.loader
from gemkit.config.run import LoaderConfig
from gemkit.data import order, storage, workers
from gemkit.data.balance import deal, piece_starts
from gemkit.data.batch import Batch, History
from gemkit.data.collate import Reading, plain_layout
from gemkit.data.dataset import Dataset
from gemkit.data.loader import Loader, keys_of, pinned
from gemkit.data.order import Order, Places, ShuffledOrder, StoredOrder, TimeOrder
from gemkit.data.shards import located
from gemkit.data.source import SPLITS
from gemkit.errors import GemkitError
from gemkit.registry import load_registry
from gemkit.runs.clock import Clock
from gemkit.runs.folder import RunFolder
from gemkit.session import make_loader, to_device
from gemkit.testing.data import make_dataset
from gemkit.testing.runs import silent, tiny_run
from gemkit.train import Training, train

few = settings(max_examples=60, deadline=None)


class Split:
    """A split with nothing in it: rows in several shards, in groups of random sizes, some with gaps between shards."""

    def __init__(self, sizes: list[int], group_size: int, seed: int) -> None:
        rng = np.random.default_rng(seed)
        gaps = rng.integers(0, 5, len(sizes))
        self.ends = np.cumsum(np.array(sizes, np.int64) + gaps)
        self.starts = self.ends - sizes
        self.num_rows = int(self.ends[-1])
        self.keys = np.cumsum(rng.random(self.num_rows) < 1 / group_size)
        self.keys += np.cumsum(np.isin(np.arange(self.num_rows), self.starts))  # no group reaches over two shards
        self.times = rng.integers(0, 1 + self.num_rows // 2, self.num_rows) * 3600 + 1_700_000_000
        self.lengths = np.minimum(rng.lognormal(3, 1.5, self.keys[-1] + 1), 2048).astype(int)[self.keys]
        self.schema = SimpleNamespace(name="fake", has_events=True)
        self.asked: list[int] = []

    @property
    def rows(self) -> np.ndarray:
        return np.concatenate([np.arange(a, b) for a, b in zip(self.starts, self.ends, strict=True)])

    def places(self, _: str) -> Places:
        return Places.ranges(self.starts, self.ends)

    def history_keys(self, rows: np.ndarray) -> np.ndarray:
        self.asked.append(len(rows))
        return self.keys[rows]

    def history_lengths(self, rows: np.ndarray, max_history: int) -> np.ndarray:
        return np.minimum(self.lengths[rows], max_history)

    def order(self, kind: str, buffer: int, seed: int = 1) -> Order:
        places = self.places("train")
        if kind == "time":
            return TimeOrder(places, lambda _, rows: self.times[rows], buffer=buffer)
        if kind == "stored":
            return StoredOrder(places)
        return ShuffledOrder(places, None if kind == "none" else self.history_keys, seed=seed, buffer=buffer)


splits = st.builds(
    Split,
    st.lists(st.integers(0, 60), min_size=1, max_size=5).filter(sum),
    st.integers(1, 6),
    st.integers(0, 1000),
)
kinds = st.sampled_from(["history", "none", "time", "stored"])
buffers = st.integers(1, 400)


# --- order --------------------------------------------------------------------------------------------------


@few
@given(splits, kinds, buffers, st.integers(0, 5), st.lists(st.integers(0, 300), max_size=6))
def test_every_order_reads_every_example_once_and_goes_on_anywhere(
    split: Split, kind: str, buffer: int, epoch: int, cuts: list[int]
) -> None:
    size = len(split.rows)
    whole = split.order(kind, buffer).rows(epoch, 0, size)
    assert sorted(whole.tolist()) == split.rows.tolist()
    cuts = sorted({0, size, *(cut % size for cut in cuts)})
    pieces = [split.order(kind, buffer).rows(epoch, a, b) for a, b in itertools.pairwise(cuts)]
    assert np.concatenate(pieces).tolist() == whole.tolist()


@few
@given(splits, buffers, st.integers(0, 5))
def test_groups_stay_together_inside_a_buffer(split: Split, buffer: int, epoch: int) -> None:
    shuffled = split.order("history", buffer)
    assert isinstance(shuffled, ShuffledOrder)
    bounds = shuffled.bounds(epoch)
    parted = 0
    for start, end in itertools.pairwise(bounds):
        assert 0 < end - start <= buffer
        keys = split.keys[shuffled.rows(epoch, start, end)]
        runs = keys[np.flatnonzero(np.diff(keys, prepend=-1))]
        assert len(set(runs.tolist())) == len(runs)
        parted += len(runs)
    blocks = -(-len(split.rows) // max(1, buffer // order.BLOCKS))
    assert parted - len(set(split.keys[split.rows].tolist())) < (blocks if len(bounds) > 2 else 1)


@few
@given(splits, st.integers(0, 50), st.integers(0, 2**32 - 1), st.integers(0, 5))
def test_a_buffer_that_holds_all_permutes_all_groups(split: Split, more: int, seed: int, epoch: int) -> None:
    rows = split.rows
    starts = np.flatnonzero(np.diff(split.keys[rows], prepend=-1))
    groups = np.split(rows, starts[1:])
    wanted = [groups[g] for g in np.random.default_rng([seed, epoch]).permutation(len(groups))]
    got = split.order("history", len(rows) + more, seed).rows(epoch, 0, len(rows))
    assert got.tolist() == np.concatenate(wanted).tolist()


@few
@given(splits, buffers, st.integers(1, 40), st.integers(1, 100))
def test_time_order_is_sorted_and_stable(split: Split, buffer: int, chunk: int, bins: int) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(order, "CHUNK", chunk)
        patch.setattr(order, "BINS", bins)
        got = split.order("time", buffer).rows(0, 0, len(split.rows))
    assert got.tolist() == split.rows[np.argsort(split.times[split.rows], kind="stable")].tolist()


def test_seed_epoch_and_buffer_decide_the_order() -> None:
    split = Split([500, 400], 2, 0)
    for buffer in (50, 1000):
        first, again, other, later = (
            split.order("history", buffer, seed).rows(epoch, 0, 900).tolist()
            for seed, epoch in ((1, 0), (1, 0), (2, 0), (1, 1))
        )
        assert first == again and first != other and first != later
    assert split.order("history", 50).rows(0, 0, 900).tolist() != split.order("history", 1000).rows(0, 0, 900).tolist()


def test_a_small_buffer_mixes_distant_examples() -> None:
    rows = Split([100_000], 1, 0).order("history", 6400).rows(0, 0, 6400)
    # A sample of the split without order would have mean n / 2 with this standard deviation for 64 blocks.
    assert abs(rows.mean() - 50_000) < 4 * 100_000 / np.sqrt(12 * 64)
    assert abs(np.corrcoef(np.arange(6400), rows)[0, 1]) < 0.1


def test_a_thousand_million_examples_take_one_buffer() -> None:
    size, buffer, batch = 10**9, 10**5, 512
    asked: list[int] = []

    def keys(rows: np.ndarray) -> np.ndarray:
        asked.append(len(rows))
        return rows // 3

    tracemalloc.start()
    try:
        made = ShuffledOrder(Places.ranges(np.array([0]), np.array([size])), keys, seed=1, buffer=buffer)
        rows = made.rows(0, 10**6 * batch, (10**6 + 1) * batch)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert len(set(rows.tolist())) == batch and max(asked) <= buffer and len(asked) <= 2
    # 10 buffers, and what is held of the 64 * n / buffer blocks; the split itself would take 8 GB.
    assert peak < 8 * (10 * buffer + 6 * order.BLOCKS * size // buffer)


def test_time_order_holds_a_span(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(order, "CHUNK", 2**13)
    monkeypatch.setattr(order, "BINS", 2**12)
    size = 2**20
    scattered = TimeOrder(
        Places.ranges(np.array([0]), np.array([size])), lambda _, rows: rows * 7919 % size, buffer=2**13
    )
    tracemalloc.start()
    try:
        rows = scattered.rows(0, 700_000, 700_512)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert (rows * 7919 % size).tolist() == list(range(700_000, 700_512))
    assert peak < size  # bytes; its order alone would take 8 * size


# --- ranks and balance --------------------------------------------------------------------------------------


def rows_loader(split: Split, **changes: Any) -> Loader:
    """A loader whose batches are the rows themselves."""
    options = {"batch_size": 16, "seed": 1, "config": LoaderConfig(workers=0)} | changes
    return Loader(split, "train", **options)  # type: ignore[arg-type]


@pytest.fixture(autouse=True)
def _rows_as_batches(monkeypatch: pytest.MonkeyPatch) -> None:
    real = gemkit.data.loader.collate
    monkeypatch.setattr(
        gemkit.data.loader,
        "collate",
        lambda data, rows, *more: rows if isinstance(data, Split) else real(data, rows, *more),
    )


@few
@given(
    splits,
    buffers,
    st.integers(1, 5),
    st.integers(1, 40),
    st.booleans(),
    st.booleans(),
    st.sampled_from([0, 2]),
    st.integers(0, 20),
)
def test_ranks_share_the_same_global_batches(
    split: Split, buffer: int, world_size: int, size: int, balance: bool, drop_last: bool, threads: int, start: int
) -> None:
    if drop_last and len(split.rows) < size:
        return
    config = LoaderConfig(workers=threads, shuffle_buffer=buffer, balance=balance)
    options: dict[str, Any] = {"batch_size": size, "config": config, "drop_last": drop_last}
    whole = list(rows_loader(split, **options).epoch(3))
    ranks = [rows_loader(split, rank=r, world_size=world_size, **options) for r in range(world_size)]
    assert {len(r) for r in ranks} == {len(whole)}
    start %= len(whole)
    for shares, batch in zip(zip(*(r.epoch(3, start) for r in ranks), strict=True), whole[start:], strict=True):
        assert sorted(np.concatenate(shares).tolist()) == sorted(batch.tolist())
        assert [len(s) for s in shares] == [len(s) for s in np.array_split(batch, world_size)]
    read = np.concatenate(whole)
    assert len(set(read.tolist())) == len(read) == (len(whole) * size if drop_last else len(split.rows))


@few
@given(st.integers(0, 300), st.integers(1, 9), st.integers(1, 8), st.integers(0, 1000), st.booleans())
def test_balancing_deals_every_example_once(size: int, ranks: int, group: int, seed: int, heavy: bool) -> None:
    rng = np.random.default_rng(seed)
    keys = np.cumsum(rng.random(size) < 1 / group)
    lengths = np.minimum(rng.lognormal(5, 1.5, size + 1), 2048).astype(int)[keys] if heavy else np.zeros(size, int)
    shares = deal(lengths, ranks, keys)
    assert sorted(np.concatenate(shares).tolist()) == list(range(size))
    assert [len(s) for s in shares] == [len(s) for s in np.array_split(np.arange(size), ranks)]
    assert all((np.diff(s) > 0).all() for s in shares)
    # Parting a group fills a rank, and the last piece fits.
    parted = sum(len({int(k) for k in keys[s]}) for s in shares) - len(set(keys.tolist()))
    assert parted <= ranks - 1
    deal_of_each = deal(lengths, ranks)
    assert sorted(np.concatenate(deal_of_each).tolist()) == list(range(size))


def test_balancing_evens_out_the_ranks() -> None:
    rng = np.random.default_rng(0)
    for group in (1, 4):
        before, after = [], []
        for _ in range(20):
            keys = np.arange(8 * 256) // group
            lengths = np.minimum(rng.lognormal(5.4, 1.16, len(keys)), 2048).astype(np.int64)[keys]
            counted = np.where(np.diff(keys, prepend=-1) > 0, lengths, 0)
            for ratios, shares in (
                (before, np.array_split(np.arange(len(keys)), 8)),
                (after, deal(lengths, 8, keys)),
            ):
                tokens = [counted[s].sum() for s in shares]
                ratios.append(max(tokens) / np.mean(tokens))
        assert np.mean(before) > 1.05 and np.mean(after) < 1.01


def test_a_group_goes_where_there_is_room_for_all_of_it() -> None:
    lengths, keys = np.array([100, 10, 10, 1, 1, 0]), np.array([0, 1, 2, 3, 3, 4])
    # When the group comes, the second rank is lighter, and has room for one more.
    assert [s.tolist() for s in deal(lengths, 2, keys)] == [[0, 3, 4], [1, 2, 5]]


def test_pieces_are_whole_groups() -> None:
    first = np.random.default_rng(0).random(100_000) < 0.5
    first[0] = True
    starts = piece_starts(first, 8)
    assert first[starts].all() and starts[0] == 0
    assert 8 * 60 < len(starts) <= 8 * 128 + 1


def test_balanced_ranks_have_equal_tokens() -> None:
    split = Split([4000], 2, 0)
    ratios = []
    for balance in (False, True):
        config = LoaderConfig(workers=0, balance=balance)
        options = {"batch_size": 1000, "world_size": 4, "config": config, "reading": Reading(max_history=4096)}
        ranks = [rows_loader(split, rank=r, **options) for r in range(4)]
        shares = [next(r.epoch(0)) for r in ranks]
        tokens = [split.lengths[s[np.diff(split.keys[s], prepend=-1) != 0]].sum() for s in shares]
        ratios.append(max(tokens) / np.mean(tokens))
    assert ratios[1] < 1.02 < ratios[0]


# --- workers ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("data") / "d", num_users=12)


def loader(data: Dataset, **config: Any) -> Loader:
    reading = Reading(max_history=50, layout=planned)
    return Loader(data, "train", batch_size=64, seed=1, reading=reading, config=LoaderConfig(**config))


def planned(lengths: np.ndarray, stream: np.ndarray) -> Any:
    return plain_layout(lengths)._replace(plan=(torch.from_numpy(lengths), len(lengths)))


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a.nan_to_num(7.5), b.nan_to_num(7.5))
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    return len(a) == len(b) and all(map(same, a, b)) if isinstance(a, tuple) else bool(a == b)


def threads() -> list[threading.Thread]:
    return [t for t in threading.enumerate() if t.name.startswith(workers.THREADS)]


@pytest.mark.parametrize(("kind", "number"), [("thread", 1), ("thread", 3), ("process", 1), ("process", 2)])
def test_workers_make_the_same_batches(data: Dataset, kind: str, number: int) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    wanted = list(loader(data, workers=0, shuffle_buffer=100).epoch(2))
    got = list(loader(data, workers=number, worker_kind=kind, prefetch=3, shuffle_buffer=100).epoch(2))
    assert same(tuple(got), tuple(wanted)) and len(got) > 5
    rest = list(loader(data, workers=number, worker_kind=kind, shuffle_buffer=100).epoch(2, 4))
    assert same(tuple(rest), tuple(wanted[4:]))
    assert torch.equal(torch.get_rng_state(), before), "dropout would depend on the workers"
    assert not threads() and not multiprocessing.active_children()


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_closing_early_leaves_nothing_behind(data: Dataset, kind: str) -> None:
    batches = loader(data, workers=2, worker_kind=kind).epoch(0)
    next(batches)
    assert threads() and len(multiprocessing.active_children()) == (2 if kind == "process" else 0)
    batches.close()  # type: ignore[attr-defined]
    assert not threads() and not multiprocessing.active_children()


class Failing:
    """Pickled into worker processes."""

    def __init__(self, error: BaseException | None) -> None:
        self.error = error

    def __getitem__(self, number: int) -> int:
        if number == 3:
            if self.error is None:
                os.kill(os.getpid(), signal.SIGKILL)
            else:
                raise self.error
        return number


PROBLEM = GemkitError("a broken row", where="row 3", fix="mend it")


def test_errors_of_threads_reach_the_consumer() -> None:
    got = []
    with pytest.raises(GemkitError, match="a broken row"):
        got.extend(workers.in_threads(Failing(PROBLEM).__getitem__, range(9), 2, 2))
    assert not threads()


@pytest.mark.parametrize(
    ("error", "kind", "text"),
    [
        (PROBLEM, GemkitError, r"^a broken row\n  where:   row 3\n  fix:     mend it$"),
        (ValueError("a defect"), ValueError, r"(?s)worker process.*__getitem__.*a defect"),
        (None, GemkitError, "worker process of the loader was killed"),
    ],
)
def test_errors_of_processes_reach_the_consumer(error: Any, kind: type[Exception], text: str) -> None:
    got = []
    with pytest.raises(kind, match=text):
        for number in workers.in_processes(Failing(error), lambda number: number * 10, range(9), 2, 2):
            got.append(number)
    assert got == ([0, 10, 20] if error else got) and got == [0, 10, 20][: len(got)]
    assert not threads() and not multiprocessing.active_children()


def test_nobody_asks_again_for_the_batches_of_a_dead_worker(monkeypatch: pytest.MonkeyPatch) -> None:
    """PyTorch's loader says once that a worker is dead; who asks again may wait for ever."""
    asked = []

    class Dead:
        def __init__(self, *_: Any, **__: Any) -> None: ...

        def __iter__(self) -> Dead:
            return self

        def __next__(self) -> int:
            asked.append(time.sleep(0.01))
            raise RuntimeError("DataLoader worker (pid 1) exited unexpectedly")

        def _shutdown_workers(self) -> None: ...

    monkeypatch.setattr(torch.utils.data, "DataLoader", Dead)
    make = workers.in_processes(Failing(None), lambda number: number, range(30), 1, 20)
    with pytest.raises(GemkitError, match="worker process of the loader was killed"):
        list(make)
    assert len(asked) == 1


def test_worker_processes_outlive_ctrl_c(data: Dataset) -> None:
    batches = loader(data, workers=1, worker_kind="process", prefetch=1).epoch(0)
    got = [next(batches)]
    for child in multiprocessing.active_children():
        for number in (signal.SIGINT, signal.SIGTERM):
            os.kill(child.pid, number)
    got += batches
    assert len(got) == len(loader(data))


def test_a_worker_refuses_another_data_set(data: Dataset, tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "d", num_users=12, seed=1)
    other.folder = data.folder  # as if it had been built again since
    with pytest.raises(GemkitError, match="another data set than the one in use"):
        list(loader(other, workers=1, worker_kind="process").epoch(0))


@pytest.mark.parametrize(("prefetch", "wanted"), [(1, 2), (4, 5)])
def test_batches_are_made_ahead(prefetch: int, wanted: int) -> None:
    made: list[int] = []

    def make(number: int) -> int:
        made.append(number)
        return number

    batches = workers.in_threads(make, range(20), 1, prefetch)
    next(batches)
    deadline = time.monotonic() + 5
    while len(made) < wanted + 1 and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(0.05)
    assert len(made) == wanted + 1
    batches.close()  # type: ignore[attr-defined]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, RunFolder]:
    """A run without workers, and the folder of its data set."""
    folder = tmp_path_factory.mktemp("train")
    return folder, trained_with(folder, "loader.workers=0", f"runs={folder / 'none'}")


def trained_with(folder: Path, *overrides: str, resume: Path | None = None) -> RunFolder:
    common = ("train.max_steps=10", "train.epochs=2", "train.checkpoint_every=3", "tokenizer.dropout=0.1")
    run = tiny_run(folder, *common, *overrides)
    metrics = train(run, load_registry(), resume, progress=silent())
    assert 0 < metrics["train"]["data_wait"] < 1
    return RunFolder.open(resume or next(Path(run.runs).iterdir()))


def outcome(folder: RunFolder) -> tuple[list[float], Any]:
    return [row["loss"] for row in folder.rows() if row["split"] == "train"], folder.metrics()["test"]


@pytest.mark.parametrize("kind", ["thread", "process"])
def test_training_does_not_depend_on_workers(trained: tuple[Path, RunFolder], tmp_path: Path, kind: str) -> None:
    words = ("loader.workers=2", f"loader.worker_kind={kind}", f"runs={tmp_path}")
    losses, test = outcome(trained_with(trained[0], *words))
    assert (losses, test) == outcome(trained[1]) and len(losses) == 10
    assert not threads() and not multiprocessing.active_children()


def test_training_goes_on_with_other_workers(
    trained: tuple[Path, RunFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Training.step

    def interrupted(self: Training, batches: list[Batch]) -> Any:
        if self.state.step == 5:  # in the middle of an epoch, and not at a checkpoint
            raise KeyboardInterrupt
        return step(self, batches)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(Training, "step", interrupted)
        trained_with(trained[0], "loader.workers=2", f"runs={tmp_path}")
    (folder,) = tmp_path.iterdir()
    again = trained_with(
        trained[0], "loader.workers=1", "loader.worker_kind=process", "loader.prefetch=3", f"runs={tmp_path}",
        resume=folder,
    )  # fmt: skip
    assert outcome(again) == outcome(trained[1])
    with pytest.raises(GemkitError, match="shuffle_buffer"):
        trained_with(trained[0], "loader.shuffle_buffer=5", f"runs={tmp_path}", resume=folder)


# --- real data ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("buffer", [100, 10_000])
def test_an_epoch_reads_every_example_once(data: Dataset, buffer: int) -> None:
    for kind in ("shuffled", "time", "stored"):
        batches = loader(data, order=kind, shuffle_buffer=buffer)
        sizes = [b.size for b in batches.epoch(0)]
        found = torch.cat([b.example_id for b in batches.epoch(0)]).numpy()
        assert sorted(found) == sorted(data.columns[storage.EXAMPLE_ID][data.split("train")])
        assert len(sizes) == len(batches) == -(-len(found) // 64) and set(sizes[:-1]) == {64}


def test_shuffling_keeps_shared_histories_together(data: Dataset) -> None:
    batches = loader(data)
    keys = np.concatenate([data.history_keys(batches.global_rows(0, n)) for n in range(len(batches))])
    assert np.count_nonzero(np.diff(keys)) + 1 == len(set(keys.tolist())) < len(keys)


def test_a_split_smaller_than_a_batch_is_an_error_only_with_drop_last(data: Dataset) -> None:
    assert len(Loader(data, "train", batch_size=100_000)) == 1
    with pytest.raises(GemkitError, match="less than one batch"):
        Loader(data, "train", batch_size=100_000, drop_last=True)


def test_only_train_is_shuffled_and_read_by_processes(data: Dataset, tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "loader.order=time", "loader.worker_kind=process", "loader.workers=3")
    model = SimpleNamespace(dense=SimpleNamespace(reads_events=True, shares_histories=True, layout=planned))
    backend = FakeBackend("cpu", [])
    configs = {s: make_loader(run, data, model, backend, s, 8).config for s in SPLITS}  # type: ignore[arg-type]
    assert configs["train"] == run.loader
    assert {(configs[s].order, configs[s].worker_kind, configs[s].workers) for s in ("valid", "test")} == {
        ("stored", "thread", 3)
    }


def test_unknown_split(data: Dataset) -> None:
    with pytest.raises(GemkitError, match="unknown split 'tests'"):
        Loader(data, "tests", batch_size=1)


def test_one_pass_in_time_order(data: Dataset) -> None:
    got = torch.cat([b.timestamp for b in loader(data, order="time", shuffle_buffer=70).epoch(0)])
    assert torch.equal(got, got.sort().values) and got[0] < got[-1]
    assert len(got) == len(data.split("train"))


def test_users_can_be_kept_together(data: Dataset) -> None:
    users = torch.cat([b.ids["user_id"] for b in loader(data, group="user").epoch(0)])
    runs = int((users.diff() != 0).sum()) + 1
    assert runs == len(users.unique()) < len(users) / 5


def test_users_of_different_shards_are_different() -> None:
    shards = [SimpleNamespace(examples=SimpleNamespace(columns={storage.USER: np.array(u)})) for u in ([0, 0, 1], [1])]
    data = SimpleNamespace(
        columns={storage.USER: None}, shards=shards, located=lambda rows: located(rows, np.array([0, 3, 4]))
    )
    keys = keys_of(data, "user")  # type: ignore[arg-type]
    assert keys is not None and len(set(keys(np.array([0, 2, 3])).tolist())) == 3


def test_no_groups(data: Dataset) -> None:
    for group, apart in (("history", False), ("none", True)):
        keys = np.concatenate([data.history_keys(loader(data, group=group).global_rows(0, n)) for n in range(5)])
        runs = np.count_nonzero(np.diff(keys)) + 1
        assert (runs > len(set(keys.tolist()))) == apart


def test_orders_that_the_data_cannot_give(data: Dataset, tmp_path: Path) -> None:
    plain = make_dataset(tmp_path / "d", with_events=False)
    with pytest.raises(GemkitError, match="does not say whose"):
        loader(plain, group="user")
    plain.manifest["columns"]["timestamp"] = None
    with pytest.raises(GemkitError, match="has no timestamps"):
        loader(plain, order="time")


# --- device and clock ---------------------------------------------------------------------------------------


class FakeStream:
    """Writes down what it is asked for."""

    def __init__(self, name: str, calls: list[str]) -> None:
        self.name, self.calls = name, calls

    def record_event(self) -> str:
        self.calls.append(f"{self.name} records")
        return f"event {sum('records' in c for c in self.calls)}"

    def wait_event(self, event: str) -> None:
        self.calls.append(f"{self.name} waits for {event}")


class FakeBackend:
    def __init__(self, device: str, calls: list[str]) -> None:
        self.fabric = SimpleNamespace(device=torch.device(device), to_device=self.moved)
        self.rank, self.world_size = 0, 1
        self.calls = calls

    def moved(self, batch: Any) -> Any:
        self.calls.append(f"copy {int(batch[0])}")
        return batch


def test_on_a_cpu_batches_come_one_by_one() -> None:
    calls: list[str] = []
    for batch in to_device(iter([torch.tensor([i]) for i in range(3)]), FakeBackend("cpu", calls)):  # type: ignore[arg-type]
        calls.append(f"use {int(batch[0])}")
    assert calls == ["copy 0", "use 0", "copy 1", "use 1", "copy 2", "use 2"]


def test_on_a_gpu_the_next_copy_is_under_way_before_a_batch_is_used(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    copies, main = FakeStream("copies", calls), FakeStream("main", calls)
    monkeypatch.setattr(torch.cuda, "Stream", lambda device: copies)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda: main)
    monkeypatch.setattr(torch.cuda, "stream", lambda stream: pytest.MonkeyPatch.context())
    monkeypatch.setattr(
        torch.Tensor, "record_stream", lambda self, stream: calls.append(f"{int(self[0])} belongs to {stream.name} too")
    )
    backend = FakeBackend("cuda", calls)
    for batch in to_device(iter([(torch.tensor([i]), None) for i in range(3)]), backend):  # type: ignore[arg-type]
        calls.append(f"use {int(batch[0])}")
    assert calls == [
        *("copy 0", "copies records", "copy 1", "copies records"),
        *("main waits for event 1", "0 belongs to main too", "use 0"),
        *("copy 2", "copies records"),
        *("main waits for event 2", "1 belongs to main too", "use 1"),
        *("main waits for event 3", "2 belongs to main too", "use 2"),
    ]


def test_pinning_reaches_every_tensor(data: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    monkeypatch.setattr(torch.Tensor, "pin_memory", lambda self: seen.append(self.data_ptr()) or self.clone())
    batch = next(loader(data, workers=0).epoch(0))
    copy = pinned(batch)
    assert same(copy, batch) and isinstance(copy, Batch) and isinstance(copy.history, History)
    assert batch.history.layout.plan[0].data_ptr() in seen and batch.ids["item_id"].data_ptr() in seen
    assert len(seen) == len([t for t in torch.utils._pytree.tree_leaves(batch) if isinstance(t, torch.Tensor)])


def test_the_clock_counts_waiting(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(time, "perf_counter", lambda: now[0])

    def slow() -> Any:
        for i in range(4):
            now[0] += 3.0
            yield i + 1

    clock = Clock(before_s=10.0, examples=0, wait_s=5.0)
    for number in clock.waits(slow()):
        now[0] += 1.0
        with clock.paused():
            now[0] += 100.0
        if number == 2:
            assert clock.lap(80) == {"examples_per_s": 10.0, "data_wait": 0.75}
    assert clock.wait_s == 17.0 and clock.seconds() == 26.0
    assert clock.lap(160)["data_wait"] == 0.75
