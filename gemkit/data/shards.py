"""A data set's rows in pieces: one for each partition of each segment, addressed by one row number over all of them."""

from __future__ import annotations

import copy
from collections.abc import Container, Sequence
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa

from gemkit.data import storage
from gemkit.data.arrays import offsets_of
from gemkit.data.schema import Schema


class Rows:
    """One table of a shard as plain arrays over the mapped file.

    Attributes:
        columns: Column -> (rows,). Labels are int8 with -1 where masked; an empty delay is NaN. Text is left out.
        bags: Bag -> offsets (rows+1,) and ids back to back.
        vectors: Content embedding -> (rows, width).
    """

    def __init__(self, table: pa.Table, schema: Schema) -> None:
        self.num_rows: int = table.num_rows
        self.columns: dict[str, np.ndarray] = {}
        self.bags: dict[str, tuple[np.ndarray, np.ndarray]] = {}
        self.vectors: dict[str, np.ndarray] = {}
        for name in table.column_names:
            column = storage.one_piece(table.column(name))
            if pa.types.is_large_list(column.type):
                self.bags[name] = _array(column.offsets), _array(column.values)
            elif pa.types.is_fixed_size_list(column.type):
                self.vectors[name] = _array(column.values).reshape(-1, column.type.list_size)
            elif pa.types.is_string(column.type):
                continue
            elif name in schema.task_names:
                self.columns[name] = _array(column.fill_null(-1))
            else:
                self.columns[name] = _array(column.fill_null(np.nan) if column.null_count else column)

    def none(self, names: Container[str]) -> Rows:
        """Those columns that are named, without any row."""
        empty = copy.copy(self)
        empty.num_rows = 0
        empty.columns = {name: values[:0] for name, values in self.columns.items() if name in names}
        empty.bags = {name: (offsets[:1], ids[:0]) for name, (offsets, ids) in self.bags.items()}
        empty.vectors = {name: values[:0] for name, values in self.vectors.items()}
        return empty


class Shard(NamedTuple):
    """One partition of one segment.

    Attributes:
        users: The shard's users: where their events begin, and their features. None without users.
        events: The event log's columns: (events,). Empty without histories.
        items: The segment's items and their features. None without an item table.
    """

    examples: Rows
    users: Rows | None
    events: dict[str, np.ndarray]
    items: Rows | None

    def run_end(self, user: np.ndarray) -> np.ndarray:
        """Where the events of users end. Shape: (n,) -> (n,) int64."""
        assert self.users is not None
        start = self.users.columns[storage.START]
        last = user + 1 == len(start)
        num_events = len(self.events[storage.TIMESTAMP])
        ends: np.ndarray = np.where(last, num_events, start[np.where(last, user, user + 1)])
        return ends


class Part(NamedTuple):
    """The rows of a selection that lie in one shard.

    Attributes:
        shard: Number of the shard.
        rows: (n,) rows within the shard.
        where: Where these rows stand in the selection: (n,), or a slice if they are all of it.
    """

    shard: int
    rows: np.ndarray
    where: Any


def located(rows: np.ndarray, bases: np.ndarray) -> list[Part]:
    """Divides row numbers over shards that begin at `bases` (shards+1,)."""
    if len(bases) == 2:
        return [Part(0, rows, slice(None))]
    parts = by_shard(np.searchsorted(bases, rows, side="right") - 1)
    return [p._replace(rows=rows[p.where] - bases[p.shard]) for p in parts]


def take(pieces: Sequence[np.ndarray], parts: list[Part], size: int) -> np.ndarray:
    """The values of a selection of `size` rows, from one array for each shard."""
    if len(parts) == 1:
        only: np.ndarray = pieces[parts[0].shard][parts[0].rows]
        return only
    kinds = [pieces[p.shard] for p in parts] or list(pieces[:1])
    values = np.empty((size, *kinds[0].shape[1:]), np.result_type(*(k.dtype for k in kinds)))
    for part in parts:
        values[part.where] = pieces[part.shard][part.rows]
    return values


class Column:
    """A column over all shards. ``column[rows]`` gathers; ``np.asarray(column)`` is all of it, in memory."""

    def __init__(self, pieces: Sequence[np.ndarray]) -> None:
        self.pieces = pieces
        self.bases = offsets_of(np.array([len(p) for p in pieces]))
        self.dtype = np.result_type(*(p.dtype for p in pieces))

    def __len__(self) -> int:
        return int(self.bases[-1])

    def __getitem__(self, rows: Any) -> np.ndarray:
        if not isinstance(rows, np.ndarray) or rows.dtype == bool:
            rows = np.arange(len(self))[rows]
        values = take(self.pieces, located(np.atleast_1d(rows), self.bases), np.size(rows))
        return values.reshape(np.shape(rows))

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> np.ndarray:
        whole = np.concatenate(self.pieces)
        return whole if dtype is None else whole.astype(dtype)


def by_shard(shard: np.ndarray) -> list[Part]:
    """Groups a selection by the shard of each of its members; `rows` are their positions in the selection."""
    if not len(shard):
        return []
    if (shard == shard[0]).all():
        return [Part(int(shard[0]), np.arange(len(shard)), slice(None))]
    order = np.argsort(shard, kind="stable")
    numbers, starts = np.unique(shard[order], return_index=True)
    return [Part(int(s), w, w) for s, w in zip(numbers, np.split(order, starts[1:]), strict=True)]


def joined(pieces: Sequence[np.ndarray]) -> Any:
    """A plain array if there is one piece, else a `Column`."""
    return pieces[0] if len(pieces) == 1 else Column(pieces)


def _array(column: pa.Array) -> np.ndarray:
    # A plain ndarray over the mapped file; slicing the np.memmap subclass would be four times slower.
    values: np.ndarray = column.to_numpy(zero_copy_only=True)
    return values
