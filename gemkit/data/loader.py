"""Batches of a split: in which order, shared out over ranks, made ahead by workers."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
from torch import Tensor
from torch.utils._pytree import tree_map_only

from gemkit.config.run import LoaderConfig
from gemkit.data import storage
from gemkit.data.arrays import offsets_of
from gemkit.data.balance import deal
from gemkit.data.batch import Batch, Layout
from gemkit.data.collate import Reading, collate
from gemkit.data.dataset import Dataset
from gemkit.data.order import Keys, Order, Places, ShuffledOrder, StoredOrder, TimeOrder, Times
from gemkit.data.selection import Selection
from gemkit.data.workers import in_processes, in_threads
from gemkit.errors import GemkitError


class Loader:
    """Batches of one split of a data set.

    A *global* batch of `batch_size` examples is cut from the epoch's order first and then divided among the ranks, in
    contiguous shares that differ by at most one example, or balanced. So every example is read exactly once, by one
    rank; the global batches do not depend on the number of ranks or of workers; and all ranks have equally many. (The
    last global batch may be smaller than the number of ranks; some ranks then get a batch of no examples. `drop_last`
    leaves an incomplete global batch out.)

    Args:
        reading: How much of the data set a batch holds.
        batch_size: Examples in a batch of all ranks together.
        rank, world_size: This process's share, `rank` of `world_size`.
        config: Order, balance and workers.
        pin_memory: Put batches where a GPU can copy them from while it computes. Needs CUDA.

    Raises:
        GemkitError: There are no batches, or the data set lacks what the order needs.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        batch_size: int,
        reading: Reading | None = None,
        seed: int = 0,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        config: LoaderConfig | None = None,
        pin_memory: bool = False,
    ) -> None:
        self.dataset = dataset
        self.split = split
        self.batch_size = batch_size
        self.reading = reading or Reading()
        self.seed = seed
        self.rank = rank
        self.world_size = world_size
        self.config = config or LoaderConfig()
        self.pin_memory = pin_memory
        places = dataset.places(split)
        self._size = len(places)
        self._order = self._make_order(places)
        self._num_batches = self._size // batch_size
        if not drop_last and self._size % batch_size:
            self._num_batches += 1
        if self._num_batches == 0:
            raise GemkitError(
                f"the {split} split has {self._size} examples, less than one batch of {batch_size}",
                where="batch_size",
                fix="make the batch smaller",
            )

    def __len__(self) -> int:
        """Batches in an epoch, the same on all ranks."""
        return self._num_batches

    def num_examples(self, number: int) -> int:
        """Examples in global batch `number`, of all ranks together."""
        return min(self.batch_size, self._size - number * self.batch_size)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """This rank's batches of an epoch, from batch `start` on. The same (seed, epoch) gives the same batches."""
        numbers, config = range(start, len(self)), self.config
        make = functools.partial(self.batch, epoch)
        if config.workers == 0:
            return (make(number) for number in numbers)
        if config.worker_kind == "thread":
            return in_threads(make, numbers, config.workers, config.prefetch)
        return in_processes(self._remote(epoch), self._finish, numbers, config.workers, config.prefetch)

    def batch(self, epoch: int, number: int) -> Batch:
        """This rank's share of global batch `number` of an epoch."""
        rows = self.global_rows(epoch, number)
        own, whole = rows[self._shares(rows)[self.rank]], rows if self.world_size > 1 else None
        batch = collate(self.dataset, own, self.reading, whole, self.world_size)
        return pinned(batch) if self.pin_memory else batch

    def global_rows(self, epoch: int, number: int) -> np.ndarray:
        """Rows of the examples of a global batch. Shape: (batch_size,) or, at the end, less; int64."""
        start = number * self.batch_size
        return self._order.rows(epoch, start, min(start + self.batch_size, self._size))

    def _shares(self, rows: np.ndarray) -> list[np.ndarray]:
        """Positions of each rank's examples in a global batch."""
        if self.world_size == 1 or not (self.config.balance and self.reading.read_events):
            return np.array_split(np.arange(len(rows)), self.world_size)
        if not self.dataset.schema.has_events:
            return np.array_split(np.arange(len(rows)), self.world_size)
        # Of each stream the window is known, and not how much of it is filled: the sum of windows stands in.
        window = sum(s.max_history for s in self.reading.streams) or self.reading.max_history
        keys = self.dataset.history_keys(rows) if self.reading.shares_histories else None
        return deal(self.dataset.history_lengths(rows, window), self.world_size, keys)

    def _make_order(self, places: Places) -> Order:
        config = self.config
        if config.order == "stored":
            return StoredOrder(places)
        if config.order == "time":
            if not self.dataset.manifest["columns"]["timestamp"]:
                raise GemkitError(
                    f"data set {self.dataset.schema.name!r} has no timestamps",
                    where="loader.order",
                    allowed="shuffled, stored",
                )
            return TimeOrder(places, times_of(self.dataset), buffer=config.shuffle_buffer)
        return ShuffledOrder(places, keys_of(self.dataset, config.group), seed=self.seed, buffer=config.shuffle_buffer)

    def _remote(self, epoch: int) -> RemoteLoader:
        rest: dict[str, Any] = {
            **{"split": self.split, "batch_size": self.batch_size, "seed": self.seed},
            **{"rank": self.rank, "world_size": self.world_size, "config": self.config},
            # A model plans with `layout`; it stays here, and `_finish` asks it.
            "reading": dataclasses.replace(self.reading, layout=_later),
        }
        data = self.dataset
        return RemoteLoader(data.folder, data.fingerprint, data.num_examples, data.selection, epoch, rest)

    def _finish(self, batch: Batch) -> Batch:
        """What a worker process leaves to do."""
        if batch.history is not None:
            history = batch.history
            layout = self.reading.layout(history.offsets.diff().numpy(), history.stream.numpy())
            batch = batch._replace(history=history._replace(layout=layout))
        return pinned(batch) if self.pin_memory else batch


