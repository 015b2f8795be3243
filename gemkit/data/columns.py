"""Reads a table's columns into arrays, with errors that name the table, the column and the first bad rows."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from gemkit.data.arrays import as_array, flat, is_list, is_text, offsets_of, short, standardised
from gemkit.data.schema import DenseFeature
from gemkit.data.source import MAX_SECONDS
from gemkit.data.text import numbers_of, seconds_of, whole_of
from gemkit.errors import GemkitError, did_you_mean

MAX_NUMBER = 1e30
"""Of a dense feature or a weight. The model computes in float32, which ends at 3.4e38."""

MAX_FLOAT_ID = 2**53
"""Above it a float64 cannot tell neighbouring whole numbers apart."""


class Codes(NamedTuple):
    """A categorical column: `values[codes]`, as text; code -1 is an empty cell.

    Text, so that a CSV and a Parquet file of the same rows, or two tables that write an id as text and as a
    number, have the same vocabulary.
    """

    codes: np.ndarray
    values: pa.Array


def shown_rows(rows: np.ndarray) -> str:
    """How errors name rows: ``7 rows: 1, 2, 3, 4, 5 ... (the first is 1)``. `rows` are counted from 0."""
    first = ", ".join(str(r + 1) for r in rows[:5].tolist())
    return f"{len(rows)} row{'s' * (len(rows) > 1)}: {first}{' ...' * (len(rows) > 5)} (the first is 1)"


class Columns:
    """One table of a `Source`.

    Args:
        table: The table.
        title: What errors call it: ``examples`` or a file name.
        first_row: Rows that stand before these in the file, of which this table is a piece.
    """

    def __init__(self, table: pa.Table, title: str, first_row: int = 0) -> None:
        self.table = table
        self.title = title
        self.first_row = first_row
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
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        return column.cast(pa.string()) if is_text(column.type) else column

    def error(
        self, name: str, what: str, bad: np.ndarray | None = None, *, allowed: str | None = None, fix: str | None = None
    ) -> GemkitError:
        """An error about column `name`; `bad` marks the rows at fault."""
        where = f"{self.title}, column {name}"
        if bad is not None:
            where += f", {shown_rows(np.flatnonzero(bad) + self.first_row)}"
        return GemkitError(what, where=where, allowed=allowed, fix=fix)

    def refuse_empty(self, name: str, column: pa.Array) -> None:
        """Raises if a cell is empty."""
        if column.null_count:
            raise self.error(
                name, f"column {name!r} has empty cells", as_array(column.is_null()), fix="fill them or drop the rows"
            )

    def numbers(self, name: str) -> np.ndarray:
        """Finite numbers, at most `MAX_NUMBER`. Shape: (rows,) float64, or float32 where the column is."""
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
        large = np.abs(values) > MAX_NUMBER
        if large.any():
            raise self.error(
                name,
                f"column {name!r} has the value {values[large][0]:g}, which is too large to compute with",
                large,
                allowed=f"numbers from {-MAX_NUMBER:g} to {MAX_NUMBER:g}",
                fix="scale the column, or take its logarithm",
            )
        return values

    def refuse_text(self, name: str) -> None:
        """Raises if a column has text that is no number."""
        self._as_numbers(name, self.raw(name))

    def refuse_outliers(self, feature: DenseFeature, values: np.ndarray) -> None:
        """Raises if a dense value is so far from the training split's that its standardised form is infinite."""
        far = ~np.isfinite(standardised(values, feature))
        if far.any():
            raise self.far(self.title, feature, float(values[far][0]), np.flatnonzero(far) + self.first_row)

    @staticmethod
    def far(title: str, feature: DenseFeature, value: float, rows: np.ndarray) -> GemkitError:
        """The error for rows (counted from 0) whose dense value, first `value`, is too far from training's."""
        return GemkitError(
            f"column {feature.name!r} has the value {value:g}, which is too far from the training split's"
            f" (mean {feature.mean:g}, deviation {feature.std:g}) to compute with",
            where=f"{title}, column {feature.name}, {shown_rows(rows)}",
            fix="clip the column, or take its logarithm",
        )

    def _as_numbers(self, name: str, column: pa.Array, row_of: np.ndarray | None = None) -> pa.Array:
        """float64, or float32 where the column is; `row_of` says to which row each entry belongs, if not to its own."""
        kind = column.type
        if pa.types.is_float32(kind) or pa.types.is_float64(kind):
            return column
        if pa.types.is_boolean(kind):
            column = column.cast(pa.int8())
        if (pa.types.is_primitive(column.type) and not pa.types.is_temporal(kind)) or pa.types.is_null(kind):
            return column.cast(pa.float64(), safe=False)  # a whole number above 2**53 is rounded
        if is_text(kind):
            values, bad = numbers_of(column)
            if not bad.any():
                return values
            shown = column[int(np.flatnonzero(bad)[0])].as_py()
            bad = self._rows(bad, row_of)
            raise self.error(name, f"column {name!r} holds text such as {short(shown)}", bad, allowed="numbers")
        raise self.error(name, f"column {name!r} has type {kind}", allowed="numbers")

    def _rows(self, bad: np.ndarray, row_of: np.ndarray | None) -> np.ndarray:
        """Marks the rows whose entries are marked. Shape: (entries,) -> (rows,) bool."""
        return bad if row_of is None else np.bincount(row_of[bad], minlength=self.num_rows) > 0

    def seconds(self, name: str) -> np.ndarray:
        """Seconds since 1970, rounded down. Shape: (rows,) int64."""
        column = self.raw(name)
        self.refuse_empty(name, column)
        kind = column.type
        if pa.types.is_date(kind):
            column = column.cast(pa.timestamp("s"))
        if pa.types.is_timestamp(column.type):
            units = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
            values = as_array(column.cast(pa.int64())) // units[column.type.unit]
        elif is_text(kind):
            parsed, bad = seconds_of(column)
            if bad.any():
                shown = column[int(np.flatnonzero(bad)[0])].as_py()
                raise self.error(
                    name,
                    f"column {name!r} holds {short(shown)}, which is not the time that the other rows lead to expect",
                    bad,
                    allowed="seconds since 1970 in all rows, or dates like 2026-01-31 or 2026-01-31 09:00:00 in all",
                )
            self.refuse_empty(name, parsed)
            values = as_array(parsed)
        elif pa.types.is_integer(kind):
            values = as_array(column)
        elif pa.types.is_boolean(kind):
            raise self.error(
                name, f"column {name!r} has type {kind}", allowed="seconds since 1970, or a date-time type"
            )
        else:
            values = as_array(self._as_numbers(name, column))
        bad = ~((values <= MAX_SECONDS) & (values >= -MAX_SECONDS))  # NaN is neither
        if bad.any():
            raise self.error(
                name,
                f"column {name!r} is not in seconds: {float(values[bad][0]):.15g}",
                bad,
                allowed="seconds since 1970 up to the year 5138, or a date-time type",
                fix="divide milliseconds by 1000",
            )
        seconds: np.ndarray = np.floor(values).astype(np.int64)
        return seconds

    def labels(self, name: str) -> np.ndarray:
        """0, 1, or -1 for an empty cell (a NaN is one, as pandas writes it). Shape: (rows,) int8."""
        column = self._as_numbers(name, self.raw(name))
        values = as_array(column.cast(pa.float64()).fill_null(np.nan))
        bad = ~(np.isnan(values) | (values == 0) | (values == 1))
        if bad.any():
            raise self.error(
                name, f"label {name!r} has the value {values[bad][0]:g}", bad, allowed="0, 1 or an empty cell"
            )
        return np.where(np.isnan(values), -1, values).astype(np.int8)

    def optional_numbers(self, name: str, low: float, high: float, what: str) -> pa.Array:
        """float64 from `low` to `high`, null where empty (a NaN is, as pandas writes it); `what` names them."""
        values = as_array(self._as_numbers(name, self.raw(name)).cast(pa.float64()).fill_null(np.nan))
        empty = np.isnan(values)
        bad = ~(empty | ((values >= low) & (values <= high)))
        if bad.any():
            problem = f"column {name!r} has the value {values[bad][0]:g}"
            raise self.error(name, problem, bad, allowed=f"{what} from {low:g} to {high:g}")
        return pa.array(values, mask=empty)

    def whole(self, name: str) -> np.ndarray:
        """Whole numbers that fit into 64 bits. Shape: (rows,) int64."""
        column = self.raw(name)
        self.refuse_empty(name, column)
        if is_text(column.type):
            parsed, bad = whole_of(column)
            if bad.any():
                shown = column[int(np.flatnonzero(bad)[0])].as_py()
                what = f"column {name!r} has type {column.type}: {short(shown)} is no whole number of 64 bits"
                raise self.error(name, what, bad, allowed="whole numbers")
            self.refuse_empty(name, parsed)
            return as_array(parsed)
        if not pa.types.is_integer(column.type):
            raise self.error(name, f"column {name!r} has type {column.type}", allowed="whole numbers")
        values = as_array(column)
        if values.dtype == np.uint64 and (values >= 2**63).any():
            bad = values >= 2**63
            raise self.error(name, f"column {name!r} has the value {values[bad][0]}", bad, allowed="less than 2**63")
        return values.astype(np.int64)

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
        row_of = np.repeat(np.arange(self.num_rows), as_array(pc.list_value_length(column).fill_null(0)))
        encoded = self._encode(name, flat(column), row_of)
        full = encoded.codes >= 0
        lengths = np.bincount(row_of[full], minlength=self.num_rows)
        return offsets_of(lengths), Codes(encoded.codes[full], encoded.values)

    def vectors(self, name: str, width: int) -> np.ndarray:
        """Vectors of one width; `width` 1 stands for "as wide as they are". Shape: (rows, width) float32."""
        column = self.raw(name)
        if not is_list(column.type):
            raise self.error(name, f"column {name!r} has type {column.type}", allowed="a list of numbers in each row")
        self.refuse_empty(name, column)
        lengths = as_array(pc.list_value_length(column))
        if width == 1 and len(lengths):
            width = int(np.bincount(lengths).argmax())  # what most rows have
        if (lengths != width).any() or not width:
            shown = ", ".join(str(n) for n in np.unique(lengths)[:5])
            raise self.error(
                name,
                f"column {name!r} has vectors of unequal width: {shown} numbers",
                lengths != width if width else lengths == 0,
                allowed=f"{width or 'one or more'} numbers in each row",
            )
        row_of = np.repeat(np.arange(self.num_rows), width)
        numbers = self._as_numbers(name, flat(column), row_of).cast(pa.float32(), safe=False)
        values = as_array(numbers.fill_null(np.nan)).reshape(-1, width)
        bad = ~(np.abs(values) <= MAX_NUMBER).all(axis=1)
        if bad.any():
            what = f"column {name!r} has NaN, infinite or empty numbers in its vectors, or too large ones"
            raise self.error(name, what, bad, allowed=f"numbers from {-MAX_NUMBER:g} to {MAX_NUMBER:g}")
        return values

    def _encode(self, name: str, column: pa.Array, row_of: np.ndarray | None = None) -> Codes:
        kind = column.type
        if pa.types.is_floating(kind):
            column = column.cast(pa.float64())
            values = as_array(column.fill_null(np.nan))
            bad = ~np.isnan(values) & ((values != np.floor(values)) | (np.abs(values) > MAX_FLOAT_ID))
            if bad.any():
                raise self.error(
                    name,
                    f"categorical column {name!r} has the value {values[bad][0]:g}",
                    self._rows(bad, row_of),
                    allowed="text or whole numbers; as a float, up to 2**53",
                    fix="declare it as dense, or store ids as text or whole numbers",
                )
            column = pa.array(np.nan_to_num(values).astype(np.int64), mask=np.isnan(values))
        elif not (is_text(kind) or pa.types.is_integer(kind) or pa.types.is_boolean(kind) or pa.types.is_null(kind)):
            raise self.error(name, f"categorical column {name!r} has type {kind}", allowed="text or whole numbers")
        encoded = column.cast(pa.string() if pa.types.is_null(kind) else column.type).dictionary_encode()
        codes = as_array(encoded.indices.fill_null(-1)).astype(np.int64)
        values = encoded.dictionary.cast(pa.string())
        blank = pc.index(values, "").as_py()
        return Codes(np.where(codes == blank, -1, codes) if blank >= 0 else codes, values)
