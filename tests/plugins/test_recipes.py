"""The recipes of public ads sets, on small files of exactly the form of the published ones."""

from __future__ import annotations

import csv
import dataclasses
import pickle
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest
from gemkit_datasets import kuairand, kuaivideo, pieces, taobaoad
from gemkit_datasets.histories_in_rows import KIND, LOG, POSITION, GrowingLogs, SeparateLogs, streams
from hypothesis import given, settings
from hypothesis import strategies as st

from gemkit.component import spec_of
from gemkit.config.compose import compose
from gemkit.data.fetch import md5_of, sha256_of
from gemkit.data.prepare import is_current, prepare
from gemkit.data.source import Source, Stream
from gemkit.errors import GemkitError
from gemkit.registry import load_registry
from gemkit.testing.contracts import contracts
from gemkit.testing.runs import SMALL, silent
from gemkit.train import train

Rows = list[dict[str, Any]]


# --- files of the published form ----------------------------------------------------------------------------


def write(path: Path, rows: Rows) -> None:
    """As pandas writes a CSV."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def read(path: Path) -> Rows:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def write_criteo(folder: Path) -> None:
    rng = random.Random(1)
    for name, count in (("train", 90), ("valid", 20), ("test", 15)):
        rows = [
            {"label": rng.randint(0, 1)}
            | {f"I{i}": round(rng.random(), 6) for i in range(1, 14)}
            | {f"C{i}": 20 * i + rng.randint(0, 5) for i in range(1, 27)}
            for _ in range(count)
        ]
        write(folder / f"{name}.csv", rows)


def write_avazu(folder: Path) -> None:
    rng = random.Random(2)
    for name, count in (("train", 90), ("valid", 20), ("test", 15)):
        rows = [
            {"label": rng.randint(0, 1)} | {f"feat_{i}": 20 * i + rng.randint(0, 5) for i in range(1, 23)}
            for _ in range(count)
        ]
        write(folder / f"{name}.csv", rows)


def write_amazon(folder: Path) -> None:
    """For each user the next of the list, and one that is not; shuffled. The last of each list is in test."""
    rng = random.Random(3)
    train, test = [], []
    for user in range(12):
        items = [rng.randint(0, 30) for _ in range(rng.randint(3, 9))]
        for i in range(1, len(items)):
            past = items[:i]
            for label, item in ((1, items[i]), (0, rng.randint(0, 30))):
                row = {"label": label, "user_id": user, "item_id": item, "cate_id": item % 4}
                row |= {"item_history": join(past), "cate_history": join(p % 4 for p in past)}
                (test if i == len(items) - 1 else train).append(row)
    rng.shuffle(train)
    write(folder / "train.csv", train)
    write(folder / "test.csv", test)


def write_kuaivideo(folder: Path) -> None:
    """Both lists grow along a user's rows, until each has `cap` videos; sorted by time."""
    rng, cap = random.Random(4), 6
    rows = []
    for user in range(8):
        pos, neg = [], []
        for _ in range(rng.randint(10, 25)):
            click, item = rng.randint(0, 1), rng.randint(0, 40)
            row = {"timestamp": rng.randint(0, 10**6), "user_id": user, "item_id": item, "is_click": click}
            row |= {"is_like": click * rng.randint(0, 1), "is_follow": rng.randint(0, 1)}
            rows.append(row | {"lists": (tuple(pos), tuple(neg))})
            (pos if click else neg).append(item)
    times = {user: sorted(r["timestamp"] for r in rows if r["user_id"] == user) for user in range(8)}
    for row in rows:
        row["timestamp"] = times[row["user_id"]].pop(0)
        pos, neg = row.pop("lists")
        row |= {"pos_items": join(pos[:cap]), "neg_items": join(neg[:cap])}
    rows.sort(key=lambda r: r["timestamp"])
    write(folder / "train.csv", rows[: len(rows) * 4 // 5])
    write(folder / "test.csv", rows[len(rows) * 4 // 5 :])


def write_taobao(folder: Path) -> None:
    """Windows of the newest 5 of a list that grows now and then; some brands are 0 and therefore left out."""
    rng, window = random.Random(5), 5
    past: dict[int, list[tuple[int, int, int]]] = {user: [] for user in range(9)}
    rows = []
    for _ in range(160):
        user = rng.randrange(9)
        if rng.random() < 0.4:
            past[user] += [(rng.randint(1, 4), rng.randint(1, 20), rng.randint(0, 9)) for _ in range(rng.randint(1, 4))]
        seen = past[user][-window:]
        row = {
            "clk": rng.randint(0, 1),
            "btag_his": join(b for b, _, _ in seen),
            "cate_his": join(c for _, c, _ in seen),
        }
        row |= {"brand_his": join(b for _, _, b in seen if b), "userid": user, "cms_segid": user % 3}
        row |= dict.fromkeys(taobaoad.USER[2:], user % 2)
        row |= {n: rng.randint(1, 9) for n in ("adgroup_id", "cate_id", "campaign_id", "customer", "brand")}
        rows.append(row | {"price": round(rng.lognormvariate(3, 1), 2), "pid": rng.randint(1, 2), "btag": 1})
    write(folder / "train.csv", rows[:120])
    write(folder / "test.csv", rows[120:])


def write_kuairand(folder: Path) -> None:
    """In a folder `data`, as the archive unpacks."""
    rng = random.Random(6)
    day_ms, start_ms = 86_400_000, 1_649_347_200_000  # 2022-04-08 in Beijing at 0:00
    spans = {"log_standard_4_08_to_4_21_pure": (0, 14), "log_standard_4_22_to_5_08_pure": (14, 31)}
    spans |= {"log_random_4_22_to_5_08_pure": (14, 31)}
    zero = ("is_like", "is_follow", "is_comment", "is_forward", "is_hate", "long_view")
    for name, (first, last) in spans.items():
        rows = []
        for user in range(10):
            for _ in range(rng.randint(8, 14)):
                time_ms = start_ms + rng.randrange(first * day_ms, last * day_ms)
                row = {
                    "user_id": user,
                    "video_id": rng.randrange(15),
                    "date": 20220408,
                    "hourmin": 0,
                    "time_ms": time_ms,
                }
                row |= {"is_click": rng.randint(0, 1)} | {n: rng.randint(0, 1) for n in zero}
                row |= {"play_time_ms": rng.randint(0, 9999), "duration_ms": rng.randint(5000, 99999)}
                row |= {"profile_stay_time": 0, "comment_stay_time": 0, "is_profile_enter": rng.randint(0, 1)}
                rows.append(row | {"is_rand": int("random" in name), "tab": rng.choice([0, 1, 4])})
        write(folder / "data" / f"{name}.csv", rows)
    users = []
    for user in range(9):  # the tenth has no features
        row = {"user_id": user, "user_active_degree": rng.choice(["full_active", "UNKNOWN"]), "is_lowactive_period": 0}
        row |= {"is_live_streamer": 0, "is_video_author": user % 2}
        for count in ("follow_user_num", "fans_user_num", "friend_user_num", "register_days"):
            row |= {count: user, f"{count}_range": "(0,10]" if user else "0"}
        users.append(row | {f"onehot_feat{i}": "" if i == 4 else user % 3 for i in range(18)})
    write(folder / "data" / "user_features_pure.csv", users)
    videos = []
    for video in range(14):  # the last has no features
        row = {"video_id": video, "author_id": video % 5, "video_type": "AD" if video == 3 else "NORMAL"}
        row |= {"upload_dt": "2022-04-01", "upload_type": "LongImport", "visible_status": 1.0, "video_duration": ""}
        row |= {"server_width": 720.0, "server_height": 1280.0, "music_id": 99 + video, "music_type": 9.0}
        videos.append(row | {"tag": ["", "39", "12,65"][video % 3]})
    write(folder / "data" / "video_features_basic_pure.csv", videos)


def join(values: Any) -> str:
    return "^".join(map(str, values))


WRITERS: dict[str, Callable[[Path], None]] = {
    "criteo_x1": write_criteo,
    "avazu_x1": write_avazu,
    "amazonelectronics_x1": write_amazon,
    "kuaivideo_x1": write_kuaivideo,
    "taobaoad_x1": write_taobao,
    "kuairand_pure": write_kuairand,
}
CHECKED = sorted(WRITERS.keys() - {"kuairand_pure"})
EXAMPLE_FILES = {name: ("train", "valid", "test") if name in ("criteo_x1", "avazu_x1") else ("train", "test")
                 for name in CHECKED}  # fmt: skip
IN_ROWS = {  # recipe -> kind of event, column of the event -> column of the row
    "amazonelectronics_x1": {"review": {"item_id": "item_history", "cate_id": "cate_history"}},
    "kuaivideo_x1": {"click": {"item_id": "pos_items"}, "no_click": {"item_id": "neg_items"}},
    "taobaoad_x1": {"behaviour": {"cate_id": "cate_his", "btag": "btag_his"}},
}


def to_parquet(folder: Path) -> None:
    """Converts every CSV file in place, as somebody would: ids become numbers."""
    for path in folder.rglob("*.csv"):
        pyarrow.parquet.write_table(pyarrow.csv.read_csv(path), path.with_suffix(".parquet"))
        path.unlink()


def config_of(name: str, folder: Path, **options: Any) -> Any:
    """The recipe's config for files in `folder`, without the check of md5s unless asked for."""
    if name != "kuairand_pure":
        options = {"check_md5": False} | options
    return load_registry().config(
        "data", {"name": name, "root": str(folder / "datasets"), "files": str(folder / "files"), **options}
    )


def written(name: str, folder: Path, **options: Any) -> Any:
    WRITERS[name](folder / "files")
    return config_of(name, folder, **options)


def source_of(config: Any, folder: Path) -> Source:
    recipe = load_registry().get("data", config.name).cls(config)
    recipe.fetch(folder / "raw", lambda *_: None)
    return recipe.source(folder / "raw")


def whole(table: pa.Table | Stream | None) -> Rows:
    if isinstance(table, Stream):
        parts = [piece.replace_schema_metadata(None) for piece in table.read()]
        table = pa.concat_tables(parts) if parts else pa.table({})  # which raises if columns or types differ
    assert table is not None
    return table.to_pylist()


# --- what is read -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "parquet"])
@pytest.mark.parametrize("name", CHECKED)
def test_examples_are_the_rows_of_the_files(name, form, tmp_path):
    config = written(name, tmp_path)
    expected = [(split, row) for split in EXAMPLE_FILES[name] for row in read(tmp_path / "files" / f"{split}.csv")]
    if form == "parquet":
        to_parquet(tmp_path / "files")
    source = source_of(config, tmp_path)
    rows = whole(source.examples)
    assert len(rows) == len(expected)
    for row, (split, cells) in zip(rows, expected, strict=True):
        assert row["split"] == split or (split, row["split"]) == ("train", "valid")
        for feature in source.categorical:
            assert row[feature.name] == cells[feature.name]
        for feature in (*source.dense, *source.tasks):
            assert row[feature.name] == float(cells[feature.name])
    assert set(source.files) == {f"{split}.{form}" for split in EXAMPLE_FILES[name]}
    some = next((tmp_path / "files").iterdir())
    assert source.files[some.name] == sha256_of(some)


@pytest.mark.parametrize("name", sorted(IN_ROWS))
def test_without_a_valid_file_the_end_of_train_is_valid(name, tmp_path):
    config = written(name, tmp_path, valid=0.25)
    count = len(read(tmp_path / "files" / "train.csv"))
    splits = [row["split"] for row in whole(source_of(config, tmp_path).examples)]
    num_valid = round(count * 0.25)
    assert splits[:count] == ["train"] * (count - num_valid) + ["valid"] * num_valid
    assert set(splits[count:]) == {"test"}


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_pieces_of_any_size_hold_the_same(name, tmp_path, monkeypatch):
    config = written(name, tmp_path)
    source = source_of(config, tmp_path)
    examples, events = whole(source.examples), whole(source.events) if source.events else []
    monkeypatch.setattr(pieces, "BLOCK_BYTES", 700)
    assert len(list(source.examples.read())) > 5
    assert whole(source.examples) == examples
    if source.events:
        assert whole(source.events) == events
    to_parquet(tmp_path / "files")
    monkeypatch.setattr(pieces, "BATCH_ROWS", 7)
    source = source_of(config, tmp_path)
    assert len(list(source.examples.read())) > 5
    assert whole(source.examples) == examples


# --- histories in rows --------------------------------------------------------------------------------------


def seen_by(row: dict[str, Any], events: Rows, kind: str | None, field: str) -> list[str]:
    """What an example sees, by filtering a list."""
    past = [e for e in events if e[LOG] == row[LOG] and e[POSITION] < row[POSITION] and kind in (None, e[KIND])]
    return [e[field] for e in sorted(past, key=lambda e: e[POSITION])]


@pytest.mark.parametrize("name", sorted(IN_ROWS))
def test_each_example_sees_the_history_of_its_row(name, tmp_path):
    config = written(name, tmp_path)
    source = source_of(config, tmp_path)
    examples, events = whole(source.examples), whole(source.events)
    rows = [row for split in ("train", "test") for row in read(tmp_path / "files" / f"{split}.csv")]
    assert {len(e[LOG]) > 0 for e in events} == {True}
    for example, row in zip(examples, rows, strict=True):
        for kind, columns in IN_ROWS[name].items():
            for field, column in columns.items():
                assert seen_by(example, events, kind, field) == (row[column].split("^") if row[column] else [])
    assert {f.name for f in source.event_fields} <= events[0].keys()


def test_taobao_brands_that_are_left_out_are_the_oldest(tmp_path):
    source = source_of(written("taobaoad_x1", tmp_path), tmp_path)
    examples, events = whole(source.examples), whole(source.events)
    rows = [row for split in ("train", "test") for row in read(tmp_path / "files" / f"{split}.csv")]
    short = 0
    for example, row in zip(examples, rows, strict=True):
        brands = row["brand_his"].split("^") if row["brand_his"] else []
        missing = len(row["cate_his"].split("^")) - len(brands) if row["cate_his"] else 0
        assert seen_by(example, events, None, "brand") == [""] * missing + brands
        short += missing > 0
    assert short > 10


def test_each_history_is_stored_once(tmp_path):
    amazon = source_of(written("amazonelectronics_x1", tmp_path / "a"), tmp_path / "a")
    rows = [row for split in ("train", "test") for row in read(tmp_path / "a" / "files" / f"{split}.csv")]
    longest: dict[str, int] = {}
    for row in rows:
        longest[row["user_id"]] = max(longest.get(row["user_id"], 0), len(row["item_history"].split("^")))
    assert len(whole(amazon.events)) == sum(longest.values())
    assert {row[LOG] for row in whole(amazon.examples)} == longest.keys()

    kuai = source_of(written("kuaivideo_x1", tmp_path / "k"), tmp_path / "k")
    assert {row[LOG] for row in whole(kuai.examples)} == {row["user_id"] for row in whole(kuai.examples)}
    assert len(whole(kuai.events)) <= 8 * 2 * 6

    taobao = source_of(written("taobaoad_x1", tmp_path / "t"), tmp_path / "t")
    rows = [row for split in ("train", "test") for row in read(tmp_path / "t" / "files" / f"{split}.csv")]
    newest: dict[str, tuple[str, ...]] = {}
    count = 0
    for row in rows:
        history = (row["cate_his"], row["brand_his"], row["btag_his"])
        count += (len(row["cate_his"].split("^")) if row["cate_his"] else 0) * (newest.get(row["userid"]) != history)
        newest[row["userid"]] = history
    assert len(whole(taobao.events)) == count < sum(len(r["cate_his"].split("^")) for r in rows) / 1.5


LISTS = st.lists(st.sampled_from(["1", "12", "2"]), max_size=5)


@settings(max_examples=300, deadline=None)
@given(rows=st.lists(st.tuples(st.sampled_from("uv"), LISTS, LISTS), min_size=1, max_size=14), cut=st.integers(1, 5))
def test_any_rows_see_their_own_histories(rows, cut):
    """Also rows that come in no order, and lists that do not grow."""
    table = pa.table({"who": [u for u, _, _ in rows], "x": [join(a) for _, a, _ in rows],
                      "y": [join(b) for _, _, b in rows]})  # fmt: skip
    batches = [table.slice(i, cut) for i in range(0, len(rows), cut)]
    for lists in ({"one": {"f": "x"}}, {"one": {"f": "x"}, "two": {"f": "y"}}):
        examples, events = map(whole, streams(lambda: iter(batches), 1, "who", lists, GrowingLogs))
        for example, (user, *cells) in zip(examples, rows, strict=True):
            assert example["who"] == user and example[LOG].split(":")[0] == user
            for kind, cell in zip(lists, cells, strict=False):
                assert seen_by(example, events, kind, "f") == cell
        assert len({(e[LOG], e[POSITION]) for e in events}) == len(events)
    both = {"any": {"f": "x", "g": "y"}}
    examples, events = map(whole, streams(lambda: iter(batches), 1, "who", both, SeparateLogs))
    for example, (_, x, y) in zip(examples, rows, strict=True):
        length = max(len(x), len(y))
        assert seen_by(example, events, "any", "f") == [""] * (length - len(x)) + x
        assert seen_by(example, events, "any", "g") == [""] * (length - len(y)) + y


# --- KuaiRand and vectors -----------------------------------------------------------------------------------


@pytest.mark.parametrize("form", ["csv", "parquet"])
def test_kuairand(form, tmp_path):
    config = written("kuairand_pure", tmp_path)
    logs = [read(tmp_path / "files" / "data" / f"{n}.csv") for n in (*kuairand.STANDARD, kuairand.RANDOM)]
    videos = read(tmp_path / "files" / "data" / "video_features_basic_pure.csv")
    if form == "parquet":
        to_parquet(tmp_path / "files")
    source = source_of(config, tmp_path)
    examples, events = whole(source.examples), whole(source.events)
    for example, row in zip(examples, [*logs[0], *logs[1]], strict=True):
        assert example["timestamp"] == int(row["time_ms"]) // 1000
        passed_h = (int(row["time_ms"]) - 1_649_347_200_000) // 3_600_000  # since Friday 2022-04-08, 0:00 in Beijing
        assert (example["hour"], example["weekday"]) == (passed_h % 24, (4 + passed_h // 24) % 7)
        assert [example[n] for n in kuairand.LABELS] == [float(row[n]) for n in kuairand.LABELS]
        assert [example[n] for n in ("user_id", "video_id", "tab")] == [row[n] for n in ("user_id", "video_id", "tab")]
    for event, row in zip(events, [row for log in logs for row in log], strict=True):
        assert event["kind"] == ("click" if row["is_click"] == "1" else "no_click")
        assert event["feedback"] == "+".join(n for n in kuairand.LABELS if row[n] == "1")
        assert (event["user_id"], event["video_id"], event["tab"]) == (row["user_id"], row["video_id"], row["tab"])
        assert event["timestamp"] == int(row["time_ms"]) // 1000
    assert source.users.num_rows == 9 and source.items.num_rows == 14
    assert source.items["tag"].to_pylist() == [v["tag"].split(",") if v["tag"] else [] for v in videos]
    assert source.items["author_id"].to_pylist() == [v["author_id"] for v in videos]
    assert not {"play_time_ms", "profile_stay_time", "comment_stay_time"} & examples[0].keys()


def test_kuairand_by_options(tmp_path):
    config = written("kuairand_pure", tmp_path, random_examples=True, tasks=["long_view", "is_click"])
    source = source_of(config, tmp_path)
    assert len(whole(source.examples)) == len(whole(source.events))
    assert [t.name for t in source.tasks] == ["long_view", "is_click"]
    with pytest.raises(GemkitError, match="is_bought"):
        written("kuairand_pure", tmp_path, tasks=["is_bought"])


def test_kuaivideo_vectors(tmp_path):
    config = written("kuaivideo_x1", tmp_path, visual=True)
    with pytest.raises(GemkitError, match=kuaivideo.VISUAL) as error:
        source_of(config, tmp_path)
    assert "numpy.save" in error.value.fix
    vectors = np.random.default_rng(0).normal(size=(41, 64))
    np.save(tmp_path / "files" / kuaivideo.VISUAL, vectors)
    source = source_of(config, tmp_path)
    assert source.items["item_id"].to_pylist() == list(range(41))
    assert source.files[kuaivideo.VISUAL] == sha256_of(tmp_path / "files" / kuaivideo.VISUAL)
    built = prepare(load_registry().get("data", "kuaivideo_x1"), config, *[lambda *_: None] * 3)
    assert built.schema.vectors[0].width == 64
    np.testing.assert_array_equal(np.array(source.items["visual"].to_pylist(), np.float32), vectors.astype(np.float32))
    (tmp_path / "files" / kuaivideo.VISUAL).write_bytes(pickle.dumps(vectors))
    with pytest.raises(GemkitError, match="cannot read"):  # nothing is unpickled
        source_of(config, tmp_path)
    np.save(tmp_path / "files" / kuaivideo.VISUAL, np.zeros(41))
    with pytest.raises(GemkitError, match="has the shape"):
        source_of(config, tmp_path)


# --- the files themselves -----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", CHECKED)
def test_files_are_checked(name, tmp_path, monkeypatch):
    config = written(name, tmp_path, check_md5=True)
    first = next(iter(config.md5s))
    path = tmp_path / "files" / first
    with pytest.raises(GemkitError) as error:
        source_of(config, tmp_path)
    assert md5_of(path) in error.value.what and error.value.allowed == config.md5s[first]
    assert "data.check_md5=false" in error.value.fix
    assert path.is_file()  # it is the user's
    monkeypatch.setattr(type(config), "md5s", {n: md5_of(tmp_path / "files" / n) for n in config.md5s})
    source_of(config, tmp_path)
    path.write_text(path.read_text(encoding="utf-8").replace("1", "2", 1), encoding="utf-8")
    with pytest.raises(GemkitError, match="is not the published file"):
        source_of(config, tmp_path)  # though it was right before
    to_parquet(tmp_path / "files")
    with pytest.raises(GemkitError, match="cannot be checked") as error:
        source_of(config, tmp_path)
    assert "data.check_md5=false" in error.value.fix


def test_when_a_set_is_built_again(tmp_path, monkeypatch):
    config = written("avazu_x1", tmp_path)
    said: list[str] = []
    spec = load_registry().get("data", "avazu_x1")

    def build(config: Any) -> None:
        prepare(spec, config, lambda *_: None, lambda *_: None, said.append)
        assert is_current(config)

    build(config)
    assert said == [spec.cls.terms]
    rows = read(tmp_path / "files" / "train.csv")
    write(tmp_path / "files" / "train.csv", [*rows, rows[0]])
    assert not is_current(config)  # what nothing checks may have changed
    checked = dataclasses.replace(config, check_md5=True)
    assert not is_current(checked)  # what was built from any files is not the published set
    monkeypatch.setattr(type(config), "md5s", {n: md5_of(tmp_path / "files" / n) for n in config.md5s})
    build(checked)
    assert is_current(dataclasses.replace(checked, files=""))  # the files are no longer needed
    assert said == [spec.cls.terms]


def test_published_md5s_are_of_the_files_that_are_read():
    for name in CHECKED:
        md5s = load_registry().get("data", name).config().md5s
        assert [n.removesuffix(".csv") for n in md5s] == list(EXAMPLE_FILES[name])
        assert all(len(md5) == 32 and set(md5) <= set("0123456789abcdef") for md5 in md5s.values())


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_a_missing_file_is_named(name, tmp_path):
    config = written(name, tmp_path)
    last = list(config.md5s)[-1]
    next((tmp_path / "files").rglob(last)).unlink()
    with pytest.raises(GemkitError) as error:
        source_of(config, tmp_path)
    recipe = load_registry().get("data", name).cls
    assert last in error.value.what and str(tmp_path / "files") in error.value.where
    assert recipe.published in error.value.fix
    with pytest.raises(GemkitError, match="no folder is named") as error:
        source_of(dataclasses.replace(config, files=""), tmp_path)
    assert error.value.fix == "data.files=PATH"
    assert "gemkit reads the files that you have" in recipe.terms


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_a_missing_column_is_named(name, tmp_path):
    config = written(name, tmp_path)
    path = next((tmp_path / "files").rglob(next(iter(config.md5s))))
    label = next(t.name for t in source_of(config, tmp_path).tasks)
    write(path, [{("other" if k == label else k): v for k, v in row.items()} for row in read(path)])
    with pytest.raises(GemkitError, match=f"column '{label}' is missing") as error:
        whole(source_of(config, tmp_path).examples)
    assert error.value.where == path.name


@pytest.mark.parametrize(("cell", "match"), [("much", "much"), ("1,5", "columns")])
def test_a_broken_row_is_an_error(cell, match, tmp_path):
    config = written("criteo_x1", tmp_path)
    path = tmp_path / "files" / "train.csv"
    lines = path.read_text(encoding="utf-8").splitlines(keepends=True)
    label, _, *others = lines[3].split(",")
    lines[3] = ",".join([label, cell, *others])
    path.write_text("".join(lines), encoding="utf-8")
    with pytest.raises(GemkitError, match=match) as error:
        whole(source_of(config, tmp_path).examples)
    assert "train.csv" in error.value.what


def test_a_bad_cell_is_named_by_its_row_in_its_file(tmp_path, monkeypatch):
    monkeypatch.setattr(pieces, "BLOCK_BYTES", 700)
    config = written("avazu_x1", tmp_path)
    rows = read(tmp_path / "files" / "valid.csv")
    rows[16]["label"] = "2"
    write(tmp_path / "files" / "valid.csv", rows)
    with pytest.raises(GemkitError, match="label 'label' has the value 2") as error:
        prepare(load_registry().get("data", "avazu_x1"), config, *[lambda *_: None] * 3)
    assert error.value.where.startswith("valid.csv") and "1 row: 17 " in error.value.where


def test_ids_that_became_floats_are_the_same_ids(tmp_path):
    """As pandas writes a column of whole numbers in which some are missing."""
    config = written("avazu_x1", tmp_path)
    table = pyarrow.csv.read_csv(tmp_path / "files" / "train.csv")
    ids = table["feat_3"].to_pylist()
    ids[7] = 2**52  # which as a float's text would be 4.5e+15
    floats = pa.array([None if i == 5 else float(v) for i, v in enumerate(ids)], pa.float64())
    table = table.set_column(table.column_names.index("feat_3"), "feat_3", floats)
    pyarrow.parquet.write_table(table, tmp_path / "files" / "train.parquet")
    (tmp_path / "files" / "train.csv").unlink()
    found = [row["feat_3"] for row in whole(source_of(config, tmp_path).examples)[: len(ids)]]
    assert found == ["" if i == 5 else str(v) for i, v in enumerate(ids)]


def test_an_open_quote_is_an_error(tmp_path):
    config = written("avazu_x1", tmp_path)
    path = tmp_path / "files" / "valid.csv"
    path.write_text(path.read_text(encoding="utf-8").replace(",", ',"', 30), encoding="utf-8")
    with pytest.raises(GemkitError, match="quote"):
        source_of(config, tmp_path)


def test_an_archive_is_not_taken_for_a_file(tmp_path):
    config = written("avazu_x1", tmp_path)
    (tmp_path / "files" / "train.csv").write_bytes(b"PK\x03\x04 not unpacked")
    with pytest.raises(GemkitError, match="zip"):
        whole(source_of(config, tmp_path).examples)


def test_files_are_hashed_once(tmp_path):
    config = written("avazu_x1", tmp_path)
    recipe = load_registry().get("data", "avazu_x1").cls(config)
    calls: list[str] = []
    for _ in range(2):
        recipe.fetch(tmp_path / "raw", lambda name, *_: calls.append(name))
    assert set(calls) == {"train.csv", "valid.csv", "test.csv"} and len(calls) == 6  # begin and end of each
    (tmp_path / "raw" / "files.json").write_text('{"train.csv": 3}', encoding="utf-8")  # a damaged memory is forgotten
    recipe.fetch(tmp_path / "raw", lambda name, *_: calls.append(name))
    assert len(calls) == 12


# --- from the files to a model ------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_contracts(name, tmp_path):
    config = written(name, tmp_path)
    checks = contracts(spec_of(load_registry().get("data", name).cls).cls, {"small": config}, only_given=True)
    assert f"data-{name}-small-builds_a_data_set" in map(str, checks)
    for check in checks:
        check()


@pytest.mark.parametrize("name", sorted(IN_ROWS))
def test_built_histories_are_those_of_the_rows(name, tmp_path):
    config = written(name, tmp_path)
    rows = [row for split in ("train", "test") for row in read(tmp_path / "files" / f"{split}.csv")]
    spec = load_registry().get("data", name)
    data = prepare(spec, config, lambda *_: None, lambda *_: None, lambda _: None)
    lengths = data.history_lengths(np.arange(data.num_examples), 1000)
    by_id = dict(zip(data.columns["_example_id"][np.arange(data.num_examples)].tolist(), lengths.tolist(), strict=True))
    columns = [next(iter(c.values())) for c in IN_ROWS[name].values()]
    assert by_id == {i: sum(len(row[c].split("^")) if row[c] else 0 for c in columns) for i, row in enumerate(rows)}


@pytest.mark.parametrize("name", sorted(WRITERS))
def test_a_model_trains_on_it(name, tmp_path):
    WRITERS[name](tmp_path / "files")
    overrides = [f"data={name}", *SMALL, f"runs={tmp_path / 'runs'}", f"data.root={tmp_path / 'datasets'}"]
    overrides += [f"data.files={tmp_path / 'files'}", "train.max_steps=2", "train.batch_size=16"]
    if name != "kuairand_pure":
        overrides.append("data.check_md5=false")
    if name in ("criteo_x1", "avazu_x1"):
        overrides += ["sequence=none", "cross=none"]
    run = compose(overrides, load_registry())
    metrics = train(run, load_registry(), progress=silent())
    assert np.isfinite(next(iter(metrics["test"].values()))["logloss"])
    assert is_current(run.data)
