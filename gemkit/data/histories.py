"""Reads histories: the newest events of many users, from runs of the event log that may lie in several segments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple, cast

import numpy as np

from gemkit.data import storage
from gemkit.data.arrays import offsets_of, ranges
from gemkit.data.shards import by_shard

if TYPE_CHECKING:
    from gemkit.data.dataset import Dataset

SHORT = 40
"""Mean events of a window below which one gather of single events is faster than copying runs."""


class Windows(NamedTuple):
    """Runs of events that make up histories, in the order in which a batch holds them.

    Attributes:
        owner: (n,) the history of each run.
        shard: (n,) the shard whose events it is of.
        start, end: (n,) rows of the shard's events, `end` excluded.
    """

    owner: np.ndarray
    shard: np.ndarray
    start: np.ndarray
    end: np.ndarray


def newest(dataset: Dataset, rows: np.ndarray, max_history: int, stream: int | None = None) -> Windows:
    """The newest `max_history` events that each example sees, oldest first.

    A history that goes on in earlier segments consists of several runs.

    Args:
        rows: (U,) examples.
        stream: Of this stream alone; the windows are then rows of `dataset.stream_events(shard, stream)`.
    """
    shard, user, end = pointers(dataset, rows)
    owner = np.arange(len(rows))
    wanted = np.full(len(rows), max_history)
    found: list[Windows] = []
    while len(owner):
        start, previous, previous_user = (np.zeros(len(owner), np.int64) for _ in range(3))
        for part in by_shard(shard):
            at = part.where
            users = dataset.users(part.shard)
            start[at] = users[storage.START][user[at]]
            segment = users[storage.PREVIOUS_SEGMENT][user[at]].astype(np.int64)
            previous[at] = np.where(segment < 0, -1, dataset.shard_number(segment, part.shard))
            previous_user[at] = users[storage.PREVIOUS_USER][user[at]]
            if stream is not None:
                of_stream = dataset.stream_events(part.shard, stream)
                start[at], end[at] = np.searchsorted(of_stream, start[at]), np.searchsorted(of_stream, end[at])
        start = np.maximum(start, end - wanted)
        found.append(Windows(owner, shard, start, end))
        wanted = wanted - (end - start)
        more = (wanted > 0) & (previous >= 0)
        owner, shard, user, wanted = owner[more], previous[more], previous_user[more], wanted[more]
        end = np.zeros(len(owner), np.int64)
        for part in by_shard(shard):
            end[part.where] = dataset.shards[part.shard].run_end(user[part.where])
    if not found:  # no examples
        return Windows(owner, shard, end, end)
    if len(found) == 1:
        return found[0]
    runs = Windows(*(np.concatenate(parts) for parts in zip(*reversed(found), strict=True)))
    # Stable: within a history the oldest segment comes first.
    return Windows(*(values[np.argsort(runs.owner, kind="stable")] for values in runs))


def newest_of_streams(
    dataset: Dataset, rows: np.ndarray, windows: Sequence[tuple[int, int]], *, apart: bool
) -> tuple[Windows, np.ndarray]:
    """The newest events of each stream that each example sees: by time, or stream by stream.

    Args:
        rows: (U,) examples.
        windows: Stream and the number of its newest events, for each stream that is read.
        apart: Each history's events stand stream by stream, in the order of `windows`; else by time.

    Returns:
        Single events as windows, and how many each history has of each stream: (U, len(windows)).
    """
    parts, lengths = [], np.zeros((len(rows), len(windows)), np.int64)
    for i, (stream, max_history) in enumerate(windows):
        runs = newest(dataset, rows, max_history, stream)
        size = runs.end - runs.start
        np.add.at(lengths[:, i], runs.owner, size)
        owner, shard = np.repeat(runs.owner, size), np.repeat(runs.shard, size)
        index = ranges(runs.start, runs.end)
        event = np.zeros(len(index), np.int64)
        for part in by_shard(shard):
            event[part.where] = dataset.stream_events(part.shard, stream)[index[part.where]]
        parts.append(np.stack([owner, np.full(len(owner), i), shard, event]))
    owner, rank, shard, event = np.concatenate(parts, axis=1) if parts else np.zeros((4, 0), np.int64)
    # Later segments have higher shard numbers, and a user is in one partition: shard, then event, is the order in time.
    order = np.lexsort((event, shard, rank, owner) if apart else (event, shard, owner))
    owner, shard, event = owner[order], shard[order], event[order]
    return Windows(owner, shard, event, event + 1), lengths


def pointers(dataset: Dataset, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Shard, user and first event not seen, of each example. Shape: (U,) each, int64."""
    shard, user, end = (np.zeros(len(rows), np.int64) for _ in range(3))
    for part in dataset.located(rows):
        columns = dataset.shards[part.shard].examples.columns
        # New examples, which are in no file, have their history in another shard than themselves.
        elsewhere = storage.HISTORY_SHARD in columns
        shard[part.where] = columns[storage.HISTORY_SHARD][part.rows] if elsewhere else part.shard
        user[part.where] = columns[storage.HISTORY_USER if elsewhere else storage.USER][part.rows]
        end[part.where] = columns[storage.HISTORY_END][part.rows]
    return shard, user, end


