"""Reads large CSV and Parquet files piece by piece, with the types that a recipe wants."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

from gemkit.data.csvfile import header
from gemkit.data.files import UNREADABLE, check_columns, read_table
from gemkit.data.stage import told
from gemkit.data.streamfile import STREAMED
from gemkit.errors import GemkitError
from gemkit_datasets.local_files import LocalFile

BLOCK_BYTES = 1 << 23
"""Of a CSV file in one piece: 30,000 to 200,000 rows of the sets that are read here."""
BATCH_ROWS = 1 << 16

SPLIT = "split"
"""Column that `published_splits` adds."""


def read_pieces(path: Path, text: Sequence[str], numbers: Sequence[str]) -> Iterator[pa.Table]:
    """The named columns of a file: `text` as strings, an empty cell as "", and `numbers` as float64.

    Raises:
        GemkitError: The file lacks a column, or cannot be read as such.
    """
    row = 0
    try:
        batches = _parquet if path.suffix == ".parquet" else _csv
        for batch in batches(path, text, numbers):
            columns = {n: _as_text(batch[n]) for n in text} | {n: batch[n].cast(pa.float64()) for n in numbers}
            yield told(pa.table(columns), path.name, row)
            row += batch.num_rows
    except UNREADABLE as error:
        raise GemkitError(
            f"cannot read {path.name}: {str(error).strip().partition(chr(10))[0]}",
            where=f"{path}, after row {row:,}",
            allowed="numbers in " + ", ".join(numbers) if numbers else None,
            fix="the file is cut, damaged or another one: unpack it again",
        ) from error


def published_splits(
    files: Mapping[str, LocalFile], text: Sequence[str], numbers: Sequence[str], valid: float = 0.0
) -> Iterator[pa.Table]:
    """The files train, valid and test one after the other, with a column that says which.

    Args:
        valid: Where no file is called valid: the share of train's rows, the last of the file, that are taken for it.

    Raises:
        GemkitError: Train has too few rows to be parted.
    """
    for name, file in files.items():
        cut = file.rows
        if name == "train" and "valid" not in files:
            cut = file.rows - max(1, round(file.rows * valid))
            if cut < 1:
                raise GemkitError(f"{file.path.name} has {file.rows} rows", where=str(file.path), allowed="2 or more")
        row = 0
        for piece in read_pieces(file.path, text, numbers):
            late = np.arange(row, row + piece.num_rows) >= cut
            names = pa.array([name, "valid"]).take(pa.array(late.astype(np.int8)))
            yield piece.append_column(SPLIT, names)
            row += piece.num_rows


def read_whole(path: Path, text: Sequence[str]) -> pa.Table:
    """The named columns of a small file, as text.

    Raises:
        GemkitError: As `gemkit.data.files.read_table`.
    """
    table = read_table(path, text=text, numbers=[], others=[])
    return pa.table({name: _as_text(table[name].combine_chunks()) for name in text})


def _csv(path: Path, text: Sequence[str], numbers: Sequence[str]) -> Iterator[pa.RecordBatch]:
    names = [*text, *numbers]
    check_columns(path, header(path, ","), names)
    types = dict.fromkeys(text, pa.string()) | dict.fromkeys(numbers, pa.float64())
    with pyarrow.csv.open_csv(
        path,
        read_options=pyarrow.csv.ReadOptions(block_size=BLOCK_BYTES),
        convert_options=pyarrow.csv.ConvertOptions(column_types=types, include_columns=names, null_values=[""]),
    ) as reader:
        yield from (batch for batch in reader if batch.num_rows)


def _parquet(path: Path, text: Sequence[str], numbers: Sequence[str]) -> Iterator[pa.RecordBatch]:
    names = [*text, *numbers]
    with pyarrow.parquet.ParquetFile(path, **STREAMED) as file:
        check_columns(path, file.schema_arrow.names, names)
        yield from file.iter_batches(batch_size=BATCH_ROWS, columns=names)


def _as_text(column: pa.Array) -> pa.Array:
    if pa.types.is_dictionary(column.type):
        column = column.dictionary_decode()
    if pa.types.is_floating(column.type):
        column = column.cast(pa.int64())  # pandas writes ids as floats where some are missing
    return column.cast(pa.string()).fill_null("")
