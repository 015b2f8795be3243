"""Damaged data, deterministic from a seed: bytes, CSV files, typed tables, and dataset folders with forged hashes.

Every function takes a `random.Random` and returns what kind of damage was done, and the damaged data. The kinds are
drawn evenly, so that a few hundred draws see all of them.
"""

from __future__ import annotations

import csv
import gzip
import io
import json
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa

from gemkit.data import storage
from gemkit.data.fetch import sha256_of

CELLS = (
    "", " ", "NaN", "nan", "inf", "-Infinity", "-1", "0", "1", "2", "0.5", "1e300", "1e400", "-1e31", "1e-320", "+1",
    " 1 ", "1.", ".5", "1,5", "1_000", "0x10", "\uff11", "007", "-0", "9007199254740993", "9223372036854775807",
    "9223372036854775808", "-9223372036854775809", "100000000001", "1700000000000", "-5", "2026-01-05",
    "2026-01-05 09:00:00", "1969-12-31T23:59:59.5Z", "2026-01-05T09:00:00+01:00", "2026-02-30", "05/01/2026", "09:00",
    "true", "False", "NULL", "None", "a,b", 'a"b', '"', "a\nb", "x\x00y", "\xe9", "\ufeff", "|", "a||b", "0.1|x",
    "0.1|0.2|0.3", "train", "tset", "../../etc/passwd", "=1+1",
)  # fmt: skip
"""Text for one cell: numbers at the edges, times that are none, quotes, and what spreadsheets leave behind."""

NUMBERS = (
    float("nan"),
    float("inf"),
    float("-inf"),
    -1.0,
    0.5,
    2.0,
    1e300,
    -1e31,
    2.0**53 + 2,
    2.0**63,
    1e11 + 1,
    None,
)
INTEGERS = (
    -1,
    0,
    1,
    2,
    2**31 - 1,
    2**31,
    -(2**31),
    2**53 + 1,
    2**63 - 1,
    -(2**63),
    10**11 + 1,
    1_700_000_000_000,
    None,
)

LEAVES: tuple[Any, ...] = (
    "../../etc/passwd", "/etc/passwd", "", "a.b", -1, 0, 1, 2, 10**12, 2**63, 1e300, None, True, [], {}, [[]],
)  # fmt: skip
"""Values for one place in a schema or manifest."""

Rows = list[list[str]]


