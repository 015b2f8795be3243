"""The build of logs that are larger than memory: pieces, partitions, parts, segments; all hold the same data set."""

from __future__ import annotations

import dataclasses
import shutil
from collections import defaultdict
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gemkit.cli.main import main
from gemkit.data import storage, streamfile
from gemkit.data.append import append
from gemkit.data.build import Share, Work, build
from gemkit.data.collate import Reading, collate
from gemkit.data.compact import compact
from gemkit.data.dataset import Dataset
from gemkit.data.engine import Limits, bytes_of
from gemkit.data.schema import CategoricalFeature, DenseFeature, EventField, Task, VectorFeature
from gemkit.data.source import Source, Split, Stream, TableRule
from gemkit.data.statistics import ExactSum
from gemkit.data.validation.report import check
from gemkit.errors import GemkitError

Row = dict[str, Any]
PROFILE = settings(deadline=None, derandomize=True, suppress_health_check=[HealthCheck.function_scoped_fixture])
"""As many examples as tests/conftest.py says."""
SPLITS = ("train", "valid", "test")


def silent(*_: Any) -> None:
    pass


def texts(prefix: str, most: int) -> st.SearchStrategy[str]:
    return st.integers(0, most).map(lambda i: f"{prefix}{i}")


def events_at(times: st.SearchStrategy[int]) -> st.SearchStrategy[list[Row]]:
    """Users without examples, empty cells and ties among them."""
    event = {"user": texts("u", 5), "time": times, "item": texts("i", 8) | st.none(), "kind": texts("k", 2)}
    return st.lists(st.fixed_dictionaries(event), min_size=1, max_size=25)


def examples_at(times: st.SearchStrategy[int]) -> st.SearchStrategy[list[Row]]:
    example = {
        "user": texts("u", 7),
        "time": times,
        "item": texts("i", 8) | st.none(),
        "tags": st.lists(texts("t", 4), max_size=3),
        "price": st.floats(-5, 5, width=32),
        "click": st.sampled_from([0, 1, None]),
        "buy": st.sampled_from([0, 1]),
        "late": st.sampled_from([3.5, 100.0, None]),
        "place": texts("s", 1),
    }
    return st.lists(st.fixed_dictionaries(example), min_size=1, max_size=15)


@st.composite
def logs(draw: st.DrawFn, most_days: int = 1) -> list[tuple[list[Row], list[Row]]]:
    """Events and examples of consecutive days; a day begins after the last second of the one before."""
    days, first = [], 0
    for _ in range(draw(st.integers(1, most_days))):
        times = st.integers(first, first + 9)
        days.append((draw(events_at(times)), draw(examples_at(times))))
        first += 10
    for i, split in enumerate(SPLITS):  # each split has an example, and train a label
        days[0][1].append(
            {"user": "u0", "time": i, "item": "i0", "tags": ["t0"], "price": 1.0, "click": 1, "buy": 1, "late": 2.0,
             "place": "s0", "split": split}
        )  # fmt: skip
    return days


EVENTS = pa.schema([("user", pa.string()), ("time", pa.int64()), ("item", pa.string()), ("kind", pa.string())])
EXAMPLES = pa.schema(
    [("user", pa.string()), ("time", pa.int64()), ("item", pa.string()), ("tags", pa.list_(pa.string())),
     ("price", pa.float32()), ("click", pa.int8()), ("buy", pa.int8()), ("late", pa.float64()),
     ("place", pa.string()), ("split", pa.string()), ("id", pa.int64())]
)  # fmt: skip
ITEMS = pa.table({"item": [f"i{i}" for i in range(7)], "brand": [f"b{i % 3}" for i in range(7)],
                  "look": [[float(i), -1.0] for i in range(7)]})  # fmt: skip
USERS = pa.table({"user": [f"u{i}" for i in range(6)], "age": [20.0 + i for i in range(6)]})


def tables(events: list[Row], examples: list[Row], first_id: int = 0) -> tuple[pa.Table, pa.Table]:
    rows = [{"split": "train"} | row | {"id": first_id + i} for i, row in enumerate(examples)]
    return pa.Table.from_pylist(events, EVENTS), pa.Table.from_pylist(rows, EXAMPLES)


