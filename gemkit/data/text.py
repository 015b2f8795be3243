"""Text cells to numbers and times: every cell is read by one rule, and the cells that do not fit it are marked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

NUMBER = r"^(?i:[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)(e[+-]?[0-9]+)?|[+-]?(nan|inf|infinity))$"
WHOLE = r"^[+-]?[0-9]+$"
ZONE = r"(Z|[+-][0-9]{2}(:?[0-9]{2})?)$"
TIME = r"^[0-9]{4}-[0-9]{2}-[0-9]{2}([ T][0-9]{2}:[0-9]{2}(:[0-9]{2}(\.[0-9]+)?)?(Z|[+-][0-9]{2}(:?[0-9]{2})?)?)?$"


class Parsed(NamedTuple):
    """A column of text, read.

    Attributes:
        values: (rows,) of the wanted type; null where the cell is empty or bad.
        bad: (rows,) bool, the cells that hold something else.
    """

    values: pa.Array
    bad: np.ndarray


def numbers_of(column: pa.Array) -> Parsed:
    """float64; ``NaN`` and ``inf`` are numbers here. Digits are 0-9, the decimal point is a point."""

    def read(cells: pa.Array) -> pa.Array:
        try:
            return cells.cast(pa.float64())
        except pa.ArrowInvalid:  # beyond a float64's range
            return pa.array([float(v) for v in cells.to_pylist()], pa.float64())

    return _parsed(column, NUMBER, lambda cells: read(pc.replace_substring_regex(cells, r"^\+", "")), pa.float64())


def whole_of(column: pa.Array) -> Parsed:
    """int64; larger ones are bad."""
    return _parsed(
        column, WHOLE, lambda cells: pc.replace_substring_regex(cells, r"^\+", "").cast(pa.int64()), pa.int64()
    )


def seconds_of(column: pa.Array) -> Parsed:
    """float64 seconds since 1970 of a column that holds either numbers of seconds or dates and times, not both.

    A time without a zone is UTC; fractions of a second are cut off from dates and times.
    """
    numbers = numbers_of(column)
    if not numbers.bad.any():
        return numbers
    times = _parsed(column, TIME, _times, pa.float64())
    # The kind that most cells are of is what the column was meant to be.
    return times if times.bad.sum() <= numbers.bad.sum() else numbers


def _times(cells: pa.Array) -> pa.Array:
    cells = pc.replace_substring_regex(cells, r"\.[0-9]+", "")
    dates = pc.match_substring_regex(cells, r"^.{10}$")
    zoned = pc.and_(pc.match_substring_regex(cells, ZONE), pc.invert(dates))
    result = np.zeros(len(cells))
    for mask, kind in ((zoned, pa.timestamp("s", "UTC")), (pc.invert(zoned), pa.timestamp("s"))):
        chosen = mask.to_numpy(zero_copy_only=False)
        result[chosen] = cells.filter(mask).cast(kind).cast(pa.int64()).to_numpy(zero_copy_only=False)
    return pa.array(result)


def _parsed(column: pa.Array, pattern: str, read: Callable[[pa.Array], pa.Array], kind: Any) -> Parsed:
    """Reads the cells that match; if that fails as a whole, cell by cell, to see which are at fault."""
    filled = pc.fill_null(column.cast(pa.string()), "")
    full = pc.not_equal(filled, "").to_numpy(zero_copy_only=False)
    trimmed = pc.utf8_trim_whitespace(filled)
    good = full & pc.match_substring_regex(trimmed, pattern).to_numpy(zero_copy_only=False)
    cells = trimmed.filter(pa.array(good))
    try:
        found = read(cells)
    except pa.ArrowInvalid:
        readable = np.array([_reads(cells.slice(i, 1), read) for i in range(len(cells))], bool)
        good[np.flatnonzero(good)[~readable]] = False
        found = read(cells.filter(pa.array(readable)))
    values = np.zeros(len(column), kind.to_pandas_dtype())
    values[good] = found.to_numpy(zero_copy_only=False)
    return Parsed(pa.array(values, kind, mask=~good), full & ~good)


def _reads(cell: pa.Array, read: Callable[[pa.Array], pa.Array]) -> bool:
    try:
        read(cell)
    except pa.ArrowInvalid:
        return False
    return True
