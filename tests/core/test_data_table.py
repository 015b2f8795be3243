"""The user's own files: CSV, Parquet and Arrow through the same door; preparing and inspecting."""

from __future__ import annotations

import gzip
import json
import os
import threading

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.feather
import pyarrow.parquet
import pytest
from gemkit_datasets.table import TableConfig, TableRecipe
from rich.console import Console

from gemkit.component import spec_of
from gemkit.config.fields import from_mapping
from gemkit.data import prepare as preparing
from gemkit.data.inspect import inspect, render
from gemkit.data.loader import Loader
from gemkit.data.prepare import dataset_folder, prepare
from gemkit.errors import GemkitError
from gemkit.testing.data import make_dataset

TEN_LINES = """user,item,tags,zip,price,click,time
u1,i1,a|b,01060,1.5,1,1000
u1,i2,,01060,2,0,1000
u2,i1,a,1060,3,1,1010
u2,i3,b|c,1060,1,0,1020
u1,i3,b|c,01060,1,1,1030
u3,i1,a,99,2,0,1040
u1,i2,,01060,4,,1050
u2,i2,,1060,2,1,1060
u3,i3,b,99,1,0,1070
"""
MINIMAL = {"timestamp": "time", "categorical": [{"name": "item"}], "tasks": [{"name": "click"}]}
FULL = MINIMAL | {
    "categorical": [{"name": "item", "role": "item"}, {"name": "tags", "multi": True}, {"name": "zip", "role": "user"}],
    "dense": [{"name": "price"}],
    "vectors": [{"name": "vector"}],
    "group": "user",
    "user": "user",
    "event_fields": [{"name": "item"}],
}


def config(where, **changes) -> TableConfig:
    return from_mapping(TableConfig, {"root": str(where / "datasets"), "examples": str(where / "ten.csv"), **changes})


def opened(c: TableConfig):
    return prepare(spec_of(TableRecipe), c, lambda *_: None, lambda *_: None)


@pytest.fixture
def ten(tmp_path):
    (tmp_path / "ten.csv").write_text(TEN_LINES)
    return tmp_path


def test_ten_lines_and_a_minimal_config(ten):
    data = opened(config(ten, **MINIMAL))
    assert data.manifest["rows"] == {"examples": 9, "events": 0, "train": 7, "valid": 1, "test": 1}
    batch = next(Loader(data, "train", batch_size=7).epoch(0))
    order = batch.example_id.argsort()
    assert batch.labels[order, 0].tolist() == [1, 0, 1, 0, 1, 0, 0]
    assert batch.masks[order, 0].tolist() == [1, 1, 1, 1, 1, 1, 0]
    assert data.folder.name == "table-ten"


def test_categories_of_a_csv_stay_as_they_are_written(ten):
    data = opened(config(ten, **(MINIMAL | {"categorical": [{"name": "zip"}, {"name": "tags", "multi": True}]})))
    assert data.vocabulary("zip") == ["01060", "1060", "99"]
    assert sorted(data.vocabulary("tags")) == ["a", "b", "c"]
    rows = data.columns["_example_id"].argsort()
    assert data.take_bags("tags", data.located(rows), 9)[1].tolist() == [0, 2, 2, 3, 5, 7, 8, 8, 8, 9]


def typed_table() -> pa.Table:
    """The ten lines as a program would hold them: real lists, numbers and empty cells."""
    rows = [line.split(",") for line in TEN_LINES.split()[1:]]
    return pa.table(
        {
            "user": [r[0] for r in rows],
            "item": [r[1] for r in rows],
            "tags": [r[2].split("|") if r[2] else [] for r in rows],
            "zip": [r[3] for r in rows],
            "price": [float(r[4]) for r in rows],
            "click": pa.array([int(r[5]) if r[5] else None for r in rows], pa.int8()),
            "time": [int(r[6]) for r in rows],
            "vector": [[float(i), 0.5] for i in range(len(rows))],
        }
    )


def write_csv(folder, name: str, delimiter: str) -> None:
    lines = [line.split(",") for line in TEN_LINES.splitlines()]
    lines = [[*line, "vector" if i == 0 else f"{float(i - 1)}|0.5"] for i, line in enumerate(lines)]
    text = "\n".join(delimiter.join(line) for line in lines) + "\n"
    (folder / name).write_bytes(gzip.compress(text.encode()) if name.endswith(".gz") else text.encode())


def test_every_format_builds_the_same_data_set(tmp_path):
    table = typed_table()
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    pyarrow.feather.write_feather(table, tmp_path / "t.feather")
    with pa.ipc.new_file(str(tmp_path / "t.arrow"), table.schema) as writer:
        writer.write_table(table)
    for name, delimiter in (("t.csv", ","), ("t.tsv", "\t"), ("t.csv.gz", ",")):
        write_csv(tmp_path, name, delimiter)
    built = {}
    for name in ("t.csv", "t.tsv", "t.csv.gz", "t.parquet", "t.feather", "t.arrow"):
        path = str(tmp_path / name)
        built[name] = opened(config(tmp_path, **FULL, examples=path, events=path, folder=name, name="table"))
    contents = {name: data.manifest["files"] for name, data in built.items()}
    for files in contents.values():
        files.pop("schema.json")  # it holds the folder's name
        assert files == contents["t.csv"]
    assert built["t.csv"].schema.vectors[0].width == 2
    assert built["t.csv"].num_events == 9


