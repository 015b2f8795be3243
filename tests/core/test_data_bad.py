"""Bad data is refused with a message that names it, or read by a documented rule; never silently wrong."""

from __future__ import annotations

import gzip
import importlib.util
import json
import os
import re
import stat
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch
from gemkit_datasets import movielens_files
from gemkit_datasets.movielens import MovieLens1M, MovieLens1MConfig
from gemkit_datasets.table import TableConfig, TableRecipe

from gemkit.component import spec_of
from gemkit.config.fields import from_mapping
from gemkit.data import storage, verify
from gemkit.data.columns import Columns
from gemkit.data.dataset import Dataset
from gemkit.data.encode import encode_examples
from gemkit.data.fetch import sha256_of
from gemkit.data.prepare import prepare
from gemkit.data.text import numbers_of, seconds_of, whole_of
from gemkit.errors import GemkitError
from gemkit.metrics.functional import auc
from gemkit.testing.data import make_dataset

ROOT = Path(__file__).resolve().parents[2]
LINES = """user,item,tags,price,vector,click,time,weight,id
u1,i1,a|b,1.5,1|2,1,1000,1,10
u1,i2,,2,1|2,0,1000,1,11
u2,i1,a,3,1|2,1,1010,1,12
u2,i3,b,1,1|2,0,1020,1,13
u1,i3,b,1,1|2,1,1030,1,14
u3,i1,a,2,1|2,0,1040,1,15
u1,i2,,4,1|2,,1050,1,16
u2,i2,,2,1|2,1,1060,1,17
u3,i3,b,1,1|2,0,1070,1,18
"""
EVENTS = "user,item,time\nu1,i1,900\nu2,i2,905\nu1,i2,910\n"
DECLARED = {
    "timestamp": "time",
    "categorical": [{"name": "item"}, {"name": "tags", "multi": True}],
    "dense": [{"name": "price"}],
    "vectors": [{"name": "vector"}],
    "tasks": [{"name": "click"}],
    "weight": "weight",
    "example_id": "id",
    "group": "user",
}
WITH_EVENTS = {"user": "user", "event_fields": [{"name": "item"}]}


def silent(*args) -> None:
    pass


def opened(place: Path, examples: str = "t.csv", **changes) -> Dataset:
    values = DECLARED | {"root": str(place / "datasets"), "examples": str(place / examples), "folder": "d"} | changes
    return prepare(spec_of(TableRecipe), from_mapping(TableConfig, values), silent, silent)


def refused(folder: Path, examples: str = "t.csv", **changes) -> GemkitError:
    """The error; nothing is left but the lock."""
    with pytest.raises(GemkitError) as caught:
        opened(folder, examples, **changes)
    assert [p.name for p in (folder / "datasets").rglob("*") if not p.name.endswith(".lock") and p.is_file()] == []
    return caught.value


def write(folder: Path, text: str | bytes, name: str = "t.csv") -> None:
    (folder / name).write_bytes(text.encode() if isinstance(text, str) else text)


# --- CSV files: the cells --------------------------------------------------------------------------------------

