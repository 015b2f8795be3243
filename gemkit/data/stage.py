"""The first pass of a build: reads the source piece by piece, checks every cell, and divides the rows by user."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gemkit.data import staged as names
from gemkit.data.arrays import as_array
from gemkit.data.columns import Columns
from gemkit.data.engine import Limits
from gemkit.data.hashing import partition_of
from gemkit.data.source import SPLITS, Source, Stream
from gemkit.data.staged import Staged, Writer, text_of
from gemkit.errors import GemkitError

PIECE = b"gemkit.piece"
"""Metadata of a stream's piece: JSON of its file's name and of how many rows of that file stand before it."""

REMEMBERED = 1_000_000
"""Users whose partition is not computed again; more would need memory that grows with the source."""

MAX_DELAY_S = 10**10


@dataclass(frozen=True)
class After:
    """What the rows of an appended segment may not be older than: no earlier example may see another history.

    Attributes:
        examples_s, events_s: Oldest timestamps that are taken.
        drop: Leave older rows out; else they are refused.
    """

    examples_s: int
    events_s: int
    drop: bool


def stage(
    source: Source, staged: Staged, limits: Limits, report: Callable[[], None], first_id: int, after: After | None
) -> None:
    """Fills `staged`.

    Args:
        report: Called after each piece.
        first_id: Id of the first example, if the source names no column of ids.

    Raises:
        GemkitError: A column is missing, or has values that its meaning does not allow.
    """
    partitions = Partitions(staged.num_partitions)
    staged.widths = [v.width for v in source.vectors]
    writer = Writer(staged, names.EXAMPLES, limits.buffer_bytes)
    row = 0
    for columns in pieces(source.examples, source.examples_title):
        examples = read_examples(source, columns, staged.widths, row)
        row += columns.num_rows
        late = _late(columns, source, examples, after.examples_s, after.drop) if after else None
        if late is not None:
            _count(staged, names.EXAMPLES, late)
            examples = examples.filter(pa.array(~late))
        if not source.example_id:
            ids = np.arange(first_id, first_id + examples.num_rows)
            examples = examples.append_column(names.ID, pa.array(ids, pa.int64()))
            first_id += examples.num_rows
        writer.add(examples, partitions.of(examples))
        report()
    if writer.finish() == 0:
        raise GemkitError("there are no examples", where=source.examples_title)
    if source.events is None:
        return
    writer = Writer(staged, names.EVENTS, limits.buffer_bytes)
    for columns in pieces(source.events, source.events_title):
        events = read_events(source, columns)
        late = _late(columns, source, events, after.events_s, after.drop) if after else None
        if late is not None:
            _count(staged, names.EVENTS, late)
            events = events.filter(pa.array(~late))
        writer.add(events, partitions.of(events))
        report()
    if writer.finish() == 0:
        fix = "leave the events out, or fill the table"
        raise GemkitError("there are no events", where=source.events_title, fix=fix)


def pieces(table: pa.Table | Stream, title: str) -> Iterator[Columns]:
    """A table in one piece, a stream in those in which it comes."""
    if isinstance(table, pa.Table):
        yield Columns(table, title)
        return
    row = 0
    for piece in table.read():
        told = json.loads((piece.schema.metadata or {}).get(PIECE, b"{}"))
        yield Columns(piece, told.get("title", title), told.get("first_row", row))
        row += piece.num_rows


def told(piece: pa.Table, title: str, first_row: int) -> pa.Table:
    """A piece that says which rows of which file it holds."""
    return piece.replace_schema_metadata({PIECE: json.dumps({"title": title, "first_row": first_row}).encode()})


def read_examples(source: Source, columns: Columns, widths: list[int], first_row: int) -> pa.Table:
    """Checks a piece of the examples; `widths` of 1 are replaced by the first piece's."""
    values: dict[str, Any] = {names.ROW: np.arange(first_row, first_row + columns.num_rows)}
    values[names.TIME] = columns.seconds(source.timestamp) if source.timestamp else np.zeros(columns.num_rows, np.int64)
    if source.split.by == "column":
        values[names.SPLIT] = _splits(columns, source.split.column)
    if source.user:
        values[names.USER] = text_of(columns.codes(source.user, required=True))
    for i, c in enumerate(source.categorical):
        if c.of == "examples" and c.multi:
            offsets, codes = columns.bags(c.name)
            values[f"{names.CATEGORY}{i}"] = pa.LargeListArray.from_arrays(offsets, text_of(codes))
        elif c.of == "examples":
            values[f"{names.CATEGORY}{i}"] = text_of(columns.codes(c.name))
    for i, d in enumerate(source.dense):
        if d.of == "examples":
            values[f"{names.DENSE}{i}"] = columns.numbers(d.name)
    for i, v in enumerate(source.vectors):
        if v.of == "examples":
            vectors = columns.vectors(v.name, widths[i])
            widths[i] = vectors.shape[1]
            values[f"{names.VECTOR}{i}"] = _packed(vectors)
    if source.surface:
        values[names.SURFACE] = text_of(columns.codes(source.surface, required=True))
    if source.item and source.items is not None:
        values[names.ITEM] = text_of(columns.codes(source.item))
    if source.example_id:
        values[names.ID] = columns.whole(source.example_id)
    values[names.WEIGHT] = _weights(columns, source.weight)
    if source.group:
        values[names.GROUP] = text_of(columns.codes(source.group, required=True))
    for i, t in enumerate(source.tasks):
        values[f"{names.LABEL}{i}"] = columns.labels(t.name)
        if t.delay:
            values[f"{names.DELAY}{i}"] = columns.optional_numbers(t.delay, 0, MAX_DELAY_S, "seconds").cast(
                pa.float32()
            )
        if t.truth:
            truth = columns.optional_numbers(t.truth, 0, 1, "probabilities")
            columns.refuse_empty(t.truth, truth)
            values[f"{names.TRUTH}{i}"] = truth
    return pa.table(values)


