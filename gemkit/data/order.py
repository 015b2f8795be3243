"""Which examples of a split come when. Pure functions of (seed, epoch, position) that hold a bounded part of a split.

The examples of a split are counted from 0 to n - 1 over all shards, as they are stored: an example's *place*. An order
says which place comes at which *position* of an epoch.

    stored     [0 1 2 3 4 5 6 7 8 9 ...                         ]      position = place; nothing is held
    shuffled   blocks of consecutive places    [0..3] [4..7] [8..11] [12..15] [16..19] ...
               dealt to buffers by chance      [8..11] [16..19] | [0..3] [12..15] | ...
               each buffer shuffled            [17 8 10 19 ...]  | [13 2 0 ...]   | ...
    time       a buffer is a span of time, sorted; the spans follow each other

Whoever goes on at a position computes the buffer in which it lies, and nothing before it.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator

import numpy as np

from gemkit.data.arrays import offsets_of, ranges

BLOCKS = 64
"""Blocks in a buffer: the more, the better mixed; the fewer, the longer the pieces that are read from the files."""

BINS, CHUNK = 2**20, 2**20
"""Bins of time among which spans of time are chosen; examples whose times are looked at together."""

Keys = Callable[[np.ndarray], np.ndarray]
"""Rows (n,) -> a number for each (n,); neighbours of equal number are a group."""

Times = Callable[[int, np.ndarray], np.ndarray]
"""Shard, rows (n,) in it, counted over all shards -> their times (n,)."""


class Places:
    """The rows of a split by place: one range of rows in each shard, back to back, or chosen rows.

    Args:
        starts: (shards,) places at which the shards begin, and the end of the last: (shards+1,).
        first: (shards,) first row of each shard's range; unless `chosen`.
        chosen: The rows themselves, ascending.
    """

    def __init__(self, starts: np.ndarray, first: np.ndarray, chosen: np.ndarray | None = None) -> None:
        self._starts, self._first, self._chosen = starts.astype(np.int64), first.astype(np.int64), chosen

    @classmethod
    def ranges(cls, first: np.ndarray, last: np.ndarray) -> Places:
        """A range of rows in each shard. Shape: (shards,), (shards,), `last` excluded."""
        return cls(offsets_of(last - first), first)

    @classmethod
    def chosen(cls, rows: np.ndarray, bases: np.ndarray) -> Places:
        """Chosen rows, ascending, of shards that begin at `bases` (shards+1,)."""
        return cls(np.searchsorted(rows, bases), bases[:-1], rows)

    def __len__(self) -> int:
        return int(self._starts[-1])

    @property
    def num_shards(self) -> int:
        return len(self._starts) - 1

    def rows(self, places: np.ndarray) -> np.ndarray:
        """Shape: (n,) -> (n,) int64."""
        if self._chosen is not None:
            picked: np.ndarray = self._chosen[places]
            return picked
        shard = np.searchsorted(self._starts, places, side="right") - 1
        found: np.ndarray = places + (self._first - self._starts[:-1])[shard]
        return found

    def all(self) -> np.ndarray:
        """All rows, ascending. Shape: (len(self),) int64."""
        return self.rows(np.arange(len(self)))

    def chunks(self, shard: int) -> Iterator[np.ndarray]:
        """The rows of a shard, some at a time."""
        end = int(self._starts[shard + 1])
        for begin in range(int(self._starts[shard]), end, CHUNK):
            yield self.rows(np.arange(begin, min(begin + CHUNK, end)))


class Order(ABC):
    """The order of one split's examples, for a `Loader`."""

    @abstractmethod
    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        """Rows of the examples at these positions of an epoch. Shape: (stop - start,) int64."""


class StoredOrder(Order):
    """As the examples lie in the files: by shard, user, time."""

    def __init__(self, places: Places) -> None:
        self._places = places

    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        return self._places.rows(np.arange(start, stop))