HUGE = "9" * 25
BAD_CELLS = [
    ("2,1|2,0,1040,1,15", "NaN,1|2,0,1040,1,15", "'price' has NaN or infinite values", "price, 1 row: 6 "),
    ("2,1|2,0,1040,1,15", "-inf,1|2,0,1040,1,15", "'price' has NaN or infinite values", "price, 1 row: 6 "),
    ("2,1|2,0,1040,1,15", ",1|2,0,1040,1,15", "'price' has empty cells", "price, 1 row: 6 "),
    ("2,1|2,0,1040,1,15", "1e300,1|2,0,1040,1,15", "'price' has the value 1e+300, which is too large", "1 row: 6 "),
    ("2,1|2,0,1040,1,15", "1e400,1|2,0,1040,1,15", "'price' has NaN or infinite values", "1 row: 6 "),
    ("2,1|2,0,1040,1,15", "1_000,1|2,0,1040,1,15", "'price' holds text such as '1_000'", "1 row: 6 "),
    ("2,1|2,0,1040,1,15", '"1,5",1|2,0,1040,1,15', "'price' holds text such as '1,5'", "1 row: 6 "),
    ("2,1|2,0,1040,1,15", "0x10,1|2,0,1040,1,15", "'price' holds text such as '0x10'", "1 row: 6 "),
    ("2,1|2,0,1040,1,15", "2,1|2,2,1040,1,15", "label 'click' has the value 2", "click, 1 row: 6 "),
    ("2,1|2,0,1040,1,15", "2,1|2,inf,1040,1,15", "label 'click' has the value inf", "click, 1 row: 6 "),
    ("2,1|2,0,1040,1,15", "2,1|2,yes,1040,1,15", "'click' holds text such as 'yes'", "click, 1 row: 6 "),
    ("2,1|2,0,1040,1,15", "2,1|2|3,0,1040,1,15", "vectors of unequal width: 2, 3", "vector, 1 row: 6 "),
    ("1.5,1|2,1,1000,1,10", "1.5,1|2|3,1,1000,1,10", "vectors of unequal width: 2, 3", "vector, 1 row: 1 "),
    ("2,1|2,0,1040,1,15", "2,1|x,0,1040,1,15", "'vector' holds text such as 'x'", "vector, 1 row: 6 "),
    ("2,1|2,0,1040,1,15", "2,1|nan,0,1040,1,15", "'vector' has NaN, infinite", "vector, 1 row: 6 "),
    ("2,1|2,0,1040,1,15", "2,1|2,0,,1,15", "'time' has empty cells", "time, 1 row: 6 "),
    ("2,1|2,0,1040,1,15", "2,1|2,0,soon,1,15", "'time' holds 'soon'", "time, 1 row: 6 "),
    ("2,1|2,0,1040,1,15", "2,1|2,0,2026-01-05,1,15", "'time' holds '2026-01-05'", "time, 1 row: 6 "),
    ("2,1|2,0,1040,1,15", "2,1|2,0,1700000000000,1,15", "'time' is not in seconds: 1700000000000", "1 row: 6 "),
    ("2,1|2,0,1040,1,15", f"2,1|2,0,-{HUGE},1,15", "'time' is not in seconds: -1e+25", "1 row: 6 "),
    ("2,1|2,0,1040,1,15", "2,1|2,0,nan,1,15", "'time' is not in seconds: nan", "1 row: 6 "),
    ("2,1|2,0,1040,1,15", "2,1|2,0,1040,-1,15", "weights are negative", "weight, 1 row: 6 "),
    ("2,1|2,0,1040,1,15", "2,1|2,0,1040,1,14", "example id 14 appears twice", "id, 2 rows: 5, 6 "),
    ("2,1|2,0,1040,1,15", "2,1|2,0,1040,1,1.5", "'1.5' is no whole number", "id, 1 row: 6 "),
    ("2,1|2,0,1040,1,15", f"2,1|2,0,1040,1,{2**63}", f"'{2**63}' is no whole number of 64 bits", "id, 1 row: 6 "),
    ("2,1|2,0,1040,1,15", "2,1|2,0,1040,1,", "'id' has empty cells", "id, 1 row: 6 "),
    ("u3,i1,a", ",i1,a", "'user' has empty cells", "user, 1 row: 6 "),
]


@pytest.mark.parametrize(("old", "new", "what", "where"), BAD_CELLS, ids=[f"{b[2]} {b[1][:20]}" for b in BAD_CELLS])
def test_bad_cells_are_named(tmp_path, old, new, what, where):
    write(tmp_path, LINES.replace(old, new))
    error = refused(tmp_path)
    assert what in error.what and where in error.where and error.where.startswith("t.csv")


def test_all_weights_zero_teach_nothing(tmp_path):
    write(tmp_path, re.sub(r",1,(\d\d)\n", r",0,\1\n", LINES))
    assert "all weights of the train split are 0" in refused(tmp_path).what


def test_dates_that_are_none_are_named(tmp_path):
    dated = re.sub(r",10(\d)0,1,", r",2026-01-0\g<1> 09:00,1,", LINES).replace("2026-01-00", "2025-12-30")
    write(tmp_path, dated)
    assert opened(tmp_path).columns[storage.TIMESTAMP][2] == 1_767_258_000
    write(tmp_path, dated.replace("2026-01-04 09:00", "2026-02-30 09:00"))
    with pytest.raises(GemkitError, match="'time' holds '2026-02-30 09:00'") as caught:
        opened(tmp_path)
    assert "1 row: 6 " in caught.value.where


# --- CSV files: the layout -------------------------------------------------------------------------------------

CUT = LINES[: LINES.index("u2,i2,,2,1|2,1") + 9]
BAD_FILES = [
    ("cut in a row", CUT, "Expected 9 columns, got 5", "t.csv, row 8 "),
    ("a row too long", LINES.replace("1,14\n", "1,14,x\n"), "Expected 9 columns, got 10", "t.csv, row 5 "),
    ("quote not closed", LINES.replace("u2,i3", 'u2,"i3'), "a quote is not closed", "t.csv, row 4 "),
    ("quote not doubled", LINES.replace("u2,i3", 'u2,"i"3'), "not doubled inside quotes", "t.csv, row 4 "),
    ("empty", "", "t.csv is empty", "t.csv"),
    ("only blank lines", "\n\n", "t.csv is empty", "t.csv"),
    ("header only", LINES.splitlines()[0] + "\n", "there are no examples", "t.csv"),
    ("no header", LINES.partition("\n")[2], "column 'time' is missing", "t.csv"),
    ("semicolons", LINES.replace(",", ";"), "column 'time' is missing", "t.csv"),
    ("missing column", LINES.replace("price", "prize"), "column 'price' is missing", "t.csv"),
    (
        "column twice",
        re.sub(r"(\d)\n", r"\1,7\n", LINES).replace("id\n", "id,price\n"),
        "column 'price' appears more than once",
        "t.csv",
    ),
    (
        "latin-1 cell",
        LINES.replace("i3", "é").encode("latin-1"),
        "'item' has bytes that are not UTF-8",
        "3 rows: 4, 5, 9 ",
    ),
    ("latin-1 header", LINES.replace("user", "usér").encode("latin-1"), "header has bytes that are not", "t.csv"),
    ("utf-16", LINES.encode("utf-16"), "is text in UTF-16", "t.csv"),
    ("gzip by another name", gzip.compress(LINES.encode()), "is compressed with gzip", "t.csv"),
    ("excel", b"PK\x03\x04" + LINES.encode(), "an Excel file", "t.csv"),
    ("parquet by another name", b"PAR1" + LINES.encode(), "is a Parquet file", "t.csv"),
]


