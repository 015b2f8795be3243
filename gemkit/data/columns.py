"""Reads a table's columns into arrays, with errors that name the table, the column and the first bad rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gemkit.errors import GemkitError, did_you_mean

MAX_SECONDS = 1e11
"""The year 5138. A larger timestamp is in milliseconds or finer."""


class Codes(NamedTuple):
    """A categorical column: `values[codes]`, as text; code -1 is an empty cell.

    Text, so that a CSV and a Parquet file of the same rows, or two tables that write an id as text and as a
    number, have the same vocabulary.
    """

    codes: np.ndarray
    values: pa.Array


class Columns:
    """One table of a `Source`.

    Args:
        table: The table.
        title: What errors call it: ``examples`` or a file name.
    """

    def __init__(self, table: pa.Table, title: str) -> None:
        self.table = table
        self.title = title
        self.num_rows: int = table.num_rows

    def raw(self, name: str) -> pa.Array:
        """The column as it came, in one piece."""
        names = self.table.column_names
        if names.count(name) != 1:
            problem = "appears more than once" if name in names else "is missing"
            raise GemkitError(
                f"column {name!r} {problem}",
                where=self.title,
                allowed="the table's columns: " + ", ".join(names),
                fix=did_you_mean(name, names),
            )
        column = self.table.column(name).combine_chunks()
        return column.cast(column.type.value_type) if pa.types.is_dictionary(column.type) else column

    def error(
        self, name: str, what: str, bad: np.ndarray | None = None, *, allowed: str | None = None, fix: str | None = None
    ) -> GemkitError:
        """An error about column `name`; `bad` marks the rows at fault."""
        where = f"{self.title}, column {name}"
        if bad is not None and len(bad) == self.num_rows:  # inside lists, positions are not rows
            rows = np.flatnonzero(bad)
            first = ", ".join(str(r + 1) for r in rows[:5])
            where += f", {len(rows)} row{'s' * (len(rows) > 1)}: {first}{' ...' * (len(rows) > 5)} (the first is 1)"
        return GemkitError(what, where=where, allowed=allowed, fix=fix)

    def refuse_empty(self, name: str, column: pa.Array) -> None:
        """Raises if a cell is empty."""
        if column.null_count:
            raise self.error(
                name, f"column {name!r} has empty cells", as_array(column.is_null()), fix="fill them or drop the rows"
            )

    def numbers(self, name: str) -> np.ndarray:
        """Finite numbers. Shape: (rows,) float64, or float32 where the column is."""
        column = self._as_numbers(name, self.raw(name))
        self.refuse_empty(name, column)
        values = as_array(column)
        if not np.isfinite(values).all():
            raise self.error(
                name,
                f"column {name!r} has NaN or infinite values",
                ~np.isfinite(values),
                fix="fill them (a separate 0/1 column can say that a value was missing) or drop the rows",
            )
        return values

    def refuse_text(self, name: str) -> None:
        """Raises if a column has text that is no number."""
        self._as_numbers(name, self.raw(name))

    def _as_numbers(self, name: str, column: pa.Array) -> pa.Array:
        kind = column.type
        if pa.types.is_float32(kind) or pa.types.is_float64(kind):
            return column
        if pa.types.is_boolean(kind):
            column = column.cast(pa.int8())
        if (pa.types.is_primitive(column.type) and not pa.types.is_temporal(kind)) or pa.types.is_null(kind):
            return column.cast(pa.float64())
        if is_text(kind):
            bad = np.array([not _is_number(v) for v in column.to_pylist()])
            if not bad.any():
                return pa.array([None if not v else float(v) for v in column.to_pylist()], pa.float64())
            shown = column[int(np.flatnonzero(bad)[0])].as_py()
            raise self.error(name, f"column {name!r} holds text such as {shown!r}", bad, allowed="numbers")
        raise self.error(name, f"column {name!r} has type {kind}", allowed="numbers")

    def seconds(self, name: str) -> np.ndarray:
        """Seconds since 1970, fractions cut off. Shape: (rows,) int64."""
        column = self.raw(name)
        self.refuse_empty(name, column)
        if pa.types.is_date(column.type):
            column = column.cast(pa.timestamp("s"))
        if pa.types.is_timestamp(column.type):
            return as_array(column.cast(pa.timestamp("s"), safe=False).cast(pa.int64()))
        values = as_array(column) if pa.types.is_int64(column.type) else self.numbers(name)
        if (np.abs(values) > MAX_SECONDS).any():
            raise self.error(
                name,
                f"column {name!r} is not in seconds: {values[np.abs(values).argmax()]:.0f}",
                np.abs(values) > MAX_SECONDS,
                allowed="seconds since 1970, or a date-time type",
                fix="divide milliseconds by 1000",
            )
        seconds: np.ndarray = np.floor(values).astype(np.int64)
        return seconds

    def labels(self, name: str) -> np.ndarray:
        """0, 1, or -1 for an empty cell. Shape: (rows,) int8."""
        column = self._as_numbers(name, self.raw(name))
        values = as_array(column.cast(pa.float64()).fill_null(np.nan))
        bad = ~(np.isnan(values) | (values == 0) | (values == 1))
        if bad.any():
            raise self.error(
                name, f"label {name!r} has the value {values[bad][0]:g}", bad, allowed="0, 1 or an empty cell"
            )
        return np.where(np.isnan(values), -1, values).astype(np.int8)

    def whole(self, name: str) -> np.ndarray:
        """Whole numbers. Shape: (rows,) int64."""
        column = self.raw(name)
        self.refuse_empty(name, column)
        if not pa.types.is_integer(column.type):
            raise self.error(name, f"column {name!r} has type {column.type}", allowed="whole numbers")
        return as_array(column.cast(pa.int64()))

    def codes(self, name: str, *, required: bool = False) -> Codes:
        """A categorical column of text or whole numbers; `required` refuses empty cells."""
        column = self.raw(name)
        if is_list(column.type):
            raise self.error(
                name,
                f"column {name!r} holds lists",
                allowed="one id in each row",
                fix="a categorical feature of many ids is declared with `multi: true`",
            )
        codes = self._encode(name, column)
        if required and (codes.codes < 0).any():
            raise self.error(
                name, f"column {name!r} has empty cells", codes.codes < 0, fix="fill them or drop the rows"
            )
        return codes

    def bags(self, name: str) -> tuple[np.ndarray, Codes]:
        """A column of lists of ids: offsets (rows+1,) int64, and the ids back to back. Empty ids are dropped."""
        column = self.raw(name)
        if not is_list(column.type):
            raise self.error(
                name, f"column {name!r} is declared multi but has type {column.type}", allowed="a list in each row"
            )
        lengths = as_array(pc.list_value_length(column).fill_null(0))
        encoded = self._encode(name, pc.list_flatten(column))
        full = encoded.codes >= 0
        lengths = np.bincount(np.repeat(np.arange(self.num_rows), lengths)[full], minlength=self.num_rows)
        return offsets_of(lengths), Codes(encoded.codes[full], encoded.values)

    def vectors(self, name: str, width: int) -> np.ndarray:
        """Vectors of one width; `width` 1 stands for "as wide as they are". Shape: (rows, width) float32."""
        column = self.raw(name)
        if not is_list(column.type):
            raise self.error(name, f"column {name!r} has type {column.type}", allowed="a list of numbers in each row")
        self.refuse_empty(name, column)
        lengths = as_array(pc.list_value_length(column))
        width = int(lengths[0]) if width == 1 and len(lengths) else width
        if (lengths != width).any():
            raise self.error(
                name, f"column {name!r} has vectors of unequal width", lengths != width, allowed=f"{width}"
            )
        flat = self._as_numbers(name, pc.list_flatten(column)).cast(pa.float32())
        values = as_array(flat.fill_null(np.nan)).reshape(-1, width)
        bad = ~np.isfinite(values).all(axis=1)
        if bad.any():
            raise self.error(name, f"column {name!r} has NaN, infinite or empty numbers in its vectors", bad)
        return values

    def _encode(self, name: str, column: pa.Array) -> Codes:
        kind = column.type
        if pa.types.is_floating(kind):
            column = column.cast(pa.float64())
            values = as_array(column.fill_null(np.nan))
            bad = ~np.isnan(values) & (values != np.floor(values))
            if bad.any():
                raise self.error(
                    name,
                    f"categorical column {name!r} has the value {values[bad][0]:g}",
                    bad,
                    allowed="text or whole numbers",
                    fix="declare it as dense",
                )
            column = pa.array(np.nan_to_num(values).astype(np.int64), mask=np.isnan(values))
        elif not (is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
            raise self.error(name, f"categorical column {name!r} has type {kind}", allowed="text or whole numbers")
        encoded = column.cast(pa.string() if pa.types.is_null(kind) else column.type).dictionary_encode()
        codes = as_array(encoded.indices.fill_null(-1)).astype(np.int64)
        values = encoded.dictionary.cast(pa.string())
        blank = pc.index(values, "").as_py()
        return Codes(np.where(codes == blank, -1, codes) if blank >= 0 else codes, values)


def is_list(kind: Any) -> bool:
    """Whether a column of this type holds a list in each row."""
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind) or pa.types.is_fixed_size_list(kind))


def is_text(kind: Any) -> bool:
    """Whether a column of this type holds text."""
    return bool(pa.types.is_string(kind) or pa.types.is_large_string(kind) or pa.types.is_string_view(kind))


def as_array(column: pa.Array) -> np.ndarray:
    """An Arrow array without empty cells as a NumPy array."""
    values: np.ndarray = column.to_numpy(zero_copy_only=False)
    return values


def transformed(values: np.ndarray, transform: str) -> np.ndarray:
    """A dense column after its `DenseFeature.transform`, in float64."""
    values = values.astype(np.float64)
    return np.sign(values) * np.log1p(np.abs(values)) if transform == "log1p" else values


def offsets_of(lengths: np.ndarray) -> np.ndarray:
    """Where each of several runs starts and ends. Shape: (n,) -> (n+1,) int64."""
    offsets = np.zeros(len(lengths) + 1, np.int64)
    np.cumsum(lengths, out=offsets[1:])
    return offsets


def _is_number(text: str | None) -> bool:
    try:
        float(text or "0")
    except ValueError:
        return False
    return True
