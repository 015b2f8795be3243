"""Batches of a split: shuffled by (seed, epoch), shared out over ranks, made ahead in a thread."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator

import numpy as np

from gemkit.data import storage
from gemkit.data.batch import Batch
from gemkit.data.collate import MakeLayout, collate, plain_layout, ranges
from gemkit.data.dataset import Dataset
from gemkit.errors import GemkitError


class Loader:
    """Batches of one split of a data set.

    A *global* batch of `batch_size * world_size` examples is cut from the epoch's order first and then divided
    among the ranks in contiguous shares that differ by at most one example. So every example is read exactly once,
    by one rank, the order does not depend on the number of ranks, and all ranks have equally many batches. (The last
    global batch may be smaller than the number of ranks; some ranks then get a batch of no examples. `drop_last`
    leaves an incomplete global batch out.)

    Shuffling moves the examples of one user at one time together, since they share a history: with
    `shares_histories` a batch of MovieLens-1M then encodes half as many histories. Without shuffling, examples come in
    order of user and time.

    Args:
        batch_size: Examples in each batch of *this rank*.
        max_history, read_events, shares_histories, layout: As for `collate`.
        rank, world_size: This process's share, `rank` of `world_size`.
        prefetch: Batches made ahead in a thread; 0: none, and no thread.
    """

    def __init__(
        self,
        dataset: Dataset,
        split: str,
        *,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = False,
        max_history: int = 100,
        read_events: bool = True,
        shares_histories: bool = True,
        layout: MakeLayout = plain_layout,
        rank: int = 0,
        world_size: int = 1,
        drop_last: bool = False,
        prefetch: int = 2,
    ) -> None:
        self.dataset = dataset
        self.seed = seed
        self.shuffle = shuffle
        self.max_history = max_history
        self.read_events = read_events
        self.shares_histories = shares_histories
        self.layout = layout
        self.rank = rank
        self.world_size = world_size
        self.prefetch = prefetch
        self.global_batch_size = batch_size * world_size
        rows = dataset.split(split)
        histories = dataset.columns[storage.HISTORY][rows]
        order = np.argsort(histories, kind="stable")
        self._rows = rows[order]
        """Rows of the split; examples that share a history stand together."""
        self._starts = np.flatnonzero(np.diff(histories[order], prepend=-1))
        """Where each group of such examples begins."""
        self._num_batches = len(rows) // self.global_batch_size
        if not drop_last and len(rows) % self.global_batch_size:
            self._num_batches += 1
        if self._num_batches == 0:
            raise GemkitError(
                f"the {split} split has {len(rows)} examples, less than one batch of {self.global_batch_size}",
                where="batch_size",
                fix="make the batch smaller",
            )

    def __len__(self) -> int:
        """Batches in an epoch, the same on all ranks."""
        return self._num_batches

    def epoch(self, epoch: int, start: int = 0) -> Iterator[Batch]:
        """The batches of an epoch, from batch `start` on. The same (seed, epoch) gives the same batches."""
        shares = self._shares(epoch, start)
        batches = (self._collate(rows) for rows in shares)
        return _ahead(batches, self.prefetch) if self.prefetch else batches

    def order(self, epoch: int) -> np.ndarray:
        """Rows of all ranks in the order in which an epoch reads them. Shape: (examples of the split,)."""
        if not self.shuffle:
            return self._rows
        ends = np.append(self._starts[1:], len(self._rows))
        groups = np.random.default_rng([self.seed, epoch]).permutation(len(self._starts))
        rows: np.ndarray = self._rows[ranges(self._starts[groups], ends[groups])[0]]
        return rows

    def _shares(self, epoch: int, start: int) -> Iterator[np.ndarray]:
        order = self.order(epoch)
        for i in range(start, len(self)):
            rows = order[i * self.global_batch_size : (i + 1) * self.global_batch_size]
            yield np.array_split(rows, self.world_size)[self.rank]

    def _collate(self, rows: np.ndarray) -> Batch:
        return collate(
            self.dataset,
            rows,
            max_history=self.max_history,
            read_events=self.read_events,
            shares_histories=self.shares_histories,
            layout=self.layout,
        )


def _ahead(batches: Iterator[Batch], depth: int) -> Iterator[Batch]:
    """Runs `batches` in a thread, `depth` ahead. Its exceptions are raised here; it ends when this iterator does."""
    ready: queue.Queue[Batch | BaseException | None] = queue.Queue(depth)
    stopped = threading.Event()

    def put(item: Batch | BaseException | None) -> bool:
        while not stopped.is_set():
            try:
                ready.put(item, timeout=0.1)
                return True
            except queue.Full:
                continue
        return False

    def work() -> None:
        try:
            for batch in batches:
                if not put(batch):
                    return
            put(None)
        except BaseException as error:  # handed to the consumer, whatever it is
            put(error)

    thread = threading.Thread(target=work, name="gemkit-loader", daemon=True)
    thread.start()
    try:
        while (item := ready.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stopped.set()
        thread.join()