@pytest.mark.parametrize(("text", "what", "where"), [b[1:] for b in BAD_FILES], ids=[b[0] for b in BAD_FILES])
def test_bad_files_are_explained(tmp_path, text, what, where):
    write(tmp_path, text)
    error = refused(tmp_path)
    assert what in error.what and where in error.where


def test_a_wrong_delimiter_and_a_misspelling_get_a_hint(tmp_path):
    write(tmp_path, LINES.replace(",", ";"))
    assert "parted by ';'" in refused(tmp_path).fix
    write(tmp_path, LINES.replace("price", "prize"))
    error = refused(tmp_path)
    assert error.fix == "did you mean 'prize'?" and "vector, click" in error.allowed


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t.replace(b"\n", b"\r\n"),
        lambda t: b"\xef\xbb\xbf" + t,
        lambda t: t.rstrip(b"\n"),
        lambda t: t.replace(b"\nu2", b"\n\nu2"),
        lambda t: t.replace(b"i1", b'"i1"'),
        lambda t: t.replace(b",2,1|2", b",+2,1|2"),
        lambda t: t.replace(b",2,1|2", b", 2.0 ,1|2"),
        lambda t: t.replace(b",1040,", b",1.04e3,"),
    ],
    ids=["crlf", "bom", "no last newline", "blank lines", "quotes", "plus", "spaces", "exponent"],
)
def test_harmless_differences_of_layout_are_read(tmp_path, change):
    write(tmp_path, LINES)
    wanted = opened(tmp_path).fingerprint
    write(tmp_path, change(LINES.encode()))
    assert opened(tmp_path).fingerprint == wanted


def test_columns_that_are_not_named_may_hold_anything(tmp_path):
    lines = LINES.encode().splitlines()
    write(tmp_path, b"\n".join([lines[0] + b",note", *(line + b",caf\xe9" for line in lines[1:])]) + b"\n")
    assert opened(tmp_path).num_examples == 9


@pytest.mark.parametrize("cut", [0.3, 0.9])
@pytest.mark.parametrize("name", ["t.csv.gz", "t.parquet", "t.arrow", "t.feather"])
def test_cut_files_are_refused(tmp_path, name, cut):
    path = tmp_path / name
    if name == "t.csv.gz":
        path.write_bytes(gzip.compress(LINES.encode()))
    else:
        table = pa.table({"item": ["i"] * 999, "click": [0, 1, 0] * 333, "time": list(range(999))})
        pyarrow.parquet.write_table(table, path) if name == "t.parquet" else storage.write_table(table, path)
    data = path.read_bytes()
    path.write_bytes(data[: int(cut * len(data))])
    error = refused(tmp_path, name)
    assert error.what.startswith(f"cannot read {name}") and error.where.endswith(name)


def test_a_damaged_parquet_page_is_noticed_where_the_file_has_checksums(tmp_path):
    path = tmp_path / "t.parquet"
    table = pa.table({"item": ["i"] * 99, "click": [0, 1, 0] * 33, "time": list(range(5000, 5099))})
    pyarrow.parquet.write_table(table, path, write_page_checksum=True, compression="none", use_dictionary=False)
    data = bytearray(path.read_bytes())
    data[data.index((5050).to_bytes(8, "little"))] ^= 1
    path.write_bytes(data)
    only = {k: v for k, v in DECLARED.items() if k in ("timestamp", "tasks")} | {"categorical": [{"name": "item"}]}
    values = only | {"root": str(tmp_path / "datasets"), "examples": str(path)}
    with pytest.raises(GemkitError, match=r"cannot read t\.parquet"):
        prepare(spec_of(TableRecipe), from_mapping(TableConfig, values), silent, silent)


# --- types and single columns ------------------------------------------------------------------------------------


def column(values, kind=None) -> Columns:
    return Columns(pa.table({"c": pa.array(values, kind)}), "t")


