"""Checked rows on their way from the source to the shards: one file for each partition, in the source's order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from gemkit.data.arrays import as_array
from gemkit.data.columns import Codes

# Columns. Features, tasks and event fields have a letter and their place in the declaration: names of a source may
# differ in nothing but case, or be gemkit's own.
ROW, ID, TIME, SPLIT, WEIGHT = "row", "id", "time", "split", "weight"
USER, ITEM, SURFACE, GROUP, STREAM = "user", "item", "surface", "group", "stream"
DENSE, CATEGORY, VECTOR, LABEL, DELAY, TRUTH, FIELD = "d", "c", "v", "l", "y", "t", "e"

EXAMPLES, EVENTS = "examples", "events"
TEXT = pa.dictionary(pa.int32(), pa.string())


@dataclass
class Staged:
    """The staged rows of a build.

    Attributes:
        folder: Holds ``examples/000`` and, with histories, ``events/000``.
        rows, num_bytes: Of each partition, by table; bytes as they are in memory.
        widths: Numbers in each vector, in the order of the declaration.
        times: First and last second of all rows.
        num_late: Rows that were left out because they are older than the data set's newest, by table.
    """

    folder: Path
    num_partitions: int
    rows: dict[str, list[int]] = field(default_factory=dict)
    num_bytes: dict[str, list[int]] = field(default_factory=dict)
    widths: list[int] = field(default_factory=list)
    times: list[int] = field(default_factory=list)
    num_late: dict[str, int] = field(default_factory=dict)

    def counts(self) -> dict[str, Any]:
        """All but the folder, for a JSON file."""
        return {name: getattr(self, name) for name in ("rows", "num_bytes", "widths", "times", "num_late")}

    def columns(self, table: str, partition: int) -> list[str]:
        """The names of all columns."""
        with pa.OSFile(str(_file(self.folder, table, partition))) as file, pa.ipc.open_stream(file) as reader:
            return list(reader.schema.names)

    def read(self, table: str, partition: int, columns: Sequence[str]) -> pa.Table:
        """Columns of one partition, each in one piece; text is dictionary-encoded."""
        pieces = []
        with pa.OSFile(str(_file(self.folder, table, partition))) as file:
            while file.tell() < file.size():
                with pa.ipc.open_stream(file) as reader:
                    pieces.append(reader.read_all().select(columns))
        return pa.concat_tables(pieces).unify_dictionaries().combine_chunks()


class Writer:
    """Divides rows by partition. Keeps no file open: there may be a thousand partitions.

    Args:
        buffer_bytes: Rows are written when so many bytes of them wait.
    """

    def __init__(self, staged: Staged, table: str, buffer_bytes: int) -> None:
        self._staged, self._table, self._buffer_bytes = staged, table, buffer_bytes
        self._waiting: list[list[pa.Table]] = [[] for _ in range(staged.num_partitions)]
        self._waiting_bytes = 0
        self._empty: pa.Table | None = None
        staged.rows[table] = [0] * staged.num_partitions
        staged.num_bytes[table] = [0] * staged.num_partitions
        (staged.folder / table).mkdir(parents=True)

    def add(self, rows: pa.Table, partition: np.ndarray | None) -> None:
        """Takes a piece of the table; `partition` (rows,) is None if there is but one."""
        if self._empty is None:
            self._empty = rows.slice(0, 0)
        if rows.num_rows:
            time = rows[TIME].to_numpy()
            times = [*self._staged.times, int(time.min()), int(time.max())]
            self._staged.times = [min(times), max(times)]
        if partition is None:
            parts = [(0, rows)]
        else:
            order = np.argsort(partition, kind="stable")
            rows = rows.take(pa.array(order))
            numbers, starts = np.unique(partition[order], return_index=True)
            ends = [*starts[1:].tolist(), len(order)]
            parts = [(p, rows.slice(a, b - a)) for p, a, b in zip(numbers.tolist(), starts.tolist(), ends, strict=True)]
        for number, part in parts:
            self._waiting[number].append(part)
        self._waiting_bytes += rows.nbytes
        if self._waiting_bytes > self._buffer_bytes:
            self._flush()

    def finish(self) -> int:
        """Writes what waits, and an empty file for each partition without rows. Returns the number of rows."""
        if self._empty is None:
            return 0
        for number, rows in enumerate(self._staged.rows[self._table]):
            if not rows and not self._waiting[number]:
                self._waiting[number].append(self._empty)
        self._flush()
        return sum(self._staged.rows[self._table])

    def _flush(self) -> None:
        for number, parts in enumerate(self._waiting):
            if parts:
                rows = with_dictionaries(pa.concat_tables(parts).combine_chunks())
                parts.clear()
                # Whole streams, one behind the other: a file that is not open can go on, with new dictionaries.
                with (
                    _file(self._staged.folder, self._table, number).open("ab") as sink,
                    pa.ipc.new_stream(sink, rows.schema, options=pa.ipc.IpcWriteOptions(compression="lz4")) as writer,
                ):
                    writer.write_table(rows)
                self._staged.rows[self._table][number] += rows.num_rows
                self._staged.num_bytes[self._table][number] += rows.nbytes
        self._waiting_bytes = 0


def with_dictionaries(rows: pa.Table) -> pa.Table:
    """Text columns encoded: each distinct text is there once."""
    for i, column in enumerate(rows.schema):
        if pa.types.is_string(column.type):
            rows = rows.set_column(i, column.name, rows.column(i).cast(TEXT))
    return rows


def _file(folder: Path, table: str, partition: int) -> Path:
    return folder / table / f"{partition:03d}"


def text_of(column: Codes) -> pa.Array:
    """Codes as text; empty cells are null."""
    return column.values.take(pa.array(column.codes, mask=column.codes < 0))


def codes_of(column: pa.ChunkedArray) -> Codes:
    """A dictionary-encoded column as codes, -1 where empty."""
    encoded = column.combine_chunks() if isinstance(column, pa.ChunkedArray) else column
    if isinstance(encoded, pa.ChunkedArray):  # of a table without rows
        encoded = pa.array([], TEXT)
    return Codes(as_array(encoded.indices.fill_null(-1)).astype(np.int64), encoded.dictionary)