def read_events(source: Source, columns: Columns) -> pa.Table:
    """Checks a piece of the events."""
    assert source.user and source.timestamp  # check_declaration has seen to it
    values = {names.USER: text_of(columns.codes(source.user, required=True))}
    values[names.TIME] = pa.array(columns.seconds(source.timestamp))
    if source.stream:
        values[names.STREAM] = text_of(columns.codes(source.stream, required=True))
    for i, e in enumerate(source.event_fields):
        values[f"{names.FIELD}{i}"] = text_of(columns.codes(e.name))
    return pa.table(values)


class Partitions:
    """Tells the partition of each row: by its user, or by its number where there are no users."""

    def __init__(self, num_partitions: int) -> None:
        self._num_partitions = num_partitions
        self._users = pa.array([], pa.string())
        self._numbers = np.zeros(0, np.int32)

    def of(self, rows: pa.Table) -> np.ndarray | None:
        """Shape: (rows,) int32; None if there is one partition."""
        if self._num_partitions == 1:
            return None
        if names.USER not in rows.column_names:
            return partition_of(rows[names.ROW].cast(pa.string()).combine_chunks(), self._num_partitions)
        encoded = rows[names.USER].combine_chunks().dictionary_encode()
        users = encoded.dictionary
        known = pc.index_in(users, value_set=self._users)
        fresh = users.filter(known.is_null())
        if len(self._users) > REMEMBERED:
            self._users, self._numbers, fresh = users.slice(0, 0), self._numbers[:0], users
        self._users = pa.concat_arrays([self._users, fresh])
        self._numbers = np.append(self._numbers, partition_of(fresh, self._num_partitions))
        found = as_array(pc.index_in(users, value_set=self._users))
        partitions: np.ndarray = self._numbers[found][as_array(encoded.indices)]
        return partitions


def _splits(columns: Columns, name: str) -> np.ndarray:
    found = columns.codes(name, required=True)
    known = np.array([SPLITS.index(v) if v in SPLITS else -1 for v in found.values.to_pylist()], np.int8)
    split: np.ndarray = known[found.codes]
    if (split < 0).any():
        what = f"unknown split {found.values[int(found.codes[split < 0][0])].as_py()!r}"
        raise columns.error(name, what, split < 0, allowed=", ".join(SPLITS))
    return split


def _weights(columns: Columns, name: str | None) -> np.ndarray:
    if not name:
        return np.ones(columns.num_rows, np.float32)
    weights = columns.numbers(name)
    if (weights < 0).any():
        raise columns.error(name, "weights are negative", weights < 0, allowed=">= 0")
    return weights.astype(np.float32)


def _late(columns: Columns, source: Source, rows: pa.Table, oldest_s: int, drop: bool) -> np.ndarray | None:
    """Rows that are too old, if there are any."""
    late: np.ndarray = rows[names.TIME].to_numpy() < oldest_s
    if not late.any():
        return None
    if not drop:
        raise columns.error(
            source.timestamp or "",
            "rows are older than the newest of the data set: examples that are in it have not seen them",
            late,
            allowed=f"{oldest_s} and later",
            fix="`--late drop` leaves them out; to have them in, build the data set again from all files",
        )
    return late


def _count(staged: Staged, table: str, late: np.ndarray) -> None:
    staged.num_late[table] = staged.num_late.get(table, 0) + int(late.sum())


def _packed(vectors: np.ndarray) -> pa.Array:
    """Vectors as bytes, which are divided and joined faster than lists."""
    data = np.ascontiguousarray(vectors, "<f4")
    return pa.Array.from_buffers(pa.binary(4 * data.shape[1]), len(data), [None, pa.py_buffer(data)])


def unpacked(column: pa.ChunkedArray, width: int) -> np.ndarray:
    """What `_packed` was made from. Shape: (rows, width) float32."""
    parts = [
        np.frombuffer(c.buffers()[1], "<f4")[c.offset * width : (c.offset + len(c)) * width] for c in column.chunks
    ]
    vectors: np.ndarray = np.concatenate([np.zeros(0, "<f4"), *parts]).reshape(-1, width)
    return vectors