@pytest.mark.parametrize(
    ("values", "kind", "texts"),
    [
        ([-1, 2**63 - 1], pa.int64(), ["-1", str(2**63 - 1)]),
        ([2**63, 2**64 - 1], pa.uint64(), [str(2**63), str(2**64 - 1)]),
        ([-1.0, 2.0**53, float("nan")], pa.float64(), ["-1", str(2**53)]),
        (["-1", "1e300", " x "], pa.string(), ["-1", "1e300", " x "]),
        (["a", "b"], pa.string_view(), ["a", "b"]),
        ([True, False], pa.bool_(), ["true", "false"]),
    ],
)
def test_ids_are_text_however_odd(values, kind, texts):
    codes = column(values, kind).codes("c")
    assert [codes.values[i].as_py() for i in codes.codes if i >= 0] == texts


@pytest.mark.parametrize("value", [1e300, float("inf"), 2.0**53 + 2, 0.5])
def test_floats_that_are_no_ids_are_refused(value):
    with pytest.raises(GemkitError, match="categorical column 'c' has the value"):
        column([1.0, value]).codes("c")
    with pytest.raises(GemkitError, match="categorical column 'c'") as caught:
        column([[1.0], [], [2.0, value]]).bags("c")
    assert "1 row: 3 " in caught.value.where


@pytest.mark.parametrize(
    ("values", "kind"),
    [
        ([b"x"], pa.binary()),
        ([1], pa.timestamp("s")),
        ([{"a": 1}], None),
        ([1], pa.duration("s")),
    ],
)
def test_types_that_are_no_ids_or_numbers_are_refused(values, kind):
    with pytest.raises(GemkitError, match="has type"):
        column(values, kind).codes("c")
    with pytest.raises(GemkitError, match="has type"):
        column(values, kind).numbers("c")


def test_whole_numbers_beyond_53_bits_are_rounded_as_dense_and_kept_as_row_ids():
    assert column([2**53 + 1]).numbers("c")[0] == 2.0**53
    assert column([2**53 + 1]).whole("c")[0] == 2**53 + 1
    with pytest.raises(GemkitError, match="has the value 9223372036854775808"):
        column([2**63], pa.uint64()).whole("c")


def test_times_of_all_kinds_are_rounded_down():
    assert column([-1500, -500, 1500], pa.timestamp("ms")).seconds("c").tolist() == [-2, -1, 1]
    assert column([-1.5, -0.5, 1.5]).seconds("c").tolist() == [-2, -1, 1]
    assert column(["1969-12-31T23:59:59.5Z", "1970-01-01 01:00:00+01:00"]).seconds("c").tolist() == [-1, 0]
    assert column(["1970-01-01", "1969-12-31"]).seconds("c").tolist() == [0, -86400]
    assert column([-(10**11), 10**11]).seconds("c").tolist() == [-(10**11), 10**11]
    for bad in ([10**11 + 1], [-(2**63)], [2**63 - 1], [1e300], [float("nan")], [253_402_300_799]):
        with pytest.raises(GemkitError, match="is not in seconds"):
            column(bad).seconds("c")
    with pytest.raises(GemkitError, match="has type bool"):
        column([True]).seconds("c")


def test_text_is_read_by_one_rule_whatever_stands_around_it():
    values, bad = numbers_of(pa.array(["1", "+2.5", " 3 ", "", None, "1e400", "x", "1_0", "\uff11", " ", "NaN"]))
    assert values.to_pylist()[:5] == [1, 2.5, 3, None, None] and values[5].as_py() == float("inf")
    assert bad.tolist() == [False] * 6 + [True] * 4 + [False]
    values, bad = whole_of(pa.array(["7", "+7", "-0", "0x10", "7.0", str(2**63)]))
    assert values.to_pylist()[:3] == [7, 7, 0] and bad.tolist() == [False] * 3 + [True] * 3
    values, bad = seconds_of(pa.array(["1970-01-02", "1970-01-01T00:00:01Z", "9", "1970-13-01"]))
    assert values.to_pylist() == [86400, 1, None, None] and bad.tolist() == [False, False, True, True]


def test_labels_of_nan_are_masked_as_pandas_writes_them(tmp_path):
    assert column([1.0, float("nan"), None, 0.0]).labels("c").tolist() == [1, -1, -1, 0]


def test_a_value_far_from_the_training_split_is_refused_before_it_is_infinite(tmp_path):
    constant = re.sub(r"(u\d,i\d,[a|b]*,)[\d.]+,", r"\g<1>1,", LINES)
    nearly = constant.replace("u1,i1,a|b,1,", "u1,i1,a|b,1.0000000001,")
    write(tmp_path, nearly.replace("u3,i3,b,1,", "u3,i3,b,1e30,"))
    error = refused(tmp_path)
    assert "too far from the training split's" in error.what and "1 row: 9 " in error.where
    write(tmp_path, nearly)
    data = opened(tmp_path)
    rows = {"item": ["i1"], "tags": [["a"]], "price": [1e30], "vector": [[1.0, 2.0]], "time": [1], "id": [1]}
    with pytest.raises(GemkitError, match="too far"):
        encode_examples(data, pa.table(rows), "new.csv")