def in_pieces(table: pa.Table, rows: int) -> Stream:
    return Stream(lambda: (table.slice(i, rows) for i in range(0, table.num_rows, rows)), table.nbytes)


def source(events: Any, examples: Any, **changes: Any) -> Source:
    base = Source(
        name="log",
        examples=examples,
        events=events,
        users=USERS,
        items=ITEMS,
        dense=(DenseFeature(name="price"), DenseFeature(name="age", role="user", of="users")),
        categorical=(
            CategoricalFeature(name="item", role="item"),
            CategoricalFeature(name="tags", multi=True),
            CategoricalFeature(name="brand", role="item", of="items"),
        ),
        vectors=(VectorFeature(name="look", of="items"),),
        event_fields=(EventField(name="item"),),
        tasks=(Task(name="click"), Task(name="buy", masked_by="click", delay="late")),
        tables=(TableRule(name="tags", hash_rows=50),),
        user="user",
        item="item",
        timestamp="time",
        stream="kind",
        surface="place",
        group="user",
        example_id="id",
        split=Split(by="column"),
    )
    return dataclasses.replace(base, **changes)


def built(folder: Path, made: Source, limits: Limits | None = None) -> Dataset:
    build(made, folder, silent, None, limits)
    assert check(folder, silent).violations == []
    return Dataset.open(folder)


def content(data: Dataset) -> dict[int, Any]:
    """What each example's batch row says, as text, by example id."""
    schema, rows = data.schema, np.arange(data.num_examples)
    names = {t.name: ["?", *data.vocabulary(t.name)] if not t.hashed else None for t in schema.tables}

    def text(key: str, ids: list[int]) -> list[Any]:
        known = names[schema.feature_tables[key]]
        return [i if known is None else known[i] for i in ids]

    batch = collate(data, rows, Reading(max_history=7))
    h = batch.history
    assert h is not None
    found = {}
    for b in range(batch.size):
        u = int(h.history_index[b])
        run = slice(int(h.offsets[u]), int(h.offsets[u + 1]))
        bag = slice(*batch.bag_offsets["tags"][b : b + 2].tolist())
        found[int(batch.example_id[b])] = {
            "single": [text(k, batch.ids[k][b : b + 1].tolist()) for k in ("item", "brand")],
            "tags": text("tags", batch.ids["tags"][bag].tolist()),
            "history": text("events.item", batch.ids["events.item"][run].tolist()),
            "kinds": [schema.streams[i] for i in h.stream[run].tolist()],
            "ages": h.ages[run].tolist(),
            "dense": batch.dense[b].tolist(),
            "look": batch.vectors["look"][b].tolist(),
            "labels": batch.labels[b].tolist(),
            "masks": batch.masks[b].tolist(),
            "delay": str(batch.delays[b].tolist()),
            "place": schema.surfaces[int(batch.surface[b])],
            "group": int(batch.group[b]),
            "time": int(batch.timestamp[b]),
            "split": SPLITS[int(data.columns[storage.SPLIT][rows[b]])],
        }
    return found


def files(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name[0] != "."}


