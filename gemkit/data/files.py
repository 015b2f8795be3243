"""Reads CSV, Parquet and Arrow files so that the same rows give the same table."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet

from gemkit.data.columns import Columns, is_text
from gemkit.errors import GemkitError

FORMATS = ".csv, .tsv (also with .gz), .parquet, .arrow, .feather"


def read_table(
    path: Path, *, text: Iterable[str | None], numbers: Iterable[str | None], others: Iterable[str | None]
) -> pa.Table:
    """The named columns of a file, as far as it has them.

    Args:
        text: Columns that a CSV must not turn into numbers: the zip code 01060 is not 1060.
        numbers: Columns that a CSV must not guess from its first rows.
        others: Columns whose type a CSV may guess (whole numbers, dates).
    """
    text, numbers = [c for c in text if c], [c for c in numbers if c]
    wanted = {*text, *numbers, *(c for c in others if c)}
    suffixes = [s.lower() for s in path.suffixes]
    kind = suffixes[-2] if len(suffixes) > 1 and suffixes[-1] == ".gz" else (suffixes or [""])[-1]
    try:
        if kind in (".csv", ".tsv"):
            types = dict.fromkeys(numbers, pa.float64()) | dict.fromkeys(text, pa.string())
            table = _read_csv(path, "\t" if kind == ".tsv" else ",", types)
        elif kind == ".parquet":
            names = pyarrow.parquet.read_schema(path).names
            return pyarrow.parquet.read_table(path, columns=[n for n in names if n in wanted])
        elif kind in (".arrow", ".feather"):
            table = pyarrow.feather.read_table(path)
        else:
            raise GemkitError(f"{path.name} has an unknown format", where=str(path), allowed=FORMATS)
    except (pa.ArrowException, OSError) as error:
        raise GemkitError(f"cannot read {path.name}: {error}", where=str(path), allowed=FORMATS) from error
    return table.select([i for i, n in enumerate(table.column_names) if n in wanted])


def with_lists(table: pa.Table, names: Sequence[str], separator: str) -> pa.Table:
    """Splits text columns that stand for lists; an empty cell becomes an empty list."""
    for name in names:
        if name not in table.column_names or not is_text(table.schema.field(name).type):
            continue
        column = table[name].combine_chunks()
        parts = pc.split_pattern(pc.fill_null(column, ""), separator)
        lists = parts.filter(pc.not_equal(pc.fill_null(column, ""), ""))
        offsets = pc.if_else(pc.equal(pc.fill_null(column, ""), ""), 0, pc.list_value_length(parts))
        starts = pa.concat_arrays([pa.array([0], pa.int64()), pc.cumulative_sum(offsets.cast(pa.int64()))])
        lists = pa.LargeListArray.from_arrays(starts, pc.utf8_trim_whitespace(pc.list_flatten(lists)))
        table = table.set_column(table.column_names.index(name), name, lists)
    return table


def _read_csv(path: Path, delimiter: str, types: dict[str, pa.DataType]) -> pa.Table:
    parse = pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True)

    def convert(types: dict[str, pa.DataType]) -> pyarrow.csv.ConvertOptions:
        return pyarrow.csv.ConvertOptions(column_types=types, null_values=[""])

    try:
        return pyarrow.csv.read_csv(path, parse_options=parse, convert_options=convert(types))
    except pa.ArrowInvalid:
        # Either a row is broken, and one thread knows its number, or a cell is no number: then all can be read as text.
        one_thread = pyarrow.csv.ReadOptions(use_threads=False)
        names = pyarrow.csv.open_csv(path, one_thread, parse).schema.names
        table = pyarrow.csv.read_csv(path, one_thread, parse, convert(dict.fromkeys(names, pa.string())))
        columns = Columns(table, path.name)
        for name in names:
            if types.get(name) == pa.float64():
                columns.refuse_text(name)
        raise