@pytest.mark.parametrize("name", ["a\nb", "a\x00b", "x" * 201, "a.b", "../x", "_x", "", "é" * 101])
def test_names_that_could_not_be_files_are_refused(tmp_path, name):
    table = pa.table({name: ["i"] * 9, "click": [0, 1, 1] * 3, "time": list(range(9))})
    storage.write_table(table, tmp_path / "t.arrow")
    only = {"timestamp": "time", "tasks": [{"name": "click"}], "categorical": [{"name": name}]}
    values = only | {"root": str(tmp_path / "datasets"), "examples": str(tmp_path / "t.arrow")}
    with pytest.raises(GemkitError, match=r"cannot have this name|is missing|no text"):
        prepare(spec_of(TableRecipe), from_mapping(TableConfig, values), silent, silent)


def test_odd_but_honest_names_work(tmp_path):
    name = 'Preis in € (brutto), "neu" 100%'
    table = pa.table({name: ["i", "j", "i"] * 3, "click": [0, 1, 1] * 3, "time": list(range(9))})
    storage.write_table(table, tmp_path / "t.arrow")
    only = {"timestamp": "time", "tasks": [{"name": "click"}], "categorical": [{"name": name}]}
    values = only | {"root": str(tmp_path / "datasets"), "examples": str(tmp_path / "t.arrow")}
    data = prepare(spec_of(TableRecipe), from_mapping(TableConfig, values), silent, silent)
    assert sorted(data.vocabulary(name)) == ["i", "j"]


# --- events, order, splits ----------------------------------------------------------------------------------------


def test_files_in_any_order_give_equal_results(tmp_path):
    rng = np.random.default_rng(0)
    examples = LINES.replace("u1,i2,,2,1|2,0,1000", "u1,i2,,2,1|2,0,1001").splitlines()
    events = EVENTS.splitlines()
    found = []
    for shuffled in (False, True):
        for name, lines in (("t.csv", examples), ("e.csv", events)):
            order = rng.permutation(len(lines) - 1) if shuffled else np.arange(len(lines) - 1)
            write(tmp_path, "\n".join([lines[0], *(lines[i + 1] for i in order)]) + "\n", name)
        data = opened(tmp_path, events=str(tmp_path / "e.csv"), folder=f"d{shuffled}", **WITH_EVENTS)
        by_id = np.argsort(data.columns[storage.EXAMPLE_ID])
        names = ["item", "price", "click", storage.SPLIT, storage.USER, storage.HISTORY_END, storage.HISTORY]
        arrays = [data.columns[n][by_id].tolist() for n in names] + [v.tolist() for v in data.shards[0].events.values()]
        found.append((arrays, data.vocabulary("item"), data.schema.dense, data.schema.tables))
    assert found[0] == found[1]
    assert data.history_lengths(np.arange(data.num_examples), 9).any()


def test_users_without_history_and_unseen_categories(tmp_path):
    write(tmp_path, LINES.replace("u3,i3,b", "u3,brand-new,"))
    write(tmp_path, EVENTS, "e.csv")
    data = opened(tmp_path, events=str(tmp_path / "e.csv"), **WITH_EVENTS)
    rows = data.columns[storage.EXAMPLE_ID].argsort()
    assert data.history_lengths(rows, 9).tolist() == [2, 2, 1, 1, 2, 0, 2, 1, 0]
    assert data.columns["item"][rows[8]] == 0 and data.split("test").tolist() == [rows[8]]


def test_an_empty_table_of_events_is_refused(tmp_path):
    write(tmp_path, LINES)
    write(tmp_path, "user,item,time\n", "e.csv")
    error = refused(tmp_path, events=str(tmp_path / "e.csv"), **WITH_EVENTS)
    assert error.what == "there are no events" and error.where == "e.csv"


def test_an_empty_separator_is_refused(tmp_path):
    write(tmp_path, LINES)
    assert refused(tmp_path, separator="").where == "data.separator"


def test_an_auc_of_one_class_is_no_number():
    assert auc(torch.tensor([0.1, 0.9]), torch.tensor([1.0, 1.0])) is None


# --- the dataset folder ---------------------------------------------------------------------------------------------


SHARD = storage.partition_folder(0, 0)
EXAMPLES = f"{SHARD}/examples.arrow"


@pytest.fixture
def folder(tmp_path) -> Path:
    return make_dataset(tmp_path / "d", num_examples=200, num_events=300).folder


def test_every_file_is_verified(folder):
    names = json.loads((folder / "manifest.json").read_text())["files"]
    assert len(names) >= 7
    for name in names:
        sound = (folder / name).read_bytes()
        for bad in (sound[:-1], sound[:100] + bytes([sound[100] ^ 1]) + sound[101:], None):
            (folder / name).unlink()
            if bad is not None:
                (folder / name).write_bytes(bad)
            with pytest.raises(GemkitError, match=re.escape(name)):
                Dataset.open(folder)
        (folder / name).write_bytes(sound)
    Dataset.open(folder)