@PROFILE
@given(logs(), st.integers(1, 4))
def test_a_build_holds_what_a_filtered_list_holds(tmp_path_factory: Any, days: Any, partitions: int) -> None:
    (events, examples), folder = days[0], tmp_path_factory.mktemp("d")
    data = built(folder / "d", source(*tables(events, examples)), Limits(num_partitions=partitions))
    found = content(data)
    train = [x for x in examples if x.get("split", "train") == "train"]
    seen = {x["item"] for x in train} | {
        e["item"] for e in events if any(x["user"] == e["user"] and e["time"] < x["time"] for x in train)
    }
    brands = defaultdict(lambda: "?", {f"i{i}": f"b{i % 3}" for i in range(7)})
    known_brands = {brands[x["item"]] for x in train}
    assert sorted(found) == list(range(len(examples)))
    for i, x in enumerate(examples):
        log = [e for e in events if e["user"] == x["user"] and e["time"] < x["time"]]
        log = sorted(log, key=lambda e: e["time"])[-7:]
        of_i = found[i]
        assert of_i["history"] == [e["item"] if e["item"] and e["item"] in seen else "?" for e in log]
        assert of_i["kinds"] == [e["kind"] for e in log]
        assert of_i["ages"] == [x["time"] - e["time"] for e in log]
        brand = brands[x["item"]] if brands[x["item"]] in known_brands else "?"
        assert of_i["single"] == [[x["item"] if x["item"] in seen and x["item"] else "?"], [brand]]
        assert len(of_i["tags"]) == len(x["tags"]) and 0 not in of_i["tags"]
        number = int(x["item"][1:]) if x["item"] else 9
        assert of_i["look"] == ([float(number), -1.0] if number < 7 else [0.0, 0.0])
        click, buy = x["click"], x["buy"] if x["click"] == 1 else None
        assert of_i["masks"] == [float(click is not None), float(buy is not None)]
        assert of_i["labels"] == [float(click == 1), float(buy == 1)]
        assert of_i["delay"] == str([float("nan"), x["late"] if buy == 1 and x["late"] else float("nan")])
        assert (of_i["place"], of_i["time"]) == (x["place"], x["time"])


def test_an_id_that_only_an_event_of_the_same_second_has_is_not_seen_in_training(tmp_path: Path) -> None:
    day = [_example("u0", 10, "x", split=s) for s in SPLITS]
    events = [{"user": "u0", "time": t, "item": f"at{t}", "kind": "k"} for t in (9, 10, 11)]
    assert sorted(built(tmp_path / "d", source(*tables(events, day))).vocabulary("item")) == ["at9", "x"]


@PROFILE
@given(
    st.lists(st.floats(-1e30, 1e30), min_size=1, max_size=30),
    st.lists(st.integers(0, 9), min_size=30, max_size=30),
    st.integers(0, 30),
)
def test_sums_are_exact_however_they_are_cut(values: list[float], counts: list[int], cut: int) -> None:
    number, times = np.array(values), np.array(counts[: len(values)])
    repeated = np.repeat(number, times)
    parts, weighted = ExactSum(), ExactSum()
    for piece in (repeated[cut:], repeated[:cut]):
        parts.add(piece)
    weighted.add(number, times)
    exact = float(sum(map(Fraction, repeated.tolist())) / len(repeated)) if len(repeated) else 0.0
    assert parts.mean == weighted.mean == exact
    assert parts.count == weighted.count == len(repeated)


def test_statistics_of_users_count_training_examples(tmp_path: Path) -> None:
    users = ["u0", "u0", "u1", "u9"]  # u9 has no row, and the ages are 20 and 21
    day = [_example(u, 5, "x") for u in users] + [_example("u3", 5, "x", split=s) for s in SPLITS[1:]]
    data = built(tmp_path / "d", source(*tables([{"user": "u1", "time": 0, "item": "x", "kind": "k"}], day)))
    age = data.schema.dense[1]
    assert (age.mean, age.std) == (pytest.approx(61 / 3), pytest.approx(np.std([20, 20, 21])))
    assert content(data)[3]["dense"][1] == 0.0


@PROFILE
@given(logs(), st.integers(1, 7), st.integers(1, 4), st.sampled_from(["768MiB", "3GiB"]))
def test_pieces_and_memory_do_not_change_a_byte(
    tmp_path_factory: Any, days: Any, rows: int, partitions: int, memory: str
) -> None:
    folder = tmp_path_factory.mktemp("d")
    events, examples = tables(*days[0])
    built(folder / "whole", source(events, examples), Limits(num_partitions=partitions))
    limits = Limits(bytes_of(memory), partitions)
    built(folder / "pieces", source(in_pieces(events, rows), in_pieces(examples, rows)), limits)
    assert files(folder / "whole") == files(folder / "pieces")


@PROFILE
@given(logs(), st.integers(2, 5))
def test_partitions_change_no_example(tmp_path_factory: Any, days: Any, partitions: int) -> None:
    folder, made = tmp_path_factory.mktemp("d"), source(*tables(*days[0]))
    one, many = (built(folder / str(n), made, Limits(num_partitions=n)) for n in (1, partitions))
    assert content(one) == content(many)
    assert one.schema == many.schema


