"""Columns of one table: whether they are there, of the right type, and every value within its bounds."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gemkit.data import storage
from gemkit.data.arrays import as_array, standardised
from gemkit.data.schema import DenseFeature, Schema
from gemkit.data.validation.schema import features_of
from gemkit.data.validation.violation import Findings, Violation, about_file, slices

NARROW = (pa.uint8(), pa.uint16(), pa.int32())
"""Types of an event's ids: the smallest that held the table's ids when the segment was built."""

OUT_OF_BOUNDS = "column {0!r} has the value {{value}}, which is out of bounds"


class Column(NamedTuple):
    """What a column must be.

    Attributes:
        low, high: Bounds of its numbers, or of the numbers in its lists; None: none.
        dense: The feature whose standardised form must be finite.
    """

    types: tuple[Any, ...]
    low: float | None = None
    high: float | None = None
    nullable: bool = False
    dense: DenseFeature | None = None

    @property
    def allowed(self) -> str:
        """The bounds in words."""
        if self.low is None:
            return "finite numbers"
        return f"{self.low} or more" if self.high is None else f"{self.low} to {self.high}"


def feature_columns(schema: Schema, holder: str) -> dict[str, Column]:
    """The columns of the features that examples, users or items hold."""
    sizes = {t.name: t.num_embeddings for t in schema.tables}
    names = {f.name for f in features_of(schema, holder)}
    columns = {f.name: Column((pa.float32(), pa.float64()), dense=f) for f in schema.dense}
    columns |= {
        f.name: Column((pa.large_list(pa.int32()) if f.multi else pa.int32(),), 0, sizes[f.table] - 1)
        for f in schema.categorical
    }
    columns |= {f.name: Column((pa.list_(pa.float32(), f.width),)) for f in schema.vectors}
    return {name: column for name, column in columns.items() if name in names}


def check_types(file: str, table: pa.Table, columns: dict[str, Column], num_rows: int | None) -> Iterator[Violation]:
    """Rows as the manifest counts them, the columns of the schema, their types, and no empty cells."""
    if num_rows is not None and table.num_rows != num_rows:
        yield about_file(file, f"there are {table.num_rows:,} rows, the manifest says {num_rows:,}", f"{num_rows:,}")
    for name in sorted({*table.column_names, *columns}):
        if (times := table.column_names.count(name)) != (name in columns):
            is_odd = "is no column of the schema" if name not in columns else "is there more than once"
            yield about_file(file, f"column {name!r} {is_odd if times else 'is missing'}", ", ".join(columns), name)
    for name, wanted in columns.items():
        if table.column_names.count(name) == 1:
            yield from _check_type(file, name, table.column(name), wanted)


def _check_type(file: str, name: str, column: pa.ChunkedArray, wanted: Column) -> Iterator[Violation]:
    # By value type: how the list's element is called is of no account.
    if not any(column.type.equals(kind) or _same_list(column.type, kind) for kind in wanted.types):
        yield about_file(
            file, f"column {name!r} has type {column.type}", " or ".join(map(str, wanted.types)), column=name
        )
        return
    findings = Findings(file)
    if column.null_count and not wanted.nullable:
        for start, end in slices(len(column)):
            empty = as_array(pc.is_null(storage.one_piece(column.slice(start, end - start))))
            findings.add(name, f"column {name!r} has empty cells", start + np.flatnonzero(empty), "a value in each row")
    yield from findings
    for chunk in column.chunks if pa.types.is_nested(column.type) else []:
        if chunk.values.null_count:
            yield about_file(file, f"the lists of column {name!r} have empty cells", "numbers", name)
        elif pa.types.is_large_list(chunk.type) and len(chunk):
            first, last = chunk.offsets[0].as_py(), chunk.offsets[-1].as_py()
            if (first, last) != (0, len(chunk.values)):
                yield about_file(file, f"column {name!r} has ids that no row holds", f"{last - first:,} ids", name)


def check_values(findings: Findings, table: pa.Table, columns: dict[str, Column]) -> None:
    """Every number is finite and within its bounds."""
    for name, column in columns.items():
        kind = table.schema.field(name).type
        if pa.types.is_string(kind):
            continue
        if pa.types.is_nested(kind):
            base = 0
            for chunk in table.column(name).chunks:
                _check_lists(findings, name, chunk, column, base)
                base += len(chunk)
        else:
            for start, end in slices(table.num_rows):
                values = piece(table, name, start, end, fill=column.low or 0)
                at = _wrong(values, column)
                findings.add(name, OUT_OF_BOUNDS.format(name), start + at, column.allowed, values[at])


def _check_lists(findings: Findings, name: str, chunk: pa.Array, column: Column, base: int) -> None:
    """Goes through the lists' numbers, not their rows, slice by slice: rows may be long."""
    values, width = as_array(chunk.values), getattr(chunk.type, "list_size", 0)
    for start, end in slices(len(values)):
        at = start + _wrong(values[start:end], column)
        if len(at):
            owner = at // width if width else np.searchsorted(as_array(chunk.offsets), at, side="right") - 1
            rows, first = np.unique(owner, return_index=True)
            findings.add(name, OUT_OF_BOUNDS.format(name), base + rows, column.allowed, values[at[first]])


def _wrong(values: np.ndarray, column: Column) -> np.ndarray:
    """Which values are not finite or out of bounds."""
    if not len(values):
        return np.zeros(0, np.int64)
    bad = np.zeros(len(values), bool)
    if values.dtype.kind == "f":
        bad |= ~np.isfinite(standardised(values, column.dense) if column.dense else values)
    if column.low is not None and values.min() < column.low:
        bad |= values < column.low
    if column.high is not None and values.max() > column.high:
        bad |= values > column.high
    return np.flatnonzero(bad)


def piece(table: pa.Table, name: str, start: int, end: int, fill: float = 0) -> np.ndarray:
    """Rows `start` to `end` - 1 of a column of numbers; a view of the mapped file, except where cells are empty."""
    part = storage.one_piece(table.column(name).slice(start, end - start))
    return as_array(part.fill_null(pa.scalar(fill, part.type)) if part.null_count else part)


def whole(table: pa.Table, name: str) -> np.ndarray:
    """A column of numbers without empty cells: a view of the mapped file."""
    return as_array(storage.one_piece(table.column(name)))


def not_ascending(findings: Findings, texts: pa.ChunkedArray) -> None:
    """Notes the rows whose text is not after that of the row before, byte for byte."""
    for start, end in slices(len(texts) - 1):
        before, after = (storage.one_piece(texts.slice(start + i, end - start)) for i in (0, 1))
        rows = start + 1 + np.flatnonzero(as_array(pc.less_equal(after, before)))
        findings.add(storage.VALUE, "the texts are not sorted, or one is there twice", rows, "ascending text")


def _same_list(a: Any, b: Any) -> bool:
    if pa.types.is_large_list(a) and pa.types.is_large_list(b):
        return bool(a.value_type.equals(b.value_type))
    if pa.types.is_fixed_size_list(a) and pa.types.is_fixed_size_list(b):
        return bool(a.value_type.equals(b.value_type) and a.list_size == b.list_size)
    return False