def test_the_manifest_protects_itself(folder):
    path = folder / "manifest.json"
    sound = path.read_text()
    for old, new in (
        ('"user": "user_id"', '"user": "item_id"'),
        ('"name": "synthetic"', '"name": "synthetik"'),
        ('"digest"', '"digesu"'),
        ('"events": 300', '"events": 301'),
        ('"rows": {', '"rows": {"examples": 200,'),
    ):
        assert old in sound
        path.write_text(sound.replace(old, new))
        with pytest.raises(GemkitError, match="manifest"):
            Dataset.open(folder)
    without = json.dumps({k: v for k, v in json.loads(sound).items() if k != "digest"})
    for broken in ("", "{", "[]", "[" * 100_000, "\x00", without):
        path.write_text(broken)
        with pytest.raises(GemkitError, match="the manifest is damaged"):
            Dataset.open(folder)


def test_what_has_been_verified_is_not_hashed_again(folder, monkeypatch):
    hashed = []
    monkeypatch.setattr(verify, "sha256_of", lambda path: (hashed.append(path.name), sha256_of(path))[1])
    Dataset.open(folder)
    assert not (folder / verify.STAMP).exists() or json.loads((folder / verify.STAMP).read_text())["files"] == {}
    monkeypatch.setattr(verify, "SETTLED_NS", -1)
    fingerprint = Dataset.open(folder).fingerprint
    assert "examples.arrow" in hashed and (folder / verify.STAMP).is_file()
    hashed.clear()
    assert Dataset.open(folder).fingerprint == fingerprint and hashed == []
    # One byte, and the time of the last change put back: the other time, which nobody can set, gives it away.
    path = folder / EXAMPLES
    before = path.stat()
    data = bytearray(path.read_bytes())
    data[2000] ^= 1
    path.write_bytes(data)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(GemkitError, match=r"examples\.arrow has changed"):
        Dataset.open(folder)
    assert hashed == ["examples.arrow"]


def test_a_stamp_that_is_damaged_or_cannot_be_written_does_no_harm(folder, monkeypatch):
    monkeypatch.setattr(verify, "SETTLED_NS", -1)
    for text in ("", "{", "[]", '{"manifest": 1}', '{"manifest": "x", "files": 3}'):
        (folder / verify.STAMP).write_text(text)
        Dataset.open(folder)
    (folder / verify.STAMP).unlink()

    def full(*args, **kwargs):
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr(Path, "write_text", full)
    Dataset.open(folder)
    assert sorted(p.name for p in folder.iterdir() if p.name.startswith(".")) == []


# --- what somebody may have made on purpose -------------------------------------------------------------------------


def forge(folder: Path, **manifest) -> None:
    """Mends hashes and digest after a change, as the maker of a bad folder would."""
    path = folder / "manifest.json"
    content = json.loads(path.read_text())
    content["files"] = {n: sha256_of(folder / n) for n in content["files"]}
    content |= manifest
    storage.write_json(content | {"digest": storage.digest_of(content)}, path)


def set_cell(folder: Path, file: str, name: str, value, row: int = 3) -> None:
    table = pa.ipc.open_file(pa.OSFile(str(folder / file))).read_all()
    column = table.column(name).combine_chunks()
    values = np.array(column.values if pa.types.is_nested(column.type) else column.fill_null(0))
    values[row] = value
    changed = pa.array(values, column.type.value_type if pa.types.is_nested(column.type) else column.type)
    if pa.types.is_large_list(column.type):
        changed = pa.LargeListArray.from_arrays(column.offsets, changed)
    elif pa.types.is_fixed_size_list(column.type):
        changed = pa.FixedSizeListArray.from_arrays(changed, column.type.list_size)
    storage.write_table(table.set_column(table.column_names.index(name), name, changed), folder / file)