@PROFILE
@given(logs(most_days=4), st.integers(1, 3))
def test_appending_days_is_building_all_and_compacting_too(tmp_path_factory: Any, days: Any, partitions: int) -> None:
    folder = tmp_path_factory.mktemp("d")
    # Dense statistics stay those of the first day, and ids that a day brings are known from that day on.
    plain = {
        "dense": (), "vectors": (), "users": None, "items": ITEMS,
        "tables": tuple(TableRule(name=n, hash_rows=500) for n in ("item", "tags", "brand")),
    }  # fmt: skip
    plain["vectors"] = (VectorFeature(name="look", of="items"),)
    rows: list[Row] = []
    for day, (events, examples) in enumerate(days):
        made = source(*tables(events, examples, len(rows)), **plain)
        if day == 0:
            built(folder / "days", made, Limits(num_partitions=partitions))
        else:
            append(made, folder / "days", silent)
        rows += examples
    whole = built(
        folder / "whole",
        source(*tables([e for day in days for e in day[0]], rows), **plain),
        Limits(num_partitions=partitions),
    )
    parts = Dataset.open(folder / "days")
    assert check(folder / "days", silent).violations == []
    assert len(parts.manifest["segments"]) == len(days)
    assert content(parts) == content(whole)
    before = content(parts)
    assert compact(folder / "days", silent) == (len(days) > 1)
    assert check(folder / "days", silent).violations == []
    assert content(Dataset.open(folder / "days")) == before


def test_ids_only_grow_and_old_files_stay(tmp_path: Path) -> None:
    event, example = {"user": "u1", "time": 0, "item": "old", "kind": "k0"}, _example("u1", 5, "old")
    day0 = [_example("u0", 0, "x", split=s) for s in SPLITS]
    build(source(*tables([event], [example, *day0])), tmp_path / "d", silent)
    old = files(tmp_path / "d")
    reader = Dataset.open(tmp_path / "d")
    later = {"user": "u1", "time": 20, "item": "new", "kind": "k9"}
    append(source(*tables([later], [_example("u1", 30, "newer")], 4)), tmp_path / "d", silent)
    now = files(tmp_path / "d")
    assert all(now[name] == found for name, found in old.items() if name not in ("manifest.json", "schema.json"))
    data = Dataset.open(tmp_path / "d")
    assert data.vocabulary("item")[: len(reader.vocabulary("item"))] == reader.vocabulary("item")
    assert sorted(data.vocabulary("item")) == ["new", "newer", "old", "x"]
    assert content(data)[4]["history"] == ["old", "new"] and content(data)[4]["kinds"] == ["k0", "k9"]
    assert data.schema.dense == reader.schema.dense
    assert {k: v for k, v in content(data).items() if k < 4} == content(reader), "an open data set can still be read"


def _example(user: str, time: int, item: str, **changes: Any) -> Row:
    row = {"user": user, "time": time, "item": item, "tags": [], "price": 1.0, "click": 1, "buy": 0}
    return row | {"late": None, "place": "s0"} | changes


@pytest.mark.parametrize(
    ("event_s", "example_s", "what"), [(9, 40, "rows are older"), (30, 10, "rows are older"), (10, 11, None)]
)
def test_rows_that_earlier_examples_should_have_seen_are_refused(
    tmp_path: Path, event_s: int, example_s: int, what: str | None
) -> None:
    day0 = [_example("u0", 10 if s == "test" else 0, "x", split=s) for s in SPLITS]
    build(source(*tables([{"user": "u1", "time": 0, "item": "x", "kind": "k"}], day0)), tmp_path / "d", silent)
    made = source(
        *tables(
            [{"user": "u1", "time": t, "item": "x", "kind": "k"} for t in (event_s, 50)],
            [_example("u0", t, "x") for t in (example_s, 60)],
            3,
        ),
        events_title="day1.csv",
        examples_title="day1.csv",
    )
    before = files(tmp_path / "d")
    if what is None:
        append(made, tmp_path / "d", silent)
        return
    with pytest.raises(GemkitError, match=what) as caught:
        append(made, tmp_path / "d", silent)
    assert caught.value.where == "day1.csv, column time, 1 row: 1 (the first is 1)"
    assert files(tmp_path / "d") == before and [p.name for p in tmp_path.iterdir()] == ["d"]
    late = append(made, tmp_path / "d", silent, drop_late=True)
    assert sum(late.values()) == 1 and check(tmp_path / "d", silent).violations == []