BAD_FILES = [
    ("user,item,click,time\nu,i,1\n", {}, "Expected 4 columns, got 3", "ten.csv"),
    (
        TEN_LINES.replace(",2,0,1000", ",cheap,0,1000"),
        {"dense": [{"name": "price"}]},
        "text such as 'cheap'",
        "1 row: 2 ",
    ),
    (TEN_LINES.replace("99,2,0", "99,2,maybe"), {}, "'click' holds text such as 'maybe'", "1 row: 6 "),
    (TEN_LINES.replace("99,2,0", "99,2,3"), {}, "label 'click' has the value 3", "1 row: 6 "),
    (TEN_LINES, {"categorical": [{"name": "itme"}]}, "column 'itme' is missing", "ten.csv"),
    (TEN_LINES, {"timestamp": None}, "a split by time needs a timestamp", "timestamp"),
]


@pytest.mark.parametrize(("text", "changes", "what", "where"), BAD_FILES, ids=[b[2] for b in BAD_FILES])
def test_bad_files_are_explained(ten, text, changes, what, where):
    (ten / "ten.csv").write_text(text)
    with pytest.raises(GemkitError) as caught:
        opened(config(ten, **(MINIMAL | changes)))
    assert what in caught.value.what
    assert where in caught.value.where


@pytest.mark.parametrize(
    ("changes", "what"),
    [({"examples": ""}, "no file is named"), ({"events": "none.csv"}, "there is no file none.csv")],
)
def test_missing_files_are_named(ten, changes, what):
    with pytest.raises(GemkitError, match=what) as caught:
        opened(config(ten, **(MINIMAL | changes)))
    assert caught.value.where.startswith("data.")


def test_unknown_formats_are_refused(ten):
    (ten / "ten.xlsx").write_bytes(b"PK")
    with pytest.raises(GemkitError, match="unknown format") as caught:
        opened(config(ten, **MINIMAL, examples=str(ten / "ten.xlsx")))
    assert ".parquet" in caught.value.allowed


def test_a_current_data_set_is_not_built_again(ten):
    c = config(ten, **MINIMAL)
    opened(c)
    before = (dataset_folder(c) / "manifest.json").stat().st_mtime_ns
    opened(config(ten, **MINIMAL, max_history=7))  # read, not built
    assert (dataset_folder(c) / "manifest.json").stat().st_mtime_ns == before


@pytest.mark.parametrize("what", ["file", "option", "format"])
def test_an_outdated_data_set_is_built_again(ten, what, monkeypatch):
    first, changes = opened(config(ten, **MINIMAL)).manifest, {}
    if what == "file":
        (ten / "ten.csv").write_text(TEN_LINES + "u9,i9,,9,9,1,2000\n")
    elif what == "option":
        changes = {"min_count": 2}
    else:
        path = ten / "datasets" / "table-ten" / "manifest.json"
        path.write_text(json.dumps(first | {"format_version": 0}))
    second = opened(config(ten, **MINIMAL, **changes)).manifest
    assert (second == first) == (what == "format")
    assert second["rows"]["examples"] == (10 if what == "file" else 9)


def test_two_at_once_build_once(ten, monkeypatch):
    built = []
    build = preparing.build
    monkeypatch.setattr(preparing, "build", lambda *args: (built.append(1), build(*args)))
    threads = [threading.Thread(target=opened, args=(config(ten, **MINIMAL),)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert built == [1]


@pytest.mark.skipif(os.getuid() == 0, reason="root may write everywhere")
def test_a_current_data_set_opens_in_a_read_only_folder(ten):
    opened(config(ten, **MINIMAL))
    (ten / "datasets").chmod(0o555)
    try:
        assert opened(config(ten, **MINIMAL)).num_examples == 9
    finally:
        (ten / "datasets").chmod(0o755)


def test_inspect_counts_what_is_there(tmp_path):
    data = make_dataset(tmp_path / "d")
    report = json.loads(json.dumps(inspect(data)))
    train = report["splits"]["train"]
    assert train["examples"] == train["tasks"]["click"]["known"] == sum(train["surfaces"].values()) == 951
    assert train["tasks"]["buy"]["known"] == train["tasks"]["click"]["positive"]
    assert train["tasks"]["buy"]["masked"] == 951 - train["tasks"]["click"]["positive"]
    assert train["tasks"]["click"]["rate"] == train["tasks"]["click"]["positive"] / 951
    assert train["last_s"] < report["splits"]["valid"]["first_s"]
    lengths = data.history_lengths(np.arange(1200), 10**6)
    for b in report["histories"]["histogram"]:
        assert b["examples"] == ((lengths >= b["from"]) & (lengths < (b["to"] or 10**9))).sum()
    assert sum(b["examples"] for b in report["histories"]["histogram"]) == 1200
    assert sum(report["histories"]["streams"].values()) == 2400
    features = {f["name"]: f for f in report["features"]}
    assert features["user_id"]["unknown"]["train"] == 0
    assert features["events.category"]["table"] == "tags"


def test_inspect_shows_unknown_ids(ten):
    (ten / "ten.csv").write_text(TEN_LINES + "u9,brand-new,,9,9,1,2000\n")
    unknown = inspect(opened(config(ten, **MINIMAL)))["features"][0]["unknown"]
    assert unknown == {"train": 0.0, "valid": 0.0, "test": 1.0}


@pytest.mark.parametrize("with_events", [True, False])
def test_a_report_can_be_printed(tmp_path, with_events):
    console = Console(width=160, record=True)
    console.print(render(inspect(make_dataset(tmp_path / "d", with_events=with_events))))
    text = console.export_text()
    assert "buy" in text and "item_id" in text and ("Histories" in text) == with_events