@pytest.mark.parametrize(
    ("file", "name", "value"),
    [
        ("examples.arrow", "item_id", 31),
        ("examples.arrow", "item_id", -1),
        ("examples.arrow", "item_id", 2**31 - 1),
        ("examples.arrow", "tags", 10**6),
        ("examples.arrow", "tags", -5),
        ("examples.arrow", "_surface", 2),
        ("examples.arrow", "_split", 3),
        ("examples.arrow", "_history", -1),
        ("examples.arrow", "_user", 40),
        ("examples.arrow", "_user", -1),
        ("examples.arrow", "_history_end", 2**62),
        ("examples.arrow", "_history_end", -(2**62)),
        ("examples.arrow", "_timestamp", 2**63 - 1),
        ("examples.arrow", "_timestamp", -(10**11)),
        ("examples.arrow", "_weight", float("nan")),
        ("examples.arrow", "_weight", -1.0),
        ("examples.arrow", "price", float("inf")),
        ("examples.arrow", "content", float("nan")),
        ("examples.arrow", "click", 2),
        ("events.arrow", "item_id", 31),
        ("events.arrow", "category", 255),
        ("events.arrow", "_stream", 2),
        ("events.arrow", "_timestamp", 2**31 - 1),
        ("users.arrow", "_start", 301),
        ("users.arrow", "_start", -1),
        ("users.arrow", "_previous_segment", 0),
        ("users.arrow", "_previous_user", 0),
    ],
)
def test_values_out_of_bounds_are_refused_though_every_hash_is_right(folder, file, name, value):
    row = 3
    set_cell(folder, f"{SHARD}/{file}", name, value, row)
    forge(folder)
    with pytest.raises(GemkitError) as caught:
        Dataset.open(folder)
    assert "has changed" not in caught.value.what and file in caught.value.where


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("tables", 0, "num_embeddings"), 10**12),
        (("tables", 0, "num_embeddings"), 2),
        (("tables", 0, "name"), "../../x"),
        (("tables", 0, "name"), "/etc/passwd"),
        (("vectors", 0, "width"), -1),
        (("vectors", 0, "width"), 7),
        (("vectors", 0, "width"), 10**12),
        (("categorical", 0, "table"), "nothing"),
        (("categorical", 1, "multi"), True),
        (("categorical", 0, "name"), "nothing"),
        (("dense", 0, "std"), 0),
        (("dense", 0, "mean"), float("nan")),
        (("dense", 0, "std"), 1e-300),
        (("tasks",), []),
        (("tasks", 1, "masked_by"), "nothing"),
        (("surfaces",), ["one"]),
        (("streams",), []),
        (("event_fields", 0, "name"), "_user"),
        (("unknown",), 1),
    ],
)
def test_a_strange_schema_is_refused(folder, path, value):
    schema = json.loads((folder / "schema.json").read_text())
    target = schema
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    (folder / "schema.json").write_text(json.dumps(schema))
    forge(folder)
    with pytest.raises(GemkitError) as caught:
        Dataset.open(folder)
    assert "has changed" not in caught.value.what


@pytest.mark.parametrize(
    "name", ["../../etc/passwd", "/etc/passwd", "vocabularies/../../x.arrow", "x.arrow", "vocabularies"]
)
def test_the_manifest_names_no_other_files(folder, name):
    files = json.loads((folder / "manifest.json").read_text())["files"]
    forge(folder, files=files | {name: "0"})
    with pytest.raises(GemkitError, match="is no file of a data set"):
        Dataset.open(folder)


@pytest.mark.parametrize("missing", [EXAMPLES, "schema.json", f"{SHARD}/users.arrow", "vocabularies/tags/0000.arrow"])
def test_the_manifest_names_every_file_that_is_read(folder, missing):
    files = json.loads((folder / "manifest.json").read_text())["files"]
    forge(folder, files={n: h for n, h in files.items() if n != missing})
    with pytest.raises(GemkitError, match=f"does not name {missing}"):
        Dataset.open(folder)


def test_bag_offsets_that_lead_outside_are_refused(folder):
    table = pa.ipc.open_file(pa.OSFile(str(folder / EXAMPLES))).read_all()
    tags = table.column("tags").combine_chunks()
    offsets = np.array(tags.offsets)
    offsets[5] = 10**9
    bad = pa.Array.from_buffers(tags.type, len(tags), [None, pa.py_buffer(offsets)], children=[tags.values])
    storage.write_table(table.set_column(table.column_names.index("tags"), "tags", bad), folder / EXAMPLES)
    forge(folder)
    with pytest.raises(GemkitError, match=r"cannot read examples\.arrow"):
        Dataset.open(folder)


PROGRAM = """
import pickle, sys, pathlib
class Bad:
    def __reduce__(self):
        return (pathlib.Path(sys.argv[1]).write_text, ("run",))
sys.stdout.buffer.write(pickle.dumps(Bad()))
"""


@pytest.mark.parametrize("name", ["t.arrow", "t.parquet", "folder"])
def test_nothing_is_unpickled(tmp_path, folder, name):
    # The pickle is made by another process: the rules of this repository keep that module out of this one.
    proof = tmp_path / "proof"
    program = [sys.executable, "-c", PROGRAM, str(proof)]
    payload = subprocess.run(program, capture_output=True, check=True).stdout
    assert b"write_text" in payload
    metadata = {"ARROW:extension:name": "arrow.py_extension_type", "ARROW:extension:metadata": payload}
    if name == "folder":
        path = folder / EXAMPLES
        table = pa.ipc.open_file(pa.OSFile(str(path))).read_all()
    else:
        path = tmp_path / name
        table = pa.table({"item": ["i", "j"] * 5, "click": [0, 1] * 5, "time": list(range(10))})
    fields = [field.with_metadata(metadata) for field in table.schema]
    table = pa.table([table.column(i) for i in range(table.num_columns)], schema=pa.schema(fields))
    pyarrow.parquet.write_table(table, path) if name == "t.parquet" else storage.write_table(table, path)
    assert b"write_text" in path.read_bytes() or name == "t.parquet"  # Parquet keeps it in base64
    if name == "folder":
        forge(folder)
        assert Dataset.open(folder).num_examples == 200
    else:
        only = {"timestamp": "time", "tasks": [{"name": "click"}], "categorical": [{"name": "item"}]}
        values = only | {"root": str(tmp_path / "datasets"), "examples": str(path)}
        data = prepare(spec_of(TableRecipe), from_mapping(TableConfig, values), silent, silent)
        assert sorted(data.vocabulary("item")) == ["i", "j"]
    assert not proof.exists()