@pytest.mark.parametrize("timed", [True, False])
def test_without_events_or_times_nothing_can_be_late_that_is_not_older(tmp_path: Path, timed: bool) -> None:
    def rows(first_s: int) -> Source:
        table = pa.table({"item": ["a", "b"] * 5, "click": [0, 1] * 5, "split": ["train"] * 6 + ["valid", "test"] * 2,
                          "time": range(first_s, first_s + 10)})  # fmt: skip
        return Source(
            name="plain", examples=table, categorical=(CategoricalFeature(name="item"),), tasks=(Task(name="click"),),
            timestamp="time" if timed else None, split=Split(by="column"),
        )  # fmt: skip

    build(rows(0), tmp_path / "d", silent, None, Limits(num_partitions=3))
    append(rows(9), tmp_path / "d", silent)
    if timed:
        with pytest.raises(GemkitError, match="rows are older"):
            append(rows(17), tmp_path / "d", silent)
    for _ in range(2):
        assert check(tmp_path / "d", silent).violations == []
        data = Dataset.open(tmp_path / "d")
        ids = np.asarray(data.columns[storage.EXAMPLE_ID])
        assert sorted(ids.tolist()) == list(range(20)) and len(data.split("train")) == 12
        compact(tmp_path / "d", silent)


def test_compaction_refuses_to_change_what_examples_hold(tmp_path: Path) -> None:
    day0 = [_example("u0", 0, "i0", split=s) for s in SPLITS]
    build(source(*tables([{"user": "u0", "time": 0, "item": "x", "kind": "k"}], day0)), tmp_path / "d", silent)
    older = USERS.set_column(1, "age", pa.array([21.0] * 6))
    day1 = tables([{"user": "u0", "time": 10, "item": "x", "kind": "k"}], [_example("u0", 20, "i0")], 3)
    append(source(*day1, users=older), tmp_path / "d", silent)
    before = content(Dataset.open(tmp_path / "d"))
    with pytest.raises(GemkitError, match="describe 'u0' differently: 'age' has changed"):
        compact(tmp_path / "d", silent)
    assert content(Dataset.open(tmp_path / "d")) == before
    assert sorted(p.name for p in tmp_path.iterdir()) == ["d"]


def test_another_declaration_cannot_be_appended(tmp_path: Path) -> None:
    day0 = [_example("u0", 0, "x", split=s) for s in SPLITS]
    events = [{"user": "u1", "time": 0, "item": "x", "kind": "k"}]
    build(source(*tables(events, day0)), tmp_path / "d", silent)
    other = source(*tables(events, day0), tasks=(Task(name="click"),))
    with pytest.raises(GemkitError, match=r"declaration differs .* 'tasks': .*buy"):
        append(other, tmp_path / "d", silent)


@PROFILE
@given(logs(), st.integers(1, 5), st.integers(1, 3))
def test_parts_of_several_machines_make_the_same_files(
    tmp_path_factory: Any, days: Any, partitions: int, machines: int
) -> None:
    folder, made, limits = tmp_path_factory.mktemp("d"), source(*tables(*days[0])), Limits(num_partitions=partitions)
    options = {"a": 1}
    build(made, folder / "alone", silent, options, limits)
    for i in reversed(range(machines)):
        build(made, folder / "shared", silent, options, limits, Share(i, machines))
    Work(folder / "shared", made, options, Limits(), Share(), silent).finish()
    assert files(folder / "alone") == files(folder / "shared")
    assert sorted(p.name for p in folder.iterdir()) == ["alone", "shared"]