class RemoteLoader:
    """Makes the batches of an epoch in a worker process, where it opens the data set at the first one.

    Args:
        fingerprint, num_examples: Of the data set that the training process has open.
        selection: What its splits have.
        rest: The other arguments of `Loader`.
    """

    def __init__(
        self,
        folder: Path,
        fingerprint: str,
        num_examples: int,
        selection: Selection,
        epoch: int,
        rest: dict[str, Any],
    ) -> None:
        self.folder, self.fingerprint, self.num_examples = folder, fingerprint, num_examples
        self.selection = selection
        self.epoch, self.rest = epoch, rest
        self._loader: Loader | None = None

    def __getitem__(self, number: int) -> Batch:
        if self._loader is None:
            dataset = Dataset.open(self.folder)
            if (dataset.fingerprint, dataset.num_examples) != (self.fingerprint, self.num_examples):
                raise GemkitError(
                    "a worker process finds another data set than the one in use",
                    where=str(self.folder),
                    fix="leave the data set alone while it is read; for examples in no file, loader.worker_kind=thread",
                )
            self._loader = Loader(dataset.selected(self.selection), **self.rest)
        return self._loader.batch(self.epoch, number)


def pinned(batch: Batch) -> Batch:
    """The batch in page-locked memory, which a GPU reads by itself."""
    return cast(Batch, tree_map_only(Tensor, Tensor.pin_memory, batch))


def keys_of(dataset: Dataset, group: str) -> Keys | None:
    """Which neighbours are shuffled as one: see `LoaderConfig.group`.

    Raises:
        GemkitError: Grouped by user, of whom the data set says nothing.
    """
    if group == "none":
        return None
    if group == "history":
        return dataset.history_keys
    if storage.USER not in dataset.columns:
        raise GemkitError(
            f"data set {dataset.schema.name!r} does not say whose an example is",
            where="loader.group",
            allowed="none, history",
            fix="declare a user column and events",
        )

    def users(rows: np.ndarray) -> np.ndarray:
        keys = np.empty(len(rows), np.int64)
        for part in dataset.located(rows):
            keys[part.where] = (part.shard << 32) + dataset.shards[part.shard].examples.columns[storage.USER][part.rows]
        return keys

    return users


def times_of(dataset: Dataset) -> Times:
    """The timestamps of examples, straight from the mapped file."""
    bases = offsets_of(np.array([s.examples.num_rows for s in dataset.shards])).tolist()

    def times(shard: int, rows: np.ndarray) -> np.ndarray:
        found: np.ndarray = dataset.shards[shard].examples.columns[storage.TIMESTAMP][rows - bases[shard]]
        return found

    return times


def _later(*_: np.ndarray) -> Layout:
    return cast(Layout, None)
