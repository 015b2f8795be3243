"""Reads CSV, Parquet and Arrow files so that the same rows give the same table."""

from __future__ import annotations

import zlib
from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.feather
import pyarrow.parquet

from gemkit.data.arrays import is_text
from gemkit.data.csvfile import read_csv
from gemkit.errors import GemkitError, did_you_mean

FORMATS = ".csv, .tsv (also with .gz), .parquet, .arrow, .feather"

UNREADABLE = (pa.ArrowException, OSError, ValueError, EOFError, MemoryError, OverflowError, zlib.error)
"""What readers raise about a broken file. A wrong length in it can ask for any amount of memory."""


def read_table(
    path: Path, *, text: Iterable[str | None], numbers: Iterable[str | None], others: Iterable[str | None]
) -> pa.Table:
    """The named columns of a file.

    Args:
        text: Columns that a CSV must not turn into numbers: the zip code 01060 is not 1060.
        numbers: Columns of numbers; in a CSV they become float64, or text where they are written unusually.
        others: Columns of times and row ids. Those of a CSV stay text here; who uses them reads them.

    Raises:
        GemkitError: The file cannot be read, or has no such column or several of that name.
    """
    kinds = dict.fromkeys((c for c in (*others, *text) if c), pa.string())
    kinds |= {c: pa.float64() for c in numbers if c and c not in set(text)}
    kind = kind_of(path)
    try:
        if kind in (".csv", ".tsv"):
            return read_csv(path, "\t" if kind == ".tsv" else ",", kinds, check_columns)
        if kind == ".parquet":
            # Not `read_table`: it takes columns from the names of folders, too.
            file = pyarrow.parquet.ParquetFile(path, page_checksum_verification=True)
            check_columns(path, file.schema_arrow.names, kinds)
            table = file.read(columns=list(kinds))
        elif kind in (".arrow", ".feather"):
            table = pyarrow.feather.read_table(path)
            check_columns(path, table.column_names, kinds)
        else:
            raise GemkitError(f"{path.name} has an unknown format", where=str(path), allowed=FORMATS)
        table = table.select(list(kinds))
        table.validate(full=True)  # lengths and offsets come from the file
    except UNREADABLE as error:
        raise unreadable(path, error) from error
    return table


def unreadable(path: Path, error: BaseException) -> GemkitError:
    """The error for a file that a reader raised one of `UNREADABLE` about."""
    reason = str(error).strip().partition("\n")[0] or type(error).__name__
    return GemkitError(
        f"cannot read {path.name}: {reason}",
        where=str(path),
        allowed=FORMATS,
        fix="the file is cut, damaged or of another format: write it again",
    )


def kind_of(path: Path) -> str:
    """The ending that names the format, without .gz."""
    suffixes = [s.lower() for s in path.suffixes]
    return suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else (suffixes or [""])[-1]


def check_columns(path: Path, names: Sequence[str], wanted: Iterable[str]) -> None:
    """Raises if a file lacks a wanted column, or has several of that name."""
    for name in wanted:
        count = names.count(name)
        if count == 1:
            continue
        fix = did_you_mean(name, names) if count == 0 else "rename or drop one"
        for delimiter in ";\t|,":
            if count == 0 and len(names) == 1 and delimiter in names[0]:
                fix = f"the header seems to be parted by {delimiter!r}: .csv is parted by commas, .tsv by tabs"
        more = f" and {len(names) - 50} more" if len(names) > 50 else ""
        raise GemkitError(
            f"column {name!r} {'is missing' if count == 0 else 'appears more than once'}",
            where=path.name,
            allowed="the file's columns: " + ", ".join(names[:50]) + more,
            fix=fix,
        )


def with_lists(table: pa.Table, names: Sequence[str], separator: str) -> pa.Table:
    """Splits text columns that stand for lists; an empty cell becomes an empty list.

    Raises:
        GemkitError: The separator is empty.
    """
    if not separator:
        raise GemkitError("the separator is empty", where="data.separator", allowed="at least one character")
    for name in names:
        if name not in table.column_names:
            continue
        column = table[name].combine_chunks()
        if pa.types.is_dictionary(column.type):
            column = column.dictionary_decode()
        if not is_text(column.type):
            continue
        column = pc.fill_null(column.cast(pa.string()), "")
        parts = pc.split_pattern(column, separator)
        full = pc.not_equal(column, "")
        lengths = pc.if_else(full, pc.list_value_length(parts), 0).cast(pa.int64())
        starts = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(lengths)])
        cells = pc.utf8_trim_whitespace(pc.list_flatten(parts.filter(full)))
        table = table.set_column(table.column_names.index(name), name, pa.LargeListArray.from_arrays(starts, cells))
    return table