def test_a_merge_says_what_is_missing(tmp_path: Path) -> None:
    day0 = [_example("u0", 0, "i0", split=s) for s in SPLITS]
    made, limits = (
        source(*tables([{"user": "u1", "time": 0, "item": "x", "kind": "k"}], day0)),
        Limits(num_partitions=4),
    )
    build(made, tmp_path / "d", silent, {"a": 1}, limits, Share(1, 3))
    with pytest.raises(GemkitError, match="3 of 4 partitions are missing: 0, 2, 3"):
        Work(tmp_path / "d", made, {"a": 1}, Limits(), Share(), silent).finish()
    other = dataclasses.replace(made, items=ITEMS.set_column(1, "brand", pa.array(["other"] * 7)))
    learned = tmp_path / "d.building" / "learned-1-of-3.json"
    kept = learned.read_text()
    build(other, tmp_path / "d", silent, {"a": 1}, limits, Share(0, 3))
    (tmp_path / "d.building" / "learned-1-of-3.json").write_text(kept)
    with pytest.raises(GemkitError, match="were built from different files"):
        Work(tmp_path / "d", made, {"a": 1}, Limits(), Share(), silent).finish()


def test_a_refused_part_leaves_the_others(tmp_path: Path) -> None:
    day0 = [_example("u0", 0, "i0", split=s) for s in SPLITS]
    events, examples = tables([{"user": "u1", "time": 0, "item": "x", "kind": "k"}], day0)
    made, limits = source(events, examples), Limits(num_partitions=4)
    build(made, tmp_path / "d", silent, {"a": 1}, limits, Share(1, 2))
    kept = {name for name in files(tmp_path / "d.building") if "partition" in name}
    assert len(kept) == 2
    broken = source(events, examples.set_column(5, "click", pa.array([7, 7, 7], pa.int8())))
    with pytest.raises(GemkitError, match="label 'click' has the value 7"):
        build(broken, tmp_path / "d", silent, {"a": 1}, limits, Share(0, 2))
    assert {name for name in files(tmp_path / "d.building") if "partition" in name} == kept
    build(made, tmp_path / "d", silent, {"a": 1}, limits, Share(0, 2))
    Work(tmp_path / "d", made, {"a": 1}, Limits(), Share(), silent).finish()
    assert check(tmp_path / "d", silent).violations == []


class Cut(BaseException):
    """What ends a process."""


@PROFILE
@given(logs(), st.integers(1, 12))
def test_an_interrupted_build_goes_on_to_the_same_files(tmp_path_factory: Any, days: Any, step: int) -> None:
    folder, made = tmp_path_factory.mktemp("d"), source(*tables(*days[0]))
    limits, options = Limits(num_partitions=3), {"file": 1}
    build(made, folder / "whole", silent, options, limits)

    def cut(_: str, done: int, __: int) -> None:
        if done == step:
            raise Cut

    try:
        build(made, folder / "d", cut, options, limits)
    except Cut:
        build(made, folder / "d", silent, options, limits)
    assert files(folder / "whole") == files(folder / "d")
    assert sorted(p.name for p in folder.iterdir()) == ["d", "whole"]


