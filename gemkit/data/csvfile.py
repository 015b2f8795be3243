"""Reads a CSV file: the chosen columns by their declared types, nothing guessed, and what is broken named by row."""

from __future__ import annotations

import csv
import gzip
import io
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, cast

import numpy as np
import pyarrow as pa
import pyarrow.csv

from gemkit.data.columns import Columns
from gemkit.errors import GemkitError

MAGIC = {
    b"\x1f\x8b": ("compressed with gzip", "end its name with .csv.gz"),
    b"PK\x03\x04": ("a zip or an Excel file", "save it as CSV"),
    b"PAR1": ("a Parquet file", "end its name with .parquet"),
    b"ARROW1": ("an Arrow file", "end its name with .arrow"),
    b"\xff\xfe": ("text in UTF-16", "save it as UTF-8"),
    b"\xfe\xff": ("text in UTF-16", "save it as UTF-8"),
}

CheckColumns = Callable[[Path, Sequence[str], Any], None]


def read_csv(path: Path, delimiter: str, types: dict[str, Any], check_columns: CheckColumns) -> pa.Table:
    """The columns that `types` names: text, or float64. Empty cells are null, or empty text.

    A column of numbers that Arrow's reader does not take (``+1``) comes as text; `Columns` reads it.

    Raises:
        GemkitError: The file is not text in UTF-8, a row is broken, or a cell is no number.
    """
    check_columns(path, header(path, delimiter), types)
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)

    def read(types: dict[str, Any], threads: bool) -> pa.Table:
        convert = pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(types), null_values=[""])
        return pyarrow.csv.read_csv(path, pyarrow.csv.ReadOptions(use_threads=threads), parse, convert)

    try:
        table = read(types, True)
    except pa.ArrowInvalid:
        # Either a row is broken, and one thread knows its number, or a cell is, and bytes can always be read.
        check_quotes(path, delimiter, None)
        try:
            table = read(dict.fromkeys(types, pa.binary()), False)
        except pa.ArrowInvalid as error:
            raise _broken_row(path, str(error)) from error
        table = _decoded(table, path.name)
        for name in (n for n, kind in types.items() if kind == pa.float64()):
            Columns(table, path.name).refuse_text(name)
    check_quotes(path, delimiter, table.num_rows)
    return table


def stream_csv(path: Path, delimiter: str, names: Sequence[str], block_bytes: int) -> Iterator[pa.Table]:
    """The named columns as text, piece by piece; who uses a column reads its numbers, and names the rows at fault.

    Raises:
        GemkitError: As `read_csv`, when the piece is reached.
    """

    def read(threads: bool) -> Iterator[pa.Table]:
        options = pyarrow.csv.ReadOptions(block_size=block_bytes, use_threads=threads)
        parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)
        # Bytes can always be read; which of them are no text is told by row.
        types = dict.fromkeys(names, pa.binary())
        convert = pyarrow.csv.ConvertOptions(column_types=types, include_columns=list(names), null_values=[""])
        with pyarrow.csv.open_csv(path, options, parse, convert) as reader:
            for batch in reader:
                yield pa.table(batch)

    num_rows = 0
    try:
        for piece in read(True):
            yield _decoded(piece, path.name, num_rows)
            num_rows += piece.num_rows
    except pa.ArrowInvalid:
        check_quotes(path, delimiter, None)
        try:
            for _ in read(False):  # one thread knows the number of the row
                pass
        except pa.ArrowInvalid as error:
            raise _broken_row(path, str(error)) from error
        raise
    check_quotes(path, delimiter, num_rows)


def _open(path: Path) -> IO[bytes]:
    packed = path.suffix.lower() == ".gz"
    return cast(IO[bytes], gzip.open(path, "rb")) if packed else path.open("rb")


def header(path: Path, delimiter: str) -> list[str]:
    """The names of the columns.

    Raises:
        GemkitError: The file is no text in UTF-8, or empty.
    """
    with _open(path) as file:
        start = file.read(8)
    for magic, (what, fix) in MAGIC.items():
        if start.startswith(magic):
            raise GemkitError(f"{path.name} is {what}", where=str(path), allowed="text in UTF-8", fix=fix)
    with (
        _open(path) as file,
        io.TextIOWrapper(file, encoding="utf-8-sig", newline="", errors="surrogateescape") as text,
    ):
        try:
            names = next((row for row in csv.reader(text, delimiter=delimiter) if row), [])
        except csv.Error as error:
            raise GemkitError(f"cannot read the header of {path.name}: {error}", where=str(path)) from error
    if not names:
        raise GemkitError(f"{path.name} is empty", where=str(path), allowed="a header line, then rows")
    bad = [name for name in names if any("\udc80" <= c <= "\udcff" for c in name)]
    if bad:
        shown = bad[0].encode("utf-8", "surrogateescape")
        raise GemkitError(
            f"the header has bytes that are not UTF-8: {shown!r}", where=str(path), fix="save the file as UTF-8"
        )
    return names


def _decoded(table: pa.Table, title: str, first_row: int = 0) -> pa.Table:
    """Bytes to text, or an error that names the cells that are no UTF-8."""
    for i, name in enumerate(table.column_names):
        try:
            text = table.column(i).cast(pa.string())
        except pa.ArrowInvalid as error:
            cells = table.column(i).to_pylist()
            bad = np.array([not _is_utf8(cell) for cell in cells], bool)
            shown = cells[int(np.flatnonzero(bad)[0])][:60]
            raise Columns(table, title, first_row).error(
                name, f"column {name!r} has bytes that are not UTF-8: {shown!r}", bad, fix="save the file as UTF-8"
            ) from error
        table = table.set_column(i, name, text)
    return table


def _is_utf8(cell: bytes) -> bool:
    try:
        cell.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _broken_row(path: Path, message: str) -> GemkitError:
    """Arrow's error about a row, with rows counted as gemkit counts them: the header is none."""
    match = re.search(r"Row #(\d+): (.*)", message, re.DOTALL)
    if match is None:
        return GemkitError(f"cannot read {path.name}: {message}", where=str(path))
    return GemkitError(
        f"cannot read {path.name}: {match[2].strip()[:200]}",
        where=f"{path.name}, row {int(match[1]) - 1} (the first is 1)",
        fix="mend the row: a cell with a comma or a line break stands in quotes; a file may also have been cut",
    )


def check_quotes(path: Path, delimiter: str, num_rows: int | None) -> None:
    """Raises if a quote is not closed: Arrow's reader would take the rest of the file for one cell in silence."""
    with _open(path) as file:
        if not any(b'"' in chunk for chunk in iter(lambda: file.read(1 << 20), b"")):
            return
    # Quotes, delimiters and line ends are ASCII, so any encoding that keeps ASCII will do.
    with _open(path) as file, io.TextIOWrapper(file, encoding="latin-1", newline="") as text:
        rows = -1  # the header
        try:
            for row in csv.reader(text, delimiter=delimiter, strict=True):
                rows += bool(row)
        except csv.Error as error:
            raise GemkitError(
                f"cannot read {path.name}: a quote is not closed, or not doubled inside quotes ({error})",
                where=f"{path.name}, row {rows + 1} (the first is 1)",
                fix="close the quote; inside a cell in quotes, write a quote twice",
            ) from error
    if num_rows is not None and rows != num_rows:
        raise GemkitError(
            f"{path.name} can be read as {num_rows:,} rows and as {rows:,}", where=str(path), fix="check its quotes"
        )