def damaged_bytes(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damage that knows nothing of the format."""
    kind = rng.choice(("bit flipped", "bits flipped", "cut", "blocks swapped", "bytes overwritten", "block doubled",
                       "bytes inserted", "block zeroed", "start cut", "rubbish appended", "emptied"))  # fmt: skip
    at, length = rng.randrange(len(data)), rng.randint(1, max(1, len(data) // 8))
    changed = bytearray(data)
    if kind in ("bit flipped", "bits flipped"):
        for _ in range(1 if kind == "bit flipped" else 8):
            changed[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif kind == "cut":
        del changed[at:]
    elif kind == "start cut":
        del changed[:at]
    elif kind == "blocks swapped":
        other = rng.randrange(len(data))
        changed[at : at + length], changed[other : other + length] = (
            data[other : other + length],
            data[at : at + length],
        )
    elif kind == "bytes overwritten":
        changed[at : at + 4] = rng.randbytes(4)
    elif kind == "block doubled":
        changed[at:at] = data[at : at + length]
    elif kind == "bytes inserted":
        changed[at:at] = rng.randbytes(rng.randint(1, 8))
    elif kind == "block zeroed":
        changed[at : at + length] = bytes(len(data[at : at + length]))
    elif kind == "rubbish appended":
        changed += rng.randbytes(16)
    else:
        changed.clear()
    return kind, bytes(changed)


def damaged_csv(data: bytes, rng: random.Random) -> tuple[str, bytes]:
    """Damage to the rows, cells, layout or encoding of a CSV file in UTF-8."""
    rows = list(csv.reader(io.StringIO(data.decode("utf-8"), newline="")))
    kind = rng.choice((*CSV_ROWS, *CSV_LAYOUTS, "bytes"))
    if kind == "bytes":
        return damaged_bytes(data, rng)
    if kind in CSV_ROWS:
        CSV_ROWS[kind](rows, rng)
        return kind, written(rows)
    return kind, CSV_LAYOUTS[kind](rows, data, rng)


def written(rows: Rows, **options: Any) -> bytes:
    """Rows as CSV in UTF-8."""
    text = io.StringIO(newline="")
    csv.writer(text, lineterminator="\n", **options).writerows(rows)
    return text.getvalue().encode("utf-8")


def _row(rows: Rows, rng: random.Random) -> int:
    return rng.randrange(1, len(rows))


def _overwrite_cell(rows: Rows, rng: random.Random) -> None:
    row = rows[_row(rows, rng)]
    row[rng.randrange(len(row))] = rng.choice(CELLS)


def _overwrite_column(rows: Rows, rng: random.Random) -> None:
    column, value = rng.randrange(len(rows[0])), rng.choice(CELLS)
    for row in rows[1:]:
        row[column] = value


def _drop_column(rows: Rows, rng: random.Random) -> None:
    column = rng.randrange(len(rows[0]))
    for row in rows:
        del row[column]


def _double_column(rows: Rows, rng: random.Random) -> None:
    column = rng.randrange(len(rows[0]))
    for row in rows:
        row.append(row[column])


def _swap_cells(rows: Rows, rng: random.Random) -> None:
    row, (a, b) = rows[_row(rows, rng)], rng.sample(range(len(rows[0])), 2)
    row[a], row[b] = row[b], row[a]


def _rename_column(rows: Rows, rng: random.Random) -> None:
    column = rng.randrange(len(rows[0]))
    name = rows[0][column]
    rows[0][column] = rng.choice((name + " ", name.upper(), name[:-1], "", "é", "a.b", name + "\n", '"'))


def _shuffle(rows: Rows, rng: random.Random) -> None:
    body = rows[1:]
    rng.shuffle(body)
    rows[1:] = body


CSV_ROWS: dict[str, Callable[[Rows, random.Random], None]] = {
    "cell overwritten": _overwrite_cell,
    "column overwritten": _overwrite_column,
    "row dropped": lambda rows, rng: rows.__delitem__(_row(rows, rng)),
    "row doubled": lambda rows, rng: rows.insert(_row(rows, rng), list(rows[_row(rows, rng)])),
    "cell dropped": lambda rows, rng: rows[_row(rows, rng)].__delitem__(rng.randrange(len(rows[0]))),
    "cell added": lambda rows, rng: rows[_row(rows, rng)].append("x"),
    "cells swapped": _swap_cells,
    "column dropped": _drop_column,
    "column doubled": _double_column,
    "column renamed": _rename_column,
    "rows shuffled": _shuffle,
    "header only": lambda rows, rng: rows.__delitem__(slice(1, None)),
    "no header": lambda rows, rng: rows.__delitem__(0),
}

CSV_LAYOUTS: dict[str, Callable[[Rows, bytes, random.Random], bytes]] = {
    "delimiter": lambda rows, data, rng: written(rows, delimiter=rng.choice(";\t|")),
    "all quoted": lambda rows, data, rng: written(rows, quoting=csv.QUOTE_ALL),
    "crlf": lambda rows, data, rng: data.replace(b"\n", b"\r\n"),
    "cr": lambda rows, data, rng: data.replace(b"\n", b"\r"),
    "bom": lambda rows, data, rng: b"\xef\xbb\xbf" + data,
    "latin-1": lambda rows, data, rng: data.decode("utf-8").encode("latin-1"),
    "utf-16": lambda rows, data, rng: data.decode("utf-8").encode("utf-16"),
    "gzip": lambda rows, data, rng: gzip.compress(data, mtime=0),
    "quote opened": lambda rows, data, rng: _insert(data, rng, b",", b',"'),
    "blank line": lambda rows, data, rng: _insert(data, rng, b"\n", b"\n\n"),
    "no last newline": lambda rows, data, rng: data.rstrip(b"\n"),
}

HARMLESS = {"all quoted", "crlf", "bom", "blank line", "no last newline", "rows shuffled", "file as it was"}
"""Kinds that must be read, not refused: the same rows, written otherwise or in another order."""


def _insert(data: bytes, rng: random.Random, old: bytes, new: bytes) -> bytes:
    places = [i for i in range(len(data)) if data.startswith(old, i)]
    at = rng.choice(places)
    return data[:at] + new + data[at + len(old) :]


def damaged_table(table: pa.Table, rng: random.Random) -> tuple[str, pa.Table]:
    """Damage to types, cells, rows and columns of a typed table."""
    kind = rng.choice(("cell overwritten", "type changed", "row dropped", "row doubled", "column dropped",
                       "column doubled", "column renamed", "rows shuffled", "emptied"))  # fmt: skip
    column = rng.randrange(table.num_columns)
    name, rows = table.column_names[column], list(range(table.num_rows))
    if kind == "cell overwritten":
        return kind, table.set_column(column, name, _with_odd_cell(table.column(column).combine_chunks(), rng))
    if kind == "type changed":
        return kind, table.set_column(column, name, _of_another_type(table.column(column).combine_chunks(), rng))
    if kind == "row dropped":
        del rows[rng.randrange(len(rows))]
    elif kind == "row doubled":
        rows.insert(rng.randrange(len(rows)), rng.choice(rows))
    elif kind == "rows shuffled":
        rng.shuffle(rows)
    elif kind == "emptied":
        rows = []
    elif kind == "column dropped":
        return kind, table.drop_columns([name])
    elif kind == "column doubled":
        return kind, table.append_column(name, table.column(column))
    else:
        names = [*table.column_names]
        names[column] = rng.choice((name + " ", name.upper(), name[:-1], "", "a.b"))
        return kind, table.rename_columns(names)
    return kind, table.take(pa.array(rows, pa.int64()))


def _with_odd_cell(values: pa.Array, rng: random.Random) -> pa.Array:
    cells, at, kind = values.to_pylist(), rng.randrange(len(values)), values.type
    if pa.types.is_floating(kind):
        cells[at] = rng.choice(NUMBERS)
    elif pa.types.is_integer(kind):
        low = -(2 ** (kind.bit_width - 1)) if pa.types.is_signed_integer(kind) else 0
        fits = [n for n in INTEGERS if n is None or low <= n < 2**kind.bit_width + low]
        cells[at] = rng.choice(fits)
    elif pa.types.is_fixed_size_list(kind):
        cells[at] = rng.choice((None, [rng.choice(NUMBERS)] * kind.list_size))
    elif pa.types.is_large_list(kind):
        cells[at] = rng.choice(([], None, cells[at] * 2, [rng.choice((-1, 0, 1, 2**31 - 1, -(2**31)))]))
    elif pa.types.is_list(kind):
        number = pa.types.is_floating(kind.value_type)
        cells[at] = rng.choice(
            ([], None, cells[at][:1], [*cells[at], *cells[at]], [rng.choice(NUMBERS if number else CELLS)])
        )
    else:
        cells[at] = rng.choice((*CELLS, None))
    return pa.array(cells, kind)


def _of_another_type(values: pa.Array, rng: random.Random) -> pa.Array:
    kinds = [
        pa.string(), pa.large_string(), pa.string_view(), pa.binary(), pa.int8(), pa.int64(), pa.uint64(), pa.float32(),
        pa.float64(), pa.bool_(), pa.timestamp("s"), pa.timestamp("ns"), pa.timestamp("us", "UTC"), pa.date32(),
        pa.decimal128(30, 3), pa.null(), pa.list_(values.type), pa.dictionary(pa.int32(), values.type),
    ]  # fmt: skip
    rng.shuffle(kinds)
    for kind in kinds:
        try:
            if pa.types.is_null(kind):
                return pa.nulls(len(values))
            if pa.types.is_list(kind):
                return pa.array([[cell] for cell in values.to_pylist()], kind)
            return values.dictionary_encode() if pa.types.is_dictionary(kind) else values.cast(kind)
        except pa.ArrowException:
            continue
    return values


def forge_folder(folder: Path, rng: random.Random) -> str:
    """Changes a value in a dataset folder and mends hashes and digest, as someone would who means harm."""
    kind = rng.choice(("forged table", "forged table", "forged schema", "forged manifest"))
    path = folder / storage.MANIFEST
    manifest = json.loads(path.read_text(encoding="utf-8"))
    if kind == "forged table":
        file = folder / rng.choice(sorted(n for n in manifest["files"] if n.endswith(".arrow")))
        table = pa.ipc.open_file(pa.OSFile(str(file))).read_all()
        if rng.random() < 0.5:
            column = rng.randrange(table.num_columns)
            odd = _with_odd_number(table.column(column).combine_chunks(), rng)
            table = table.set_column(column, table.column_names[column], odd)
        else:
            table = damaged_table(table, rng)[1]
        storage.write_table(table, file)
    else:
        schema = folder / storage.schema_file(len(manifest["segments"]) - 1)
        target = schema if kind == "forged schema" else path
        value = manifest if target == path else json.loads(target.read_text(encoding="utf-8"))
        _overwrite_leaf(value, rng)
        storage.write_json(value, target)
    if isinstance(manifest.get("files"), dict):
        for name in manifest["files"]:
            if storage.is_file_name(name) and (folder / name).is_file():
                manifest["files"][name] = sha256_of(folder / name)
    storage.write_json(manifest | {"digest": storage.digest_of(manifest)}, path)
    return kind


def _with_odd_number(values: pa.Array, rng: random.Random) -> pa.Array:
    """One number inside a column, lists included, replaced by one at the edges of its type."""
    if pa.types.is_large_list(values.type):
        return pa.LargeListArray.from_arrays(values.offsets, _with_odd_number(values.values, rng))
    if pa.types.is_fixed_size_list(values.type):
        return pa.FixedSizeListArray.from_arrays(_with_odd_number(values.values, rng), values.type.list_size)
    return _with_odd_cell(values, rng) if len(values) else values


def _overwrite_leaf(value: Any, rng: random.Random) -> None:
    while True:
        keys = list(value) if isinstance(value, dict) else list(range(len(value)))
        key = rng.choice(keys)
        if isinstance(value[key], dict | list) and value[key] and rng.random() < 0.9:
            value = value[key]
            continue
        value[key] = rng.choice(LEAVES)
        return