def test_what_is_done_is_not_done_again(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    events, examples = tables(
        [{"user": f"u{u}", "time": t, "item": "x", "kind": "k"} for u, t in rng.integers(0, 50, (400, 2)).tolist()],
        [_example(f"u{u}", u, "x", split=SPLITS[u % 3]) for u in range(50)],
    )
    reads = []

    def counted(table: pa.Table) -> Stream:
        return Stream(lambda: reads.append(1) or iter([table]), table.nbytes)  # type: ignore[func-returns-value]

    made = source(counted(events), counted(examples))

    def cut(_: str, done: int, __: int) -> None:
        if (tmp_path / "d.building" / "partition-002.json").is_file():
            raise Cut

    with pytest.raises(Cut):
        build(made, tmp_path / "d", cut, {"a": 1}, Limits(num_partitions=5))
    first = (tmp_path / "d.building" / "out" / "segments" / "0000" / "001" / "events.arrow").stat().st_mtime_ns
    assert len(reads) == 2
    build(made, tmp_path / "d", silent, {"a": 1}, Limits(num_partitions=5))
    assert len(reads) == 2, "the source is not read again"
    assert (tmp_path / "d" / "segments" / "0000" / "001" / "events.arrow").stat().st_mtime_ns == first


@pytest.mark.parametrize("kind", ["csv", "parquet", "arrow"])
def test_large_files_are_read_in_pieces(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    import pyarrow.csv
    import pyarrow.feather

    rng = np.random.default_rng(0)
    n = 3000
    logs = {
        "examples": pa.table({"user": rng.integers(0, 40, n), "t": np.sort(rng.integers(0, 9999, n)),
                              "item": [f"i{i}" for i in rng.integers(0, 20, n)], "price": rng.random(n).round(3),
                              "click": rng.integers(0, 2, n)}),
        "events": pa.table({"user": rng.integers(0, 40, n), "t": rng.integers(0, 9999, n),
                            "item": [f"i{i}" for i in rng.integers(0, 20, n)]}),
    }  # fmt: skip
    write = {"csv": pyarrow.csv.write_csv, "parquet": pq.write_table, "arrow": pyarrow.feather.write_feather}[kind]
    for name, table in logs.items():
        write(table, tmp_path / f"{name}.{kind}")
    monkeypatch.setattr(streamfile, "BATCH_ROWS", 500)
    monkeypatch.setattr(streamfile, "BLOCK_BYTES", 9000)
    words = [f"data.examples={tmp_path}/examples.{kind}", f"data.events={tmp_path}/events.{kind}", "data.user=user"]
    words += ["data.timestamp=t", "data.event_fields=[{name: item}]", "data.tasks=[{name: click}]"]
    words += ["data.categorical=[{name: item, role: item}]", "data.dense=[{name: price}]"]
    for way, limit in (("whole", 1 << 30), ("pieces", 0)):
        monkeypatch.setattr(streamfile, "LARGE_BYTES", limit)
        assert main(["data", "build", "table", *words, f"data.root={tmp_path}/{way}"]) == 0
    found = [files(tmp_path / way / "table-examples") for way in ("whole", "pieces")]
    assert found[0] == found[1] and len(found[0]) > 5


def test_a_bad_row_of_a_piece_is_named_by_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(streamfile, "BLOCK_BYTES", 2000)
    for day in (1, 2):
        rows = [f"{day}{i},{100 * day + i % 100},1" for i in range(900)]
        rows[700] = rows[700].replace(",", ",noon" if day == 2 else ",", 1)
        (tmp_path / f"day{day}.csv").write_text("\n".join(["item,t,click", *rows]) + "\n")
    words = ["data.timestamp=t", "data.categorical=[{name: item}]", "data.tasks=[{name: click}]"]
    code = main(["data", "build", "table", f"data.examples={tmp_path}/day*.csv", *words, f"data.root={tmp_path}/r"])
    assert code == 2
    said = capsys.readouterr().err
    assert "day2.csv, column t, 1 row: 701 " in said and "noon" in said
    assert not list((tmp_path / "r").glob("table*"))


MIDDLE = 700


@pytest.mark.parametrize(
    ("row", "what", "where"),
    [
        ("x,1", "Expected 3 columns, got 2", f"log.csv, row {MIDDLE} "),
        ('"x,1,1', "a quote is not closed", f"log.csv, row {MIDDLE} "),
        ("caf\xe9,1,1", "bytes that are not UTF-8", f"column item, 1 row: {MIDDLE} "),
        ("x,1,2", "label 'click' has the value 2", f"column click, 1 row: {MIDDLE} "),
    ],
)
def test_a_broken_row_of_a_large_csv_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, row: str, what: str, where: str
) -> None:
    monkeypatch.setattr(streamfile, "BLOCK_BYTES", 2000)
    monkeypatch.setattr(streamfile, "LARGE_BYTES", 0)
    rows = [f"{i},{i},{i % 2}" for i in range(1000)]
    rows[MIDDLE - 1] = row
    (tmp_path / "log.csv").write_bytes("\n".join(["item,t,click", *rows]).encode("latin-1"))
    stream = streamfile.read_files([tmp_path / "log.csv"], text=["item"], numbers=["click"], others=["t"])
    made = Source(
        name="log", examples=stream, categorical=(CategoricalFeature(name="item"),), tasks=(Task(name="click"),),
        timestamp="t", examples_title="log.csv",
    )  # fmt: skip
    with pytest.raises(GemkitError) as caught:
        build(made, tmp_path / "d", silent)
    assert what in caught.value.what and where in (caught.value.where or "")
    assert [p.name for p in tmp_path.iterdir()] == ["log.csv"]


def test_reading_a_large_parquet_file_takes_little_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(streamfile, "BATCH_ROWS", 1000)
    monkeypatch.setattr(streamfile, "LARGE_BYTES", 0)
    rng, path = np.random.default_rng(0), tmp_path / "log.parquet"
    with pq.ParquetWriter(path, pa.schema([("item", pa.string())]), compression="none") as writer:
        for _ in range(30):
            writer.write_table(pa.table({"item": pa.array([rng.bytes(40).hex() for _ in range(10_000)])}))
    stream = streamfile.read_files([path], text=["item"], numbers=[], others=[])
    assert isinstance(stream, Stream)
    before = pa.total_allocated_bytes()
    held = [pa.total_allocated_bytes() - before for _ in stream.read()]
    assert len(held) == 300 and max(held) < path.stat().st_size / 4


def test_the_commands_append_compact_and_merge(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for day in range(3):
        rows = [f"u{i % 7},{1000 * day + i},i{i % 5},{i % 2}" for i in range(100)]
        (tmp_path / f"day{day}.csv").write_text("\n".join(["user,t,item,click", *rows]) + "\n")
    words = ["data.user=user", "data.timestamp=t", "data.event_fields=[{name: item}]", "data.tasks=[{name: click}]"]
    words += ["data.categorical=[{name: item, role: item}]", f"data.root={tmp_path}/r", "data.folder=log"]

    def of(day: int) -> list[str]:
        return ["table", f"data.examples={tmp_path}/day{day}.csv", f"data.events={tmp_path}/day{day}.csv", *words]

    for i in (1, 0):
        assert main(["data", "build", *of(0), "--num-partitions", "3", "--partitions", f"{i}/2"]) == 0
    assert main(["data", "merge", *of(0)]) == 0
    assert main(["data", "append", *of(1), "--split", "train"]) == 0
    assert main(["data", "append", *of(2), "--late", "drop"]) == 0
    assert main(["data", "append", *of(1)]) == 2
    assert "rows are older than the newest" in capsys.readouterr().err
    data = Dataset.open(tmp_path / "r" / "log")
    assert [len(data.split(s)) for s in SPLITS] == [180, 10, 110]
    assert len(data.manifest["segments"]) == 3 and len(data.shards) == 9
    assert main(["data", "compact", *of(0)]) == 0
    assert main(["data", "check", str(tmp_path / "r" / "log")]) == 0
    assert len(Dataset.open(tmp_path / "r" / "log").shards) == 3
    # What it was built from at first is still there, so it is current.
    assert main(["data", "build", *of(0)]) == 0 and len(Dataset.open(tmp_path / "r" / "log").split("test")) == 110
    shutil.rmtree(tmp_path / "r")


@pytest.mark.parametrize(
    ("words", "what"),
    [
        (["--memory", "1 GB of"], "is no size"),
        (["--memory", "10MiB"], "too little"),
        (["--partitions", "2/2"], "part 2 of 2"),
        (["--partitions", "a"], "is no part"),
        (["--num-partitions", "0"], "0 partitions"),
    ],
)
def test_bad_options_are_explained(capsys: pytest.CaptureFixture[str], words: list[str], what: str) -> None:
    assert main(["data", "build", "movielens1m", *words]) == 2
    assert what in capsys.readouterr().err


def test_a_partition_that_does_not_fit_names_a_number_that_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Limits, "partition_bytes", 2000)
    rng = np.random.default_rng(0)
    events, examples = tables(
        [{"user": f"u{u}", "time": t, "item": "x", "kind": "k"} for u, t in rng.integers(0, 90, (900, 2)).tolist()],
        [_example(f"u{u}", u, "x", split=SPLITS[u % 3]) for u in range(90)],
    )
    with pytest.raises(GemkitError, match="a partition takes") as caught:
        build(source(events, examples), tmp_path / "d", silent)
    assert caught.value.fix and caught.value.fix.startswith("--num-partitions ")
