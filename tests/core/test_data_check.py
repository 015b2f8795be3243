"""Every rule of the dataset format: one damage each, and the check names its file, column and row, and nothing else.

The folder is written here, by plain loops and not by gemkit's build.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import random
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from gemkit.cli.main import main
from gemkit.config.fields import to_mapping
from gemkit.data import hashing, storage, verify
from gemkit.data.fetch import sha256_of
from gemkit.data.schema import CategoricalFeature, DenseFeature, EventField, Schema, Table, Task, VectorFeature
from gemkit.data.validation import unique, violation
from gemkit.data.validation.report import check
from gemkit.errors import GemkitError

SCHEMA = Schema(
    name="small",
    tables=(
        Table(name="item", num_embeddings=9),
        Table(name="tag", num_embeddings=4),
        Table(name="device", num_embeddings=7, hashed=True),
    ),
    dense=(
        DenseFeature(name="hour", mean=12.0, std=6.0),
        DenseFeature(name="age", role="user", mean=30.0, std=10.0, of="users"),
        DenseFeature(name="price", role="item", mean=2.0, std=1.0, of="items", transform="log1p"),
    ),
    categorical=(
        CategoricalFeature(name="item", role="item", table="item"),
        CategoricalFeature(name="words", table="tag", multi=True),
        CategoricalFeature(name="device", table="device"),
        CategoricalFeature(name="tags", role="item", table="tag", multi=True, of="items"),
        CategoricalFeature(name="favourite", role="user", table="item", of="users"),
    ),
    vectors=(VectorFeature(name="look", width=2), VectorFeature(name="picture", width=2, of="items")),
    event_fields=(EventField(name="item", table="item"),),
    streams=("view", "click"),
    tasks=(Task(name="click", truth="p"), Task(name="buy", masked_by="click", delay="delay_s")),
    surfaces=("feed", "stories"),
    group="user",
)
USERS = [f"u{i:02d}" for i in range(12)]
BOUNDARIES = {"valid_from_s": 1600, "test_from_s": 1800}
VOCABULARIES = [{"item": list("abcdef"), "tag": ["x", "y", "z"]}, {"item": ["g", "h"], "tag": []}]
FLAT = {"_value": pa.string(), "_start": pa.int64(), "_previous_segment": pa.int32(), "_previous_user": pa.int32()}
TYPES = {
    "users.arrow": FLAT | {"age": pa.float32(), "favourite": pa.int32()},
    "items.arrow": {
        "_value": pa.string(), "price": pa.float64(), "tags": pa.large_list(pa.int32()),
        "picture": pa.list_(pa.float32(), 2),
    },
    "events.arrow": {"_timestamp": pa.int32(), "_stream": pa.uint8(), "item": pa.uint8()},
    "examples.arrow": {
        "_example_id": pa.int64(), "_split": pa.int8(), "_timestamp": pa.int64(), "_weight": pa.float32(),
        "_surface": pa.int32(), "_group": pa.int64(), "_history": pa.int32(), "_user": pa.int32(),
        "_history_end": pa.int64(), "_item": pa.int32(), "click": pa.int8(), "buy": pa.int8(),
        "_delay_buy": pa.float32(), "_truth_click": pa.float64(), "hour": pa.float64(), "item": pa.int32(),
        "words": pa.large_list(pa.int32()), "device": pa.int32(), "look": pa.list_(pa.float32(), 2),
    },
}  # fmt: skip
UNKNOWN_PRICE = float(np.expm1(2.0))


def write(rows: list[dict[str, Any]], path: Path) -> None:
    types = TYPES[path.name]
    storage.write_table(pa.table({n: pa.array([r[n] for r in rows], kind) for n, kind in types.items()}), path)


def write_folder(folder: Path, seed: int = 0, per_segment: int = 60) -> Path:
    """Two segments, two partitions, twelve users of whom the first has no events and the last only new ones."""
    rng = random.Random(seed)
    partition = dict(zip(USERS, hashing.partition_of(pa.array(USERS), 2).tolist(), strict=True))
    segments: list[dict[str, Any]] = []
    earlier: dict[str, tuple[int, int]] = {}
    for segment in range(2):
        items = [{"_value": "", "price": UNKNOWN_PRICE, "tags": [], "picture": [0.0, 0.0]}]
        items += [
            {"_value": v, "price": rng.random(), "tags": [1, 3], "picture": [rng.random(), 1.0]}
            for v in ("a", "b", "c")
        ]
        write(items, folder / storage.segment_folder(segment) / "items.arrow")
        events = [
            (u, rng.randrange(1000, 2000, 20) + 1000 * segment, rng.randrange(2), rng.randrange(7 + 2 * segment))
            for u in rng.choices(USERS[1:] if segment else USERS[1:-1], k=per_segment)
        ]
        examples = [(rng.choice(USERS), rng.randrange(1000, 2000, 20) + 1000 * segment, i) for i in range(per_segment)]
        about: dict[str, Any] = {
            "rows": dict.fromkeys(("examples", "events", "train", "valid", "test"), 0) | {"items": len(items)},
            "partitions": [],
            "vocabularies": {n: len(v) for n, v in VOCABULARIES[segment].items()},
            "first_s": min(e[1] for e in events + examples), "last_s": max(e[1] for e in events + examples),
            "gemkit": "0", "source_files": {}, "options": {}, "by_boundaries": segment == 0,
        }  # fmt: skip
        for p in range(2):
            counts, texts = write_shard(folder, segment, p, events, examples, partition, earlier, rng)
            about["partitions"].append(counts)
            for name in ("examples", "events", "train", "valid", "test"):
                about["rows"][name] += counts[name]
            earlier |= {u: (segment, i) for i, u in enumerate(texts)}
        segments.append(about)
        for name, values in VOCABULARIES[segment].items():
            if values:
                table = pa.table({"value": values, "count": pa.array([1] * len(values), pa.int64())})
                storage.write_table(table, folder / storage.vocabulary_file(name, segment))
    storage.write_json(to_mapping(SCHEMA), folder / "schema-0001.json")
    names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    forge(
        folder,
        {
            "format_version": 3, "name": "small", "gemkit": "0", "partitions": 2, "boundaries": BOUNDARIES,
            "rows": {n: sum(s["rows"][n] for s in segments) for n in ("examples", "events", "train", "valid", "test")},
            "segments": segments, "files": dict.fromkeys(sorted(names), ""), "source_files": {}, "options": {},
            "columns": {"user": "u", "timestamp": "t", "surface": "s", "example_id": None, "item": "i"},
        },
    )  # fmt: skip
    return folder


def write_shard(folder, segment, p, events, examples, partition, earlier, rng) -> tuple[dict[str, int], list[str]]:
    place = folder / storage.partition_folder(segment, p)
    texts = sorted({e[0] for e in events + examples if partition[e[0]] == p})
    events = sorted(e for e in events if partition[e[0]] == p)
    write([{"_timestamp": t, "_stream": s, "item": i} for _, t, s, i in events], place / "events.arrow")
    users = []
    for u in texts:
        before = earlier.get(u, (-1, -1))
        users.append(
            {
                "_value": u, "_start": sum(e[0] < u for e in events), "_previous_segment": before[0],
                "_previous_user": before[1], "age": rng.uniform(20, 60), "favourite": rng.randrange(9),
            }
        )  # fmt: skip
    write(users, place / "users.arrow")
    split_of = {t: (t >= 1600) + (t >= 1800) for _, t, _ in examples}
    mine = sorted((e for e in examples if partition[e[0]] == p), key=lambda e: (split_of[e[1]], e))
    rows, history, last = [], -1, None
    for u, t, number in mine:
        history, last = history + ((u, t) != last), (u, t)
        click = rng.choice((0, 1, 1, None))
        buy = rng.choice((0, 1)) if click == 1 else None
        rows.append(
            {
                "_example_id": 1000 * segment + number, "_split": split_of[t], "_timestamp": t, "_weight": 1.0,
                "_surface": rng.randrange(2), "_group": 5, "_history": history, "_user": texts.index(u),
                "_history_end": sum(e[:2] < (u, t) for e in events), "_item": rng.randrange(4), "click": click,
                "buy": buy, "_delay_buy": rng.uniform(0, 9) if buy == 1 else None, "_truth_click": rng.random(),
                "hour": rng.uniform(0, 24), "item": rng.randrange(9), "device": rng.randrange(7),
                "words": rng.sample((0, 1, 2, 3), rng.randrange(4)), "look": [rng.random(), rng.random()],
            }
        )  # fmt: skip
    write(rows, place / "examples.arrow")
    counts = {"examples": len(rows), "events": len(events), "users": len(texts)}
    return counts | {n: sum(r["_split"] == i for r in rows) for i, n in enumerate(("train", "valid", "test"))}, texts


def forge(folder: Path, manifest: dict[str, Any] | None = None) -> None:
    """Hashes and digest, right for what is there."""
    content = manifest or json.loads((folder / "manifest.json").read_text())
    content["files"] = {n: sha256_of(folder / n) if (folder / n).is_file() else "" for n in content["files"]}
    storage.write_json(content | {"digest": storage.digest_of(content)}, folder / "manifest.json")


@pytest.fixture(scope="module")
def made(tmp_path_factory) -> Path:
    return write_folder(tmp_path_factory.mktemp("made") / "d")


@pytest.fixture
def folder(made, tmp_path) -> Path:
    return Path(shutil.copytree(made, tmp_path / "d"))


def read(folder: Path, file: str) -> list[dict[str, Any]]:
    return pa.ipc.open_file(pa.OSFile(str(folder / file))).read_all().to_pylist()


A0, A1, B0, B1 = (storage.partition_folder(s, p) for s, p in itertools.product((0, 1), (0, 1)))
"""Segment 0: partitions 0 and 1; segment 1: the same."""

Rows = list[dict[str, Any]]
Damage = Callable[[Rows, Path], Any]
"""Changes the rows of a table; returns the row or rows that the check must name."""


def put(column: str, value: Any, row: int = 3) -> Damage:
    def damage(rows: Rows, folder: Path) -> int:
        rows[row][column] = value(rows[row][column]) if callable(value) else value
        return row

    return damage


def put_where(column: str, value: Any, where: Callable[[dict[str, Any]], bool]) -> Damage:
    def damage(rows: Rows, folder: Path) -> int:
        row = next(i for i, r in enumerate(rows) if where(r))
        rows[row][column] = value
        return row

    return damage


def swap(row: int, *columns: str) -> Damage:
    """Exchanges two rows that stand together, or some of their cells."""

    def damage(rows: Rows, folder: Path) -> int:
        for name in columns or rows[0]:
            rows[row][name], rows[row - 1][name] = rows[row - 1][name], rows[row][name]
        return row

    return damage


def event_out_of_order(rows: Rows, folder: Path) -> int:
    """Two events of one user, of which each example sees both or none, change their times."""
    users, examples = (read(folder, f"{A0}/{n}.arrow") for n in ("users", "examples"))
    taken = {u["_start"] for u in users} | {e["_history_end"] for e in examples}
    row = next(i for i in range(1, len(rows)) if i not in taken and rows[i - 1]["_timestamp"] < rows[i]["_timestamp"])
    swap(row, "_timestamp")(rows, folder)
    return row


def runs(folder: Path, place: str) -> list[tuple[int, int]]:
    """First and last event (excluded) of each user."""
    starts = [u["_start"] for u in read(folder, f"{place}/users.arrow")]
    return list(itertools.pairwise([*starts, len(read(folder, f"{place}/events.arrow"))]))


def leak(rows: Rows, folder: Path) -> list[int]:
    """The examples that share a history see one event more: the first that is not older."""
    for row, example in enumerate(rows):
        _, end = runs(folder, A0)[example["_user"]]
        if example["_history_end"] < end:
            example["_history_end"] += 1
            return [row]
    raise AssertionError("no such example")


def miss(rows: Rows, folder: Path) -> int:
    for row, example in enumerate(rows):
        start, _ = runs(folder, A0)[example["_user"]]
        if example["_history_end"] > start:
            example["_history_end"] -= 1
            return row
    raise AssertionError("no such example")


def see_another_user(rows: Rows, folder: Path) -> int:
    for row, example in enumerate(rows):
        start, _ = runs(folder, A0)[example["_user"]]
        if start > 0:
            example["_history_end"] = start - 1
            return row
    raise AssertionError("no such example")


def linked(change: Callable[[dict[str, Any]], Any]) -> Damage:
    """Changes the first user whose link is to a row after the first."""

    def damage(rows: Rows, folder: Path) -> int:
        row = next(i for i, r in enumerate(rows) if r["_previous_user"] >= 1)
        rows[row] |= change(rows[row])
        return row

    return damage


def foreign_user(rows: Rows, folder: Path) -> int:
    """A new user, of the other partition, who fits in by order of text."""
    text = next(t for t in (f"u9{i}" for i in range(99)) if hashing.partition_of(pa.array([t]), 2)[0] == 1)
    rows[-1] |= {"_value": text, "_previous_segment": -1, "_previous_user": -1}
    return len(rows) - 1


def renumber(rows: Rows, folder: Path) -> int:
    for row in rows[5:]:
        row["_history"] += 1
    return 5


def same_number(rows: Rows, folder: Path) -> int:
    """An example gets the number of the one before, which has another user or time."""
    row = next(i for i in range(1, len(rows)) if rows[i]["_history"] != rows[i - 1]["_history"])
    for r in rows[row:]:
        r["_history"] -= 1
    return row


def known(name: str, value: int) -> Callable[[dict[str, Any]], bool]:
    return lambda row: row[name] == value


LINK = ("_previous_segment", "_previous_user")
EX, US, EV, IT = "examples.arrow", "users.arrow", "events.arrow", "segments/0000/items.arrow"
DAMAGES: list[tuple[str, str, str | None, Damage, str]] = [
    ("id beyond its table", f"{A1}/{EX}", "item", put("item", 9), "has the value 9, which is out of bounds"),
    ("id below 0", f"{A0}/{EX}", "item", put("item", -1), "-1"),
    ("hashed id", f"{B0}/{EX}", "device", put("device", 7), "7"),
    ("bag id", f"{B1}/{EX}", "words", put("words", [1, 4]), "4"),
    ("surface", f"{A0}/{EX}", "_surface", put("_surface", 2), "2"),
    ("group", f"{A0}/{EX}", "_group", put("_group", -1), "-1"),
    ("split unknown", f"{A0}/{EX}", "_split", put("_split", 3), "3"),
    ("user beyond", f"{A0}/{EX}", "_user", put("_user", 99), "99"),
    ("item beyond", f"{A0}/{EX}", "_item", put("_item", 4), "4"),
    ("history below 0", f"{A0}/{EX}", "_history", put("_history", -1), "-1"),
    ("history end beyond", f"{A0}/{EX}", "_history_end", put("_history_end", 2**40), str(2**40)),
    ("time before the segment", f"{B0}/{EX}", "_timestamp", put("_timestamp", 1001), "1001"),
    ("time after the segment", f"{A0}/{EX}", "_timestamp", put("_timestamp", 10**11), "out of bounds"),
    ("weight nan", f"{A0}/{EX}", "_weight", put("_weight", float("nan")), "nan"),
    ("weight negative", f"{A0}/{EX}", "_weight", put("_weight", -1.0), "-1.0"),
    ("dense infinite", f"{A0}/{EX}", "hour", put("hour", float("inf")), "inf"),
    ("dense infinite once standardised", f"{A0}/{EX}", "hour", put("hour", 1e300), "1e+300"),
    ("vector nan", f"{A0}/{EX}", "look", put("look", [1.0, float("nan")]), "nan"),
    ("label 2", f"{A0}/{EX}", "click", put_where("click", 2, known("click", 0)), "2"),
    ("null id", f"{A0}/{EX}", "item", put("item", None), "empty cells"),
    ("null time", f"{A0}/{EX}", "_timestamp", put("_timestamp", None), "empty cells"),
    ("null bag", f"{A0}/{EX}", "words", put("words", None), "empty cells"),
    ("null truth", f"{A0}/{EX}", "_truth_click", put("_truth_click", None), "empty cells"),
    ("label that the mask hides", f"{A0}/{EX}", "buy", put_where("buy", 0, known("click", 0)), "'click', which masks"),
    ("delay without a 1", f"{A0}/{EX}", "_delay_buy", put_where("_delay_buy", 3.0, known("buy", 0)), "a delay where"),
    ("delay below 0", f"{A0}/{EX}", "_delay_buy", put_where("_delay_buy", -3.0, known("buy", 1)), "-3.0"),
    ("delay nan", f"{A0}/{EX}", "_delay_buy", put_where("_delay_buy", float("nan"), known("buy", 1)), "nan"),
    ("truth above 1", f"{A0}/{EX}", "_truth_click", put("_truth_click", 1.5), "1.5"),
    ("history skips a number", f"{A0}/{EX}", "_history", renumber, "does not go up by 1"),
    ("history number shared", f"{A0}/{EX}", "_history", same_number, "does not go up by 1"),
    ("leak", f"{A0}/{EX}", "_history_end", leak, "which is not older than the example"),
    ("an event not seen", f"{A0}/{EX}", "_history_end", miss, "which does not see it"),
    ("another user's events", f"{A0}/{EX}", "_history_end", see_another_user, "which is another user's"),
    ("event id", f"{A0}/{EV}", "item", put("item", 9), "9"),
    ("event stream", f"{A0}/{EV}", "_stream", put("_stream", 2), "2"),
    ("event time", f"{B0}/{EV}", "_timestamp", put("_timestamp", 1001), "1001"),
    ("events out of order", f"{A0}/{EV}", "_timestamp", event_out_of_order, "older than the one before"),
    ("users out of order", f"{B0}/{US}", "_value", swap(2, "_value", *LINK), "not sorted"),
    ("user of another partition", f"{B0}/{US}", "_value", foreign_user, "another partition"),
    ("start beyond", f"{A0}/{US}", "_start", put("_start", 10**6), "out of bounds"),
    ("start goes back", f"{A0}/{US}", "_start", put("_start", 0, -1), "before those of the row before"),
    ("first start", f"{A0}/{US}", "_start", put("_start", 1, 0), "do not begin at row 0"),
    ("link into the future", f"{A0}/{US}", "_previous_segment", put("_previous_segment", 0), "0"),
    ("half a link", f"{B0}/{US}", "_previous_user", linked(lambda r: {"_previous_user": -1}), "only one of"),
    ("link beyond", f"{B0}/{US}", "_previous_user", linked(lambda r: {"_previous_user": 99}), "beyond its users"),
    (
        "link to another",
        f"{B0}/{US}",
        "_previous_user",
        linked(lambda r: {"_previous_user": r["_previous_user"] - 1}),
        "is of another user",
    ),
    (
        "link left out",
        f"{B0}/{US}",
        "_previous_segment",
        linked(lambda r: dict.fromkeys(LINK, -1)),
        "not to the newest",
    ),
    ("user's id", f"{A0}/{US}", "favourite", put("favourite", 9), "9"),
    ("user's number", f"{A0}/{US}", "age", put("age", float("nan")), "nan"),
    ("item's bag", IT, "tags", put("tags", [4], 2), "4"),
    ("item's vector", IT, "picture", put("picture", [0.0, float("inf")], 2), "inf"),
    ("items out of order", IT, "_value", swap(3), "not sorted"),
    ("unknown item's text", IT, "_value", put("_value", " ", 0), "of the unknown item"),
    ("unknown item's number", IT, "price", put("price", 2.0, 0), "of the unknown item"),
    ("unknown item's bag", IT, "tags", put("tags", [1], 0), "of the unknown item"),
    ("unknown item's vector", IT, "picture", put("picture", [0.0, 1.0], 0), "of the unknown item"),
]


def damaged(folder: Path, file: str, damage: Damage) -> list[int]:
    """Damages a table, mends hashes and digest, and returns the rows that the check must name."""
    rows = read(folder, file)
    at = damage(rows, folder)
    write(rows, folder / file)
    forge(folder)
    return at if isinstance(at, list) else [at % len(rows)]


def found(folder: Path) -> list[violation.Violation]:
    return check(folder).violations


def test_a_sound_folder_has_no_violation(folder):
    result = check(folder)
    assert result.violations == [] and result.num_files == 18
    assert result.rows["examples"] == 120 and "sound; 120 examples, 120 events, 18 files" in result.summary
    assert verify.verified(folder)[1] == SCHEMA


@pytest.mark.parametrize(("file", "column", "damage", "what"), [d[1:] for d in DAMAGES], ids=[d[0] for d in DAMAGES])
def test_one_damage_is_one_violation(folder, file, column, damage, what):
    rows = damaged(folder, file, damage)
    violations = found(folder)
    about = {(v.file, v.column, v.rows) for v in violations}
    if what in ("only one of", "beyond its users", "is of another user"):  # which is also not the newest
        about.discard((file, "_previous_segment", tuple(rows)))
    assert about == {(file, column, tuple(rows))}, [v.place + ": " + v.what for v in violations]
    assert any(what in v.what for v in violations) and all(v.allowed for v in violations)
    # A folder cannot be opened that reading could be misled by; only what two rows or a hash tell is left to `check`.
    if "another partition" in what or "not to the newest" in what:
        verify.verified(folder)
    else:
        with pytest.raises(GemkitError) as caught:
            verify.verified(folder)
        assert f"{file}, column {column}, 1 row: {rows[0]} " in caught.value.where and what in caught.value.what


def test_a_leak_over_segments_is_named(folder):
    """Segments may touch: then an example of the later one could be as old as an event of the earlier one."""
    manifest = json.loads((folder / "manifest.json").read_text())
    edge = manifest["segments"][1]["first_s"] = manifest["segments"][0]["last_s"]
    users, examples = read(folder, f"{B0}/{US}"), read(folder, f"{B0}/{EX}")
    older, events = read(folder, f"{A0}/{US}"), read(folder, f"{A0}/{EV}")
    seen_by = {e["_history_end"] for e in read(folder, f"{A0}/{EX}")}
    for number, user in enumerate(users):
        row = next((i for i, e in enumerate(examples) if e["_user"] == number), None)
        if user["_previous_user"] < 0 or row is None:
            continue
        ends = [*(u["_start"] for u in older[1:]), len(events)]
        last = ends[user["_previous_user"]] - 1
        alone = row + 1 == len(examples) or examples[row + 1]["_history"] != examples[row]["_history"]
        if last >= older[user["_previous_user"]]["_start"] and last + 1 not in seen_by and alone:
            break
    else:
        raise AssertionError("no such user")
    examples[row] |= {"_timestamp": edge, "_history_end": user["_start"]}
    write(examples, folder / f"{B0}/{EX}")
    forge(folder, manifest)
    assert found(folder) == []
    events[last]["_timestamp"] = edge
    write(events, folder / f"{A0}/{EV}")
    forge(folder)
    (only,) = found(folder)
    assert only[:4] == (f"{B0}/{EX}", (row,), 1, "_timestamp") and f"of time {edge}" in only.what


def test_examples_out_of_order_are_named(folder):
    rows = read(folder, f"{A0}/{EX}")
    row = next(
        i for i in range(1, len(rows))
        if rows[i]["_split"] == rows[i - 1]["_split"] and rows[i]["_history"] != rows[i - 1]["_history"]
    )  # fmt: skip
    damaged(folder, f"{A0}/{EX}", swap(row))
    assert {(v.file, v.column) for v in found(folder)} == {(f"{A0}/{EX}", "_timestamp"), (f"{A0}/{EX}", "_history")}
    assert any(v.rows == (row,) and "not in order of user and time" in v.what for v in found(folder))


def test_splits_out_of_order_wrongly_counted_or_not_of_their_time_are_named(folder):
    rows = read(folder, f"{A0}/{EX}")
    last = sum(r["_split"] == 0 for r in rows) - 1
    damaged(folder, f"{A0}/{EX}", put("_split", 1, last))  # now valid has one more, whose time is of train
    said = {v.what: v for v in found(folder)}
    assert sum("split has" in what and "the manifest says" in what for what in said) == 2
    (wrong,) = (v for what, v in said.items() if "which its time is not of" in what)
    assert wrong.rows == (last,) and "valid from 1600" in wrong.allowed
    damaged(folder, f"{A0}/{EX}", put("_split", 2, 2))
    assert any(v.what == "the examples are not in order of split" and v.rows[0] == 3 for v in found(folder))


def test_a_later_segment_may_be_split_in_another_way(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    for place in (B0, B1):
        rows = read(folder, f"{place}/{EX}")
        write([r | {"_split": 0} for r in rows], folder / f"{place}/{EX}")
    about = manifest["segments"][1]
    for counts in (*about["partitions"], about["rows"]):
        counts["train"], counts["test"] = counts["test"], 0
    manifest["rows"]["train"] += about["rows"]["train"]
    manifest["rows"]["test"] -= about["rows"]["train"]
    forge(folder, manifest)
    assert found(folder) == []


def test_ids_and_values_that_are_there_twice_are_named(folder, monkeypatch):
    taken = read(folder, f"{B1}/{EX}")[4]["_example_id"]
    damaged(folder, f"{A0}/{EX}", put("_example_id", taken, 7))
    vocabulary = folder / storage.vocabulary_file("item", 1)
    storage.write_table(pa.table({"value": ["g", "b"], "count": pa.array([1, 1], pa.int64())}), vocabulary)
    forge(folder)
    wanted = {
        (f"{A0}/{EX}", "_example_id", (7,)), (f"{B1}/{EX}", "_example_id", (4,)),
        (storage.vocabulary_file("item", 0), "value", (1,)), (storage.vocabulary_file("item", 1), "value", (1,)),
    }  # fmt: skip
    assert {(v.file, v.column, v.rows) for v in found(folder)} == wanted
    monkeypatch.setattr(unique, "MAX_KEYS", 7)  # many passes over the files
    assert {(v.file, v.column, v.rows) for v in found(folder)} == wanted
    # Equal keys are not taken for equal texts.
    monkeypatch.setattr(hashing, "hashes", lambda texts, seed=0: np.zeros(len(texts), np.uint64))
    names = [storage.vocabulary_file("item", s) for s in range(2)]
    assert {v.rows for v in unique.repeated(folder, names, "value", "x")} == {(1,)}


def changed_table(folder: Path, file: str, change: Callable[[pa.Table], pa.Table]) -> None:
    table = pa.ipc.open_file(pa.OSFile(str(folder / file))).read_all()
    storage.write_table(change(table), folder / file)
    forge(folder)


@pytest.mark.parametrize("file", [f"{A0}/{EX}", f"{B1}/{EV}", f"{A1}/{US}", IT, storage.vocabulary_file("tag", 0)])
@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda t: t.drop_columns([t.column_names[-1]]), "is missing"),
        (lambda t: t.append_column(t.column_names[-1], t.column(t.num_columns - 1)), "is there more than once"),
        (lambda t: t.append_column("more", t.column(0)), "is no column of the schema"),
        (lambda t: t.rename_columns([*t.column_names[:-1], "x"]), "is missing"),
        (lambda t: t.set_column(0, t.column_names[0], pa.array([b"x"] * len(t))), "has type binary"),
        (lambda t: t.slice(1), "rows, the manifest says"),
    ],
    ids=["dropped", "doubled", "added", "renamed", "type", "row less"],
)
def test_tables_are_as_the_schema_says(folder, file, change, what):
    changed_table(folder, file, change)
    violations = found(folder)
    assert {v.file for v in violations} == {file} and what in " ".join(v.what for v in violations)
    with pytest.raises(GemkitError) as caught:
        verify.verified(folder)
    assert file in caught.value.where


def put_at(values: Any, path: tuple[Any, ...], value: Any) -> None:
    for key in path[:-1]:
        values = values[key]
    values[path[-1]] = value(values[path[-1]]) if callable(value) else value


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        (("rows", "events"), 121, "the manifest has 121 events, its parts 120"),
        (("rows", "train"), lambda n: n + 1, "its splits have"),
        (("segments", 0, "rows", "events"), 61, "segment 0 has 61 events, its parts 60"),
        (("segments", 1, "partitions", 0, "events"), lambda n: n + 1, "segment 1 has 60 events, its parts 61"),
        (("segments", 1, "partitions", 0, "users"), -1, "something else than counts"),
        (("segments", 1, "partitions"), [], "segment 1 has 0 partitions, the data set 2"),
        (("segments", 1, "first_s"), 1500, "segment 1 begins at 1500, before the segments before it end"),
        (("segments", 0, "last_s"), 10**12, "ends before it begins, or at no time"),
        (("segments", 0, "first_s"), None, "'first_s' is missing or of the wrong type"),
        (("segments", 0, "more"), 1, "unknown key 'more'"),
        (("segments",), [], "it has 0 segments"),
        (("segments", 0), 3, "a segment is no object"),
        (("partitions",), True, "'partitions' is missing or of the wrong type"),
        (("partitions",), 0, "'partitions' is 0"),
        (("boundaries",), {"valid_from_s": 1}, "'boundaries' does not name"),
        (("columns", "item"), 3, "'columns' has something else"),
        (("columns",), {}, "'columns' does not name"),
        (("files", "../../x"), "0", "which is no file of a data set"),
        (("name",), 3, "'name' is missing"),
    ],
)
def test_a_manifest_that_contradicts_itself_is_told(folder, path, value, what):
    manifest = json.loads((folder / "manifest.json").read_text())
    put_at(manifest, path, value)
    storage.write_json(manifest | {"digest": storage.digest_of(manifest)}, folder / "manifest.json")
    (only,) = found(folder)
    assert only.file == "manifest.json" and what in only.what
    with pytest.raises(GemkitError) as caught:
        verify.verified(folder)
    assert what in caught.value.what


def test_the_digest_of_the_manifest_is_compared(folder):
    path = folder / "manifest.json"
    path.write_text(path.read_text().replace('"small"', '"large"'))
    assert "does not have the digest" in found(folder)[0].what


@pytest.mark.parametrize(
    ("path", "value", "file", "what"),
    [
        (("tables", 0, "num_embeddings"), 10, "schema-0001.json", "table 'item' has 10 rows, its vocabulary 8"),
        (("tables", 0, "num_embeddings"), 2**31, "schema-0001.json", "out of range"),
        (("tables", 2, "num_embeddings"), 1, "schema-0001.json", "no row to hash into"),
        (("tables", 1, "hashed"), True, "manifest.json", "counts a vocabulary of 'tag'"),
        (("tables", 0, "name"), "../x", "schema-0001.json", "have the name '../x'"),
        (("categorical", 0, "table"), "none", "schema-0001.json", "names the table 'none'"),
        (("categorical", 0, "of"), "nobody", "schema-0001.json", "nobody"),
        (("categorical", 0, "of"), "items", IT, "column 'item' is missing"),
        (("tasks", 1, "masked_by"), "none", "schema-0001.json", "masked by 'none', which is no task"),
        (("tasks", 0, "masked_by"), "buy", "schema-0001.json", "tasks mask each other"),
        (("tasks", 0, "delay"), "d", f"{A0}/{EX}", "column '_delay_click' is missing"),
        (("tasks", 0, "truth"), None, f"{A0}/{EX}", "column '_truth_click' is no column"),
        (("event_fields",), [], "schema-0001.json", "counts events, but the schema has none"),
        (("streams",), [], "schema-0001.json", "events without streams"),
        (("vectors", 0, "width"), 3, f"{A0}/{EX}", "column 'look' has type"),
    ],
)
def test_a_schema_that_contradicts_itself_or_the_tables_is_told(folder, path, value, file, what):
    schema = json.loads((folder / "schema-0001.json").read_text())
    put_at(schema, path, value)
    storage.write_json(schema, folder / "schema-0001.json")
    forge(folder)
    assert any(v.file == file and what in v.what for v in found(folder)), found(folder)
    with pytest.raises(GemkitError):
        verify.verified(folder)


@pytest.mark.parametrize(
    ("column", "what"), [("user", "no column of users"), ("timestamp", "no column of times"), ("item", "of items")]
)
def test_columns_that_the_schema_needs_are_named(folder, column, what):
    manifest = json.loads((folder / "manifest.json").read_text())
    manifest["columns"][column] = None
    forge(folder, manifest)
    (only,) = found(folder)
    assert only.file == "schema-0001.json" and what in only.what


def test_files_too_many_and_too_few_are_named(folder):
    manifest = json.loads((folder / "manifest.json").read_text())
    strange = "segments/0007/000/examples.arrow"
    files = {n: h for n, h in manifest["files"].items() if n != f"{B0}/{EV}"} | {strange: ""}
    (folder / strange).parent.mkdir(parents=True)
    (folder / strange).write_bytes(b"x")
    forge(folder, manifest | {"files": files})
    assert {v.what for v in found(folder)} == {
        f"the manifest names {strange}, which the schema has no use for", f"the manifest does not name {B0}/{EV}"
    }  # fmt: skip


def test_changed_and_missing_files_are_named_once_and_rows_are_looked_at(folder):
    rows = read(folder, f"{A0}/{EX}")
    rows[3]["item"] = 9
    write(rows, folder / f"{A0}/{EX}")
    (folder / f"{B1}/{EV}").unlink()
    (folder / IT).write_bytes(b"no arrow")
    said = [(v.file, v.what) for v in found(folder)]
    assert [f for f, _ in said].count(f"{B1}/{EV}") == 1
    assert any(f == f"{A0}/{EX}" and "has changed since the data set was built" in w for f, w in said)
    assert any(f == f"{A0}/{EX}" and "has the value 9" in w for f, w in said)
    assert any(f == IT and "cannot read items.arrow" in w for f, w in said)


# --- the stamp -----------------------------------------------------------------------------------------------------


def test_a_folder_that_has_passed_is_not_gone_through_again(folder, monkeypatch):
    passes = []
    through = verify.violations
    monkeypatch.setattr(verify, "violations", lambda *args: (passes.append(1), through(*args))[1])
    verify.verified(folder)
    verify.verified(folder)
    assert len(passes) == 2, "files of the last two seconds get no stamp"
    monkeypatch.setattr(verify, "SETTLED_NS", -1)
    verify.verified(folder)
    assert len(passes) == 3
    verify.verified(folder)
    assert len(passes) == 3
    (folder / "schema-0001.json").touch()
    verify.verified(folder)
    assert len(passes) == 4
    monkeypatch.setattr(verify, "RULES", verify.RULES + 1)
    verify.verified(folder)
    assert len(passes) == 5


def test_a_stamp_that_came_with_the_folder_is_not_believed(folder, monkeypatch):
    """Someone who means harm may write any stamp, but not choose the times that the file system gives the files."""
    monkeypatch.setattr(verify, "SETTLED_NS", -1)
    damaged(folder, f"{A0}/{EX}", put("item", 9))
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    names = json.loads((folder / "manifest.json").read_text())["files"]
    for states in ({}, {n: [*verify._state(folder / n)[:2], 0] for n in names}):
        stamp = {"rules": verify.RULES, "manifest": digest, "files": states}
        (folder / verify.STAMP).write_text(json.dumps(stamp))
        with pytest.raises(GemkitError, match="has the value 9"):
            verify.verified(folder)


def test_forged_folders_are_refused_or_sound(made, tmp_path):
    """Random changes with hashes that fit: none is a defect, and what opens is told by the thorough rules at most."""
    from gemkit.testing import fuzz

    rng, outcomes = random.Random(3), []
    for number in range(60):
        copy = Path(shutil.copytree(made, tmp_path / str(number)))
        fuzz.forge_folder(copy, rng)
        try:
            told = found(copy)
        except GemkitError:  # not even the version of its format can be told
            told = [violation.about_file("manifest.json", "")]
        try:
            verify.verified(copy)
            outcomes.append("told" if told else "sound")
        except GemkitError:
            outcomes.append("refused")
            assert told, number
    assert outcomes.count("refused") > 30 and "sound" in outcomes


# --- without users, items, events; memory --------------------------------------------------------------------------


def plain_folder(folder: Path, num_rows: int) -> Path:
    """Examples alone: one dense feature, one id, no users and no time."""
    schema = Schema(
        name="plain",
        tables=(Table(name="id", num_embeddings=4),),
        dense=(DenseFeature(name="x"),),
        categorical=(CategoricalFeature(name="id", table="id"), CategoricalFeature(name="bag", table="id", multi=True)),
        tasks=(Task(name="y"),),
    )
    n = np.arange(num_rows)
    counts = {"train": num_rows - 2, "valid": 1, "test": 1}
    columns = {
        "_example_id": n, "_split": ((n >= num_rows - 2).astype(np.int8) + (n == num_rows - 1)).astype(np.int8),
        "_timestamp": np.zeros(num_rows, np.int64), "_weight": np.ones(num_rows, np.float32),
        "_surface": np.zeros(num_rows, np.int32), "_group": np.zeros(num_rows, np.int64),
        "_history": n.astype(np.int32), "y": (n % 2).astype(np.int8), "x": n * 0.5, "id": (n % 4).astype(np.int32),
        "bag": pa.LargeListArray.from_arrays(np.arange(num_rows + 1) * 2, np.zeros(num_rows * 2, np.int32)),
    }  # fmt: skip
    storage.write_table(storage.table_of(columns), folder / storage.partition_folder(0, 0) / "examples.arrow")
    vocabulary = pa.table({"value": ["a", "b", "c"], "count": pa.array([1, 1, 1], pa.int64())})
    storage.write_table(vocabulary, folder / storage.vocabulary_file("id", 0))
    storage.write_json(to_mapping(schema), folder / "schema.json")
    rows = counts | {"examples": num_rows, "events": 0}
    about = {
        "rows": rows | {"items": 0}, "partitions": [rows | {"users": 0}], "vocabularies": {"id": 3}, "first_s": 0,
        "last_s": 0, "gemkit": "0", "source_files": {}, "options": {}, "by_boundaries": False,
    }  # fmt: skip
    files = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
    forge(
        folder,
        {
            "format_version": 3, "name": "plain", "gemkit": "0", "partitions": 1, "boundaries": None, "rows": rows,
            "segments": [about], "files": dict.fromkeys(files, ""), "source_files": {}, "options": {},
            "columns": dict.fromkeys(("user", "timestamp", "surface", "example_id", "item")),
        },
    )  # fmt: skip
    return folder


def test_a_data_set_without_users_is_checked_too(tmp_path):
    folder = plain_folder(tmp_path / "d", 50)
    assert found(folder) == []
    changed_table(folder, f"{A0}/{EX}", lambda t: t.set_column(6, "_history", pa.array([0, *range(49)], pa.int32())))
    (only,) = found(folder)
    assert (only.column, only.rows) == ("_history", (1,))


def test_slices_change_nothing(folder, monkeypatch):
    """Rules look at the row before, which may be in the slice before."""
    for damage in (
        d for d in DAMAGES if d[0] in ("events out of order", "history number shared", "leak", "start goes back")
    ):
        copy = Path(shutil.copytree(folder, folder.parent / damage[0]))
        rows = damaged(copy, damage[1], damage[3])
        for size in (1, 2, 3, 7):
            monkeypatch.setattr(violation, "SLICE", size)
            (only,) = found(copy)
            assert (only.file, only.column, only.rows) == (damage[1], damage[2], tuple(rows))
    assert found(folder) == []


def test_memory_does_not_grow_with_the_rows(tmp_path, monkeypatch):
    monkeypatch.setattr(violation, "SLICE", 10_000)
    monkeypatch.setattr(unique, "MAX_KEYS", 20_000)
    peaks = []
    for num_rows in (100_000, 1_000_000):
        folder = plain_folder(tmp_path / str(num_rows), num_rows)
        before = pa.total_allocated_bytes()
        tracemalloc.start()
        assert found(folder) == []
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
        assert pa.total_allocated_bytes() - before < 1e5
    assert peaks[1] < 1.5 * peaks[0] + 1e5 and peaks[1] < 3e6, peaks


# --- the command ---------------------------------------------------------------------------------------------------


def test_the_command_says_what_is_wrong_and_where(folder, capsys):
    assert main(["data", "check", str(folder)]) == 0
    assert capsys.readouterr().out.startswith(f"{folder}: sound; 120 examples")
    damaged(folder, f"{A0}/{EX}", put("item", 9))
    rows = read(folder, f"{B0}/{EX}")
    for row in rows[2:]:
        row["_surface"] = 5
    write(rows, folder / f"{B0}/{EX}")
    forge(folder)
    assert main(["data", "check", str(folder)]) == 2
    out = capsys.readouterr().out
    assert f"{A0}/{EX}, column item, 1 row: 3 (the first is 0): column 'item' has the value 9, which is out of" in out
    assert f"column _surface, {len(rows) - 2} rows: 2, 3, 4, 5, 6 ... (the first is 0)" in out
    assert "  allowed: 0 to 8" in out and "2 violations; 120 examples" in out
    assert main(["data", "check", str(folder), "--limit", "1"]) == 2
    assert "... and 1 more" in capsys.readouterr().out
    assert main(["data", "check", str(folder), "--json"]) == 2
    facts = json.loads(capsys.readouterr().out)
    assert facts["num_violations"] == 2 and facts["violations"][0]["rows"] == [3] and facts["num_files"] == 18


def test_the_command_explains_what_is_no_data_set(tmp_path, capsys):
    assert main(["data", "check", str(tmp_path)]) == 2
    assert "is not a data set" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path), "data.root=x"]) == 2
    assert "has no options" in capsys.readouterr().err
    assert main(["data", "check", "movielens1m", f"data.root={tmp_path}"]) == 2
    assert "is not a data set" in capsys.readouterr().err
    assert main(["data", "check", "movielens1n"]) == 2
    assert "movielens1m" in capsys.readouterr().err
    assert main(["data", "check", str(tmp_path), "--limit", "-1"]) == 2