class BufferedOrder(Order):
    """An order that is made buffer by buffer; the last two stay. Threads may share it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._buffers: dict[tuple[int, int], np.ndarray] = {}

    @abstractmethod
    def bounds(self, epoch: int) -> np.ndarray:
        """Positions at which buffers begin, and the end of the last. Shape: (buffers+1,) int64."""

    @abstractmethod
    def buffer(self, epoch: int, number: int) -> np.ndarray:
        """Rows of a buffer, in order. Shape: (bounds[number+1] - bounds[number],) int64."""

    def rows(self, epoch: int, start: int, stop: int) -> np.ndarray:
        parts = [np.zeros(0, np.int64)]
        with self._lock:
            bounds = self.bounds(epoch)
            first, last = np.searchsorted(bounds, (start, stop), side="right") - 1
            for number in range(first, min(last + 1, len(bounds) - 1)):
                begin = int(bounds[number])
                parts.append(self._held(epoch, number)[max(0, start - begin) : stop - begin])
        return np.concatenate(parts)

    def _held(self, epoch: int, number: int) -> np.ndarray:
        key = (epoch, number)
        if key not in self._buffers:
            while len(self._buffers) > 1:  # two, because threads work on both sides of a border
                del self._buffers[next(iter(self._buffers))]
            self._buffers[key] = self.buffer(epoch, number)
        return self._buffers[key]


class ShuffledOrder(BufferedOrder):
    """Shuffled by (seed, epoch), group by group, within a buffer of bounded size.

    The split is cut into blocks of consecutive places, `BLOCKS` to a buffer. Chance deals the blocks to buffers and
    shuffles the groups of each buffer. A group that a border between blocks cuts is two groups where its blocks come
    into different buffers; at most one group a block. A split that fits into one buffer has no such border: all its
    groups are permuted.

    Held are two buffers, and three numbers for each block of the split.

    Args:
        keys: Which neighbours are a group; None: every example is one.
        buffer: Examples in a buffer.
    """

    def __init__(self, places: Places, keys: Keys | None, *, seed: int, buffer: int) -> None:
        super().__init__()
        self._places, self._keys, self._seed = places, keys, seed
        self._block = max(1, buffer // BLOCKS)
        self._blocks_per_buffer = max(1, buffer // self._block)
        self._num_blocks = -(-len(places) // self._block)
        if len(places) <= buffer:
            self._blocks_per_buffer = max(1, self._num_blocks)
        self._dealt: tuple[int, np.ndarray, np.ndarray] | None = None

    def bounds(self, epoch: int) -> np.ndarray:
        return self._deal(epoch)[1]

    def buffer(self, epoch: int, number: int) -> np.ndarray:
        size = self._blocks_per_buffer
        # In stored order, so that neighbours which meet again are read, and grouped, together.
        blocks = np.sort(self._deal(epoch)[0][number * size : (number + 1) * size])
        ends = np.minimum((blocks + 1) * self._block, len(self._places))
        rows = self._places.rows(ranges(blocks * self._block, ends))
        # Buffer 0 of a split in one buffer takes the stream of (seed, epoch): a zero at the end changes nothing.
        rng = np.random.default_rng([self._seed, epoch, number])
        if self._keys is None:
            return rng.permutation(rows)
        keys = self._keys(rows)
        starts = np.flatnonzero(np.concatenate(([True], keys[1:] != keys[:-1])))
        groups = rng.permutation(len(starts))
        shuffled: np.ndarray = rows[ranges(starts[groups], np.append(starts[1:], len(rows))[groups])]
        return shuffled

    def _deal(self, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """The blocks as buffers take them, and where buffers begin."""
        if self._dealt is None or self._dealt[0] != epoch:
            rng = np.random.default_rng([self._seed, epoch, 0, 1])
            blocks = rng.permutation(self._num_blocks)
            sizes = np.full(self._num_blocks, self._block)
            sizes[-1:] = len(self._places) - (self._num_blocks - 1) * self._block
            first = np.arange(0, self._num_blocks, self._blocks_per_buffer)
            self._dealt = epoch, blocks, offsets_of(np.add.reduceat(sizes[blocks], first))
        return self._dealt[1:]


class TimeOrder(BufferedOrder):
    """By time, in every epoch; examples of one time as they are stored, so that a history's examples stay together.

    Two passes over the times, in chunks, find spans of time with at most a buffer of examples each. Each span then
    costs one more pass over the times of the shards that reach into it: a data set that grew by a segment a day pays
    for that day only. (A span is at least a `BINS`-th of the whole time, and has more examples than a buffer where
    more fall into that.)

    Args:
        buffer: Examples in a buffer.
    """

    def __init__(self, places: Places, times: Times, *, buffer: int) -> None:
        super().__init__()
        self._places, self._times, self._buffer = places, times, buffer
        self._spans: tuple[np.ndarray, np.ndarray] | None = None
        self._reach: list[tuple[int, int]]
        """Oldest and newest time of each shard."""

    def bounds(self, epoch: int) -> np.ndarray:
        return self._found()[0]

    def buffer(self, epoch: int, number: int) -> np.ndarray:
        first, last = self._found()[1][number : number + 2].tolist()
        rows, times = [np.zeros(0, np.int64)], [np.zeros(0, np.int64)]
        for shard, (oldest, newest) in enumerate(self._reach):
            if newest < first or last <= oldest:
                continue
            for found, chunk in self._chunks(shard):
                inside = np.flatnonzero((first <= chunk) & (chunk < last))
                rows.append(found[inside])
                times.append(chunk[inside])
        return np.concatenate(rows)[np.argsort(np.concatenate(times), kind="stable")]

    def _found(self) -> tuple[np.ndarray, np.ndarray]:
        """Positions at which spans begin, and their times; each with the end of the last."""
        if self._spans is None:
            self._reach = []
            for shard in range(self._places.num_shards):
                ends = [(int(c.min()), int(c.max())) for _, c in self._chunks(shard)]
                self._reach.append((min((a for a, _ in ends), default=0), max((b for _, b in ends), default=-1)))
            filled = [reach for reach in self._reach if reach[0] <= reach[1]]
            oldest, newest = min((a for a, _ in filled), default=0), max((b for _, b in filled), default=0)
            width = (newest - oldest) // BINS + 1
            counts = np.zeros((newest - oldest) // width + 1, np.int64)
            for shard in range(self._places.num_shards):
                for _, chunk in self._chunks(shard):
                    counts += np.bincount((chunk - oldest) // width, minlength=len(counts))
            before, edges = offsets_of(counts), [0]
            while edges[-1] < len(counts):
                full = int(np.searchsorted(before, before[edges[-1]] + self._buffer, side="right")) - 1
                edges.append(max(full, edges[-1] + 1))
            self._spans = before[edges], oldest + width * np.array(edges)
        return self._spans

    def _chunks(self, shard: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
        """Rows and times of each chunk of a shard."""
        for rows in self._places.chunks(shard):
            yield rows, self._times(shard, rows).astype(np.int64, copy=False)