# --- archives -------------------------------------------------------------------------------------------------------


def archive(
    path: Path, extra: dict[str, bytes] | None = None, link: str | None = None, twice: str | None = None
) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened_zip:
        for member in movielens_files.MEMBERS["zip"]:
            info = zipfile.ZipInfo(member)
            info.external_attr = (stat.S_IFLNK | 0o777) << 16 if member == link else 0o644 << 16
            opened_zip.writestr(info, b"1::2::3\n")
        for name, data in (extra or {}).items():
            opened_zip.writestr(name, data)
        if twice:
            with pytest.warns(UserWarning, match="Duplicate name"):
                opened_zip.writestr(twice, b"again")
    return path


RATINGS = movielens_files.MEMBERS["zip"][-1]
HOSTILE = [
    ({"extra": {"../../evil": b"x"}}, "'../../evil' leads out of its folder"),
    ({"extra": {"/etc/evil": b"x"}}, "'/etc/evil' leads out of its folder"),
    ({"extra": {"..\\evil": b"x"}}, "leads out of its folder"),
    ({"link": RATINGS}, "is no file but a link"),
    ({"twice": RATINGS}, "appears more than once"),
]


@pytest.mark.parametrize(("options", "what"), HOSTILE, ids=[h[1] for h in HOSTILE])
def test_hostile_archives_are_refused(tmp_path, options, what):
    path = archive(tmp_path / "ml-1m.zip", **options)
    config = MovieLens1MConfig(root=str(tmp_path / "root"), archive=str(path))
    with pytest.raises(GemkitError) as caught:
        prepare(spec_of(MovieLens1M), config, silent, silent, say=silent)
    assert what in caught.value.what
    assert not [p for p in tmp_path.rglob("*") if p.is_file() and p != path and p.suffix != ".lock"]


def test_a_zip_bomb_is_refused_before_it_is_unpacked(tmp_path, monkeypatch):
    monkeypatch.setattr(movielens_files, "MAX_MEMBER_BYTES", 1000)
    path = tmp_path / "ml-1m.zip"
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened_zip:
        for member in movielens_files.MEMBERS["zip"]:
            opened_zip.writestr(member, bytes(10_000_000))
    assert path.stat().st_size < 50_000
    with pytest.raises(GemkitError, match="has 10,000,000 bytes, more than"):
        movielens_files.fetch_files(tmp_path / "raw", str(path), silent)
    assert not list((tmp_path / "raw").iterdir())


@pytest.mark.parametrize("cut", [20, 200, -30])
def test_a_damaged_archive_leaves_nothing(tmp_path, cut):
    path = archive(tmp_path / "ml-1m.zip")
    data = bytearray(path.read_bytes())
    path.write_bytes(data[:cut] if cut == 200 or cut < 0 else data[:40] + bytes(20) + data[60:])
    with pytest.raises(GemkitError, match=r"ml-1m.zip|is not the expected file"):
        movielens_files.fetch_files(tmp_path / "raw", str(path), silent)
    assert not list((tmp_path / "raw").iterdir())
    assert path.is_file(), "the user's own file stays"


def test_a_marker_cannot_make_gemkit_remove_other_files(tmp_path):
    raw, precious = tmp_path / "root" / "raw" / "movielens1m", tmp_path / "thesis.txt"
    raw.mkdir(parents=True)
    precious.write_text("years of work")
    (raw / "files.json").write_text(json.dumps({"form": "zip", "sha256": {"../../../thesis.txt": "0" * 64}}))
    with pytest.raises(GemkitError, match=r"files.json does not name"):
        movielens_files.read_files(raw)
    assert precious.read_text() == "years of work"


# --- damage by the hundred ------------------------------------------------------------------------------------------


def test_a_run_of_random_damage_finds_no_defect(tmp_path):
    file = ROOT / "benchmarks" / "robustness_data.py"
    spec = importlib.util.spec_from_file_location("robustness_data", file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    result = module.run(70, 11, tmp_path)
    assert result["defects"] == []
    assert len(result["by_class"]) == 7 and min(result["outcomes"].values()) > 0 and len(result["outcomes"]) == 3


def test_the_published_run_has_no_defect():
    result = json.loads((ROOT / "benchmarks" / "results" / "robustness_data.json").read_text())
    assert result["defects"] == [] and result["count"] >= 500
    assert sum(result["outcomes"].values()) == result["count"]