def lengths_of(windows: Windows, num_histories: int) -> np.ndarray:
    """Events of each history. Shape: (num_histories,) int64."""
    if len(windows.owner) == num_histories:  # one run for each
        each: np.ndarray = windows.end - windows.start
        return each
    lengths = np.zeros(num_histories, np.int64)
    np.add.at(lengths, windows.owner, windows.end - windows.start)
    return lengths


def gather(dataset: Dataset, name: str, windows: Windows, kind: type | None = None) -> np.ndarray:
    """A column of the events in `windows`, back to back. Shape: (T,), of the file's type or `kind`.

    Straight from the mapped files: one copy, and another one if `kind` is not the file's.
    """
    pieces = [s.events[name] for s in dataset.shards]
    dtype = np.dtype(kind) if kind else np.result_type(*(p.dtype for p in pieces))
    lengths = windows.end - windows.start
    num_events = int(lengths.sum())
    if num_events == 0:
        return np.zeros(0, dtype)
    if num_events < SHORT * len(lengths):
        return _gather_events(dataset, name, windows, dtype)
    if len({p.dtype for p in pieces}) > 1:  # segments may differ
        starts, ends = windows.start.tolist(), windows.end.tolist()
        runs = [pieces[s][a:b] for s, a, b in zip(windows.shard.tolist(), starts, ends, strict=True)]
        values = np.empty(num_events, dtype)
        np.concatenate(runs, out=values)
        return values
    # Joining bytes costs half of what `np.concatenate` does for each run.
    width = pieces[0].itemsize
    starts, ends = (windows.start * width).tolist(), (windows.end * width).tolist()
    views = [memoryview(cast(Any, p)).cast("B") if len(p) else memoryview(b"") for p in pieces]
    if len(views) == 1:
        (view,) = views
        joined = bytearray().join([view[a:b] for a, b in zip(starts, ends, strict=True)])
    else:
        joined = bytearray().join([views[s][a:b] for s, a, b in zip(windows.shard.tolist(), starts, ends, strict=True)])
    return np.frombuffer(joined, pieces[0].dtype).astype(dtype, copy=False)


def _gather_events(dataset: Dataset, name: str, windows: Windows, dtype: np.dtype) -> np.ndarray:
    if len(dataset.shards) == 1:
        events = ranges(windows.start, windows.end)
        return np.asarray(dataset.shards[0].events[name][events], dtype)
    offsets = offsets_of(windows.end - windows.start)
    values = np.empty(offsets[-1], dtype)
    for part in by_shard(windows.shard):
        here = ranges(offsets[:-1][part.where], offsets[1:][part.where])
        there = ranges(windows.start[part.where], windows.end[part.where])
        values[here] = dataset.shards[part.shard].events[name][there]
    return values
