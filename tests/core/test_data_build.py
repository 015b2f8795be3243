"""From tables to a dataset folder: pointers, splits, vocabularies, masks, and what is refused."""

from __future__ import annotations

import dataclasses
import itertools
import json

import duckdb
import numpy as np
import pyarrow as pa
import pytest

from gemkit.data import storage
from gemkit.data.arrays import first_not_older, ranges
from gemkit.data.build import build
from gemkit.data.dataset import Dataset
from gemkit.data.histories import newest
from gemkit.data.schema import CategoricalFeature, DenseFeature, EventField, Task, VectorFeature
from gemkit.data.source import Source, Split
from gemkit.errors import GemkitError
from gemkit.testing.data import make_dataset, make_source


def silent(name: str, done: int, total: int) -> None:
    pass


def built(source: Source, folder) -> Dataset:
    build(source, folder, silent)
    return Dataset.open(folder)


def rows(data: Dataset, split: str) -> list[int]:
    """Ids of the examples of a split: rows of the source."""
    return sorted(data.columns[storage.EXAMPLE_ID][data.split(split)].tolist())


def column(data: Dataset, name: str) -> list:
    """A column in the order of the source."""
    return data.columns[name][np.argsort(data.columns[storage.EXAMPLE_ID])].tolist()


def table(**columns) -> pa.Table:
    """Ten examples of two users, with events that tie with them."""
    base = {
        "user": ["a", "b"] * 5,
        "item": ["i", "j", "k", "i", "j", "i", "i", "k", "new", "j"],
        "price": [1.0, 2, 3, 4, 5, 6, 7, 8, 9, 10],
        "click": [1, 0, 1, 0, 1, 0, 1, 1, 1, 0],
        "time": list(range(100, 200, 10)),
    }
    return pa.table(base | columns)


def source(examples: pa.Table | None = None, **changes) -> Source:
    base = Source(
        name="ten",
        examples=table() if examples is None else examples,
        dense=(DenseFeature(name="price"),),
        categorical=(CategoricalFeature(name="item"),),
        tasks=(Task(name="click"),),
        timestamp="time",
    )
    return dataclasses.replace(base, **changes)


def test_histories_are_the_users_events_strictly_before(tmp_path):
    synthetic = make_source(num_users=15, num_examples=300, num_events=500, seed=3)
    data = built(synthetic, tmp_path / "d")
    examples, events = synthetic.examples.to_pylist(), synthetic.events.to_pylist()
    items = ["?", *data.vocabulary("item_id")]
    known = set(items)
    ties = 0
    for row, example in enumerate(examples):
        mine = [(i, e) for i, e in enumerate(events) if e["user_id"] == example["user_id"]]
        ties += sum(e["timestamp"] == example["timestamp"] for _, e in mine)
        before = sorted((e["timestamp"], i, e) for i, e in mine if e["timestamp"] < example["timestamp"])
        runs = newest(data, np.flatnonzero(data.columns[storage.EXAMPLE_ID] == row), 10**6)
        where, log = ranges(runs.start, runs.end), data.shards[0].events
        assert log[storage.TIMESTAMP][where].tolist() == [t for t, _, _ in before]
        wanted = [e["item_id"] if e["item_id"] in known else "?" for _, _, e in before]
        assert [items[i] for i in log["item_id"][where]] == wanted
        streams = [data.schema.streams[i] for i in log[storage.STREAM][where]]
        assert streams == [e["kind"] for _, _, e in before]
    assert ties > 20, "the data must have ties for this test to mean anything"


def test_history_numbers_mean_same_user_and_time(tmp_path):
    synthetic = make_source(num_users=8, seed=1)
    data = built(synthetic, tmp_path / "d")
    pairs = list(
        zip(synthetic.examples["user_id"].to_pylist(), synthetic.examples["timestamp"].to_pylist(), strict=True)
    )
    numbers = column(data, storage.HISTORY)
    assert len(set(pairs)) < len(pairs)
    assert len(set(zip(pairs, numbers, strict=True))) == len(set(pairs)) == len(set(numbers))


def test_the_first_event_that_is_not_older_is_found_in_each_run():
    times = np.array([1, 1, 2, 5, 5, 9, -3, 4])
    start, end = np.array([0, 0, 0, 6, 6, 6, 3]), np.array([6, 6, 6, 8, 8, 6, 3])
    now = np.array([1, 5, 10, -3, 5, 7, 7])
    assert first_not_older(times, start, end, now).tolist() == [0, 3, 6, 6, 8, 6, 3]


def test_time_split_keeps_ties_together_and_is_the_newest(tmp_path):
    data = make_dataset(tmp_path / "d")
    time, split = data.columns[storage.TIMESTAMP], data.columns[storage.SPLIT]
    spans = [(time[split == i].min(), time[split == i].max()) for i in range(3)]
    assert spans[0][1] < spans[1][0] and spans[1][1] < spans[2][0]
    assert [data.split(n).size for n in ("train", "valid", "test")] == [951, 128, 121]
    assert abs(data.split("test").size - 120) < 20


def test_column_split(tmp_path):
    names = ["train"] * 6 + ["valid"] * 2 + ["test"] * 2
    data = built(source(table(part=names[::-1]), split=Split(by="column", column="part")), tmp_path / "d")
    assert rows(data, "test") == [0, 1]
    assert rows(data, "train") == [4, 5, 6, 7, 8, 9]


def test_vocabulary_comes_from_training_only(tmp_path):
    data = built(source(), tmp_path / "d")
    assert rows(data, "train") == list(range(8))
    assert data.vocabulary("item") == ["i", "j", "k"]  # 4, 2, 2 times; equals in order of text
    assert column(data, "item") == [1, 2, 3, 1, 2, 1, 1, 3, 0, 2]
    assert data.schema.tables[0].num_embeddings == 4


def test_min_count_turns_rare_ids_into_unknown(tmp_path):
    data = built(source(min_count=3), tmp_path / "d")
    assert data.vocabulary("item") == ["i"]
    assert column(data, "item") == [1, 0, 0, 1, 0, 1, 1, 0, 0, 0]


def test_event_only_ids_count_if_a_training_example_saw_them(tmp_path):
    events = pa.table({"user": ["a", "a", "b"], "item": ["old", "late", "j"], "time": [50, 165, 50]})
    data = built(source(events=events, user="user", event_fields=(EventField(name="item"),)), tmp_path / "d")
    # "late" is seen only by the test example of user a at 180.
    assert sorted(data.vocabulary("item")) == ["i", "j", "k", "old"]
    assert data.shards[0].events["item"].tolist()[:2] == [data.vocabulary("item").index("old") + 1, 0]


def test_dense_statistics_come_from_training_only(tmp_path):
    data = built(source(), tmp_path / "d")
    train = np.arange(1.0, 9.0)
    assert data.schema.dense[0].mean == pytest.approx(train.mean())
    assert data.schema.dense[0].std == pytest.approx(train.std())


def test_constant_dense_feature_has_unit_std(tmp_path):
    data = built(source(table(price=[0.1] * 10)), tmp_path / "d")
    assert data.schema.dense[0].std == 1.0


def test_masks_chain(tmp_path):
    examples = table(
        click=pa.array([1, 1, 1, 1, 0, 0, None, 1, 1, 1]),
        cart=pa.array([1, 1, 0, None, 1, 1, 1, 1, 1, 1]),
        buy=pa.array([1, None, 1, 1, 1, 1, 1, 0, 1, 0]),
    )
    tasks = (Task(name="buy", masked_by="cart"), Task(name="cart", masked_by="click"), Task(name="click"))
    data = built(source(examples, tasks=tasks), tmp_path / "d")
    assert column(data, "click") == [1, 1, 1, 1, 0, 0, -1, 1, 1, 1]
    assert column(data, "cart") == [1, 1, 0, -1, -1, -1, -1, 1, 1, 1]
    assert column(data, "buy") == [1, -1, -1, -1, -1, -1, -1, 0, 1, 0]


def test_ids_are_text_whatever_their_type(tmp_path):
    numbers = [3, 3, 20, 20, 100, 3, 20, 100, 5, 3]
    ints = built(source(table(item=numbers)), tmp_path / "ints")
    floats = built(source(table(item=[float(n) for n in numbers])), tmp_path / "floats")
    texts = built(source(table(item=pa.array([str(n) for n in numbers]).dictionary_encode())), tmp_path / "texts")
    assert ints.vocabulary("item") == ["20", "3", "100"]
    assert ints.fingerprint == floats.fingerprint == texts.fingerprint


def test_empty_cells_of_categories_are_unknown(tmp_path):
    items = pa.array(["i", None, "", "i", "j", "i", "j", "j", None, "i"])
    bags = pa.array([["x", None], [], None, [""], ["x", "y"], ["x"], [], [], ["z"], ["y", "x"]])
    wanted = (CategoricalFeature(name="item"), CategoricalFeature(name="tags", multi=True))
    data = built(source(table(item=items, tags=bags), categorical=wanted), tmp_path / "d")
    assert column(data, "item") == [1, 0, 0, 1, 2, 1, 2, 2, 0, 1]
    by_id = np.argsort(data.columns[storage.EXAMPLE_ID])
    ids, offsets = data.take_bags("tags", data.located(by_id), len(by_id))
    assert [ids[a:b].tolist() for a, b in itertools.pairwise(offsets)] == [
        *([1], [], [], [], [1, 2], [1], [], [], [0], [2, 1])
    ]


def test_dates_are_timestamps(tmp_path):
    dates = pa.array([np.datetime64("2024-01-01T00:00:00") + np.timedelta64(i, "D") for i in range(10)])
    data = built(source(table(time=dates)), tmp_path / "d")
    assert column(data, storage.TIMESTAMP)[1] == 1_704_067_200 + 86_400


def test_built_folder_is_plain_arrow_and_complete(tmp_path):
    data = make_dataset(tmp_path / "d")
    examples = pa.ipc.open_file(tmp_path / "d" / "segments" / "0000" / "000" / "examples.arrow").read_all()
    assert examples.num_rows == 1200 and "item_id" in examples.column_names
    assert [p.name for p in tmp_path.iterdir()] == ["d"], "no temporary folder stays"
    assert isinstance(data.columns["item_id"], np.ndarray) and not isinstance(data.columns["item_id"], np.memmap)


def test_duckdb_reads_the_files_as_they_are(tmp_path):
    data = make_dataset(tmp_path / "d")
    place = tmp_path / "d" / storage.partition_folder(0, 0)
    examples, events = (storage.open_table(place / name) for name in (storage.EXAMPLES, storage.EVENTS))
    with duckdb.connect() as connection:
        connection.register("examples", examples)
        connection.register("events", events)
        rate, most = connection.sql("SELECT avg(click), max(_history_end) FROM examples").fetchall()[0]
        assert rate == pytest.approx(float((data.columns["click"] == 1).mean())) and most <= data.num_events
        assert connection.sql("SELECT count(*) FROM events WHERE _timestamp > 0").fetchall() == [(data.num_events,)]


def test_equal_inputs_build_equal_folders(tmp_path):
    first, second = make_dataset(tmp_path / "a"), make_dataset(tmp_path / "b")
    other = make_dataset(tmp_path / "c", seed=1)
    assert first.fingerprint == second.fingerprint != other.fingerprint


def test_a_failed_build_leaves_the_old_folder(tmp_path):
    before = built(source(), tmp_path / "d").fingerprint
    with pytest.raises(GemkitError):
        build(source(table(price=[None] * 10)), tmp_path / "d", silent)
    assert Dataset.open(tmp_path / "d").fingerprint == before
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_build_that_is_cut_short_leaves_nothing_that_it_cannot_use(tmp_path):
    def interrupt(name: str, done: int, total: int) -> None:
        if done == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build(source(), tmp_path / "d", interrupt)
    assert not list(tmp_path.iterdir())
    with pytest.raises(KeyboardInterrupt):
        build(source(), tmp_path / "d", interrupt, {"file": "ten.csv"})
    assert [p.name for p in tmp_path.iterdir()] == ["d.building"]
    build(source(), tmp_path / "d", silent, {"file": "ten.csv"})
    assert [p.name for p in tmp_path.iterdir()] == ["d"]


def test_a_folder_that_is_no_data_set_is_not_replaced(tmp_path):
    (tmp_path / "d").mkdir()
    (tmp_path / "d" / "thesis.txt").write_text("years of work")
    with pytest.raises(GemkitError, match="is not a data set"):
        build(source(), tmp_path / "d", silent)
    assert (tmp_path / "d" / "thesis.txt").read_text() == "years of work"


@pytest.mark.parametrize(
    ("change", "what"),
    [
        (lambda m: m | {"format_version": 99}, "dataset format 99"),
        (lambda m: m | {"rows": m["rows"] | {"examples": 7}}, "says 7"),
    ],
)
def test_open_refuses_what_does_not_fit(tmp_path, change, what):
    built(source(), tmp_path / "d")
    path = tmp_path / "d" / "manifest.json"
    path.write_text(json.dumps(change(json.loads(path.read_text()))))
    with pytest.raises(GemkitError, match=what):
        Dataset.open(tmp_path / "d")


def test_open_names_the_missing_folder(tmp_path):
    with pytest.raises(GemkitError, match="is not a data set"):
        Dataset.open(tmp_path / "nothing")


EVENTS = pa.table({"user": ["a"], "item": ["i"], "time": [5]})
LOG = {"events": EVENTS, "user": "user", "event_fields": (EventField(name="item"),)}
BAD_COLUMNS = [
    ({"price": [1.0, float("nan")] + [1.0] * 7 + [float("inf")]}, {}, "'price' has NaN or infinite", "2 rows: 2, 10"),
    ({"price": pa.array([None] + [1.0] * 9)}, {}, "'price' has empty cells", "1 row: 1 "),
    ({"price": ["1"] * 9 + ["dear"]}, {}, "'price' holds text such as 'dear'", "1 row: 10"),
    ({"click": [0, 1, 2] + [0] * 7}, {}, "label 'click' has the value 2", "1 row: 3"),
    ({"click": pa.array([None] * 8 + [1, 0])}, {}, "'click' has no label in the train split", "column click"),
    ({"time": pa.array([None, *range(9)])}, {}, "'time' has empty cells", "1 row: 1 "),
    ({"time": [1_700_000_000_000 + i for i in range(10)]}, {}, "not in seconds", "10 rows: 1, 2, 3, 4, 5 ..."),
    ({"time": [7] * 10}, {}, "the train split is empty", "ten.csv"),
    ({"item": [0.5] * 10}, {}, "categorical column 'item' has the value 0.5", "10 rows"),
    ({"item": [["i"]] * 10}, {}, "'item' holds lists", "column item"),
    ({"w": [1.0] * 9 + [-1.0]}, {"weight": "w"}, "weights are negative", "1 row: 10"),
    ({"id": [1, 2, 3, 4, 5, 6, 7, 8, 1, 10]}, {"example_id": "id"}, "example id 1 appears twice", "2 rows: 1, 9"),
    ({"id": ["x"] * 10}, {"example_id": "id"}, "'id' has type string", "column id"),
    ({"s": pa.array([None] + ["feed"] * 9)}, {"surface": "s"}, "'s' has empty cells", "1 row: 1 "),
    ({"v": [[1.0, 2.0]] * 9 + [[1.0]]}, {"vectors": (VectorFeature(name="v"),)}, "unequal width", "1 row: 10"),
    ({"v": [[1.0]] * 9 + [[None]]}, {"vectors": (VectorFeature(name="v"),)}, "NaN, infinite or empty", "1 row: 10"),
    ({"part": ["train"] * 9 + ["tset"]}, {"split": Split(by="column", column="part")}, "unknown split 'tset'", ": 10 "),
    ({"part": ["train"] * 10}, {"split": Split(by="column", column="part")}, "the valid split is empty", "ten.csv"),
    ({"user": pa.array(["a", None] * 5)}, LOG, "'user' has empty cells", "5 rows: 2, 4"),
]


@pytest.mark.parametrize(("columns", "changes", "what", "where"), BAD_COLUMNS, ids=[b[2] for b in BAD_COLUMNS])
def test_bad_columns_are_named(tmp_path, columns, changes, what, where):
    with pytest.raises(GemkitError) as caught:
        build(source(table(**columns), examples_title="ten.csv", **changes), tmp_path / "d", silent)
    assert what in caught.value.what
    assert where in (caught.value.where or "") and "ten.csv" in (caught.value.where or "")
    assert not list(tmp_path.iterdir())


BAD_DECLARATIONS = [
    ({"dense": (DenseFeature(name="prize"),)}, "column 'prize' is missing"),
    ({"tasks": ()}, "no task is declared"),
    ({"dense": (), "categorical": ()}, "no feature is declared"),
    ({"dense": (DenseFeature(name="click"),)}, "'click' is a feature and a label"),
    ({"dense": (DenseFeature(name="price"),) * 2}, "feature 'price' is declared twice"),
    ({"dense": (DenseFeature(name="_split"),)}, "'_split' cannot have this name"),
    ({"tasks": (Task(name="click", masked_by="clik"),)}, "masked by 'clik', which is no task"),
    ({"tasks": (Task(name="click", masked_by="click"),)}, "tasks mask each other: click -> click"),
    ({"timestamp": None}, "a split by time needs a timestamp"),
    ({"event_fields": (EventField(name="item"),)}, "but there are no events"),
    ({"events": EVENTS, "user": "user"}, "events need event_fields"),
    ({"examples": table().slice(0, 0)}, "there are no examples"),
    ({"categorical": (CategoricalFeature(name="item", multi=True),)}, "declared multi but has type string"),
]


@pytest.mark.parametrize(("changes", "what"), BAD_DECLARATIONS, ids=[b[1] for b in BAD_DECLARATIONS])
def test_bad_declarations_are_named(tmp_path, changes, what):
    with pytest.raises(GemkitError) as caught:
        build(source(**changes), tmp_path / "d", silent)
    assert what in caught.value.what
    assert caught.value.where


def test_a_misspelt_column_gets_a_suggestion(tmp_path):
    with pytest.raises(GemkitError) as caught:
        build(source(dense=(DenseFeature(name="prize"),)), tmp_path / "d", silent)
    assert caught.value.fix == "did you mean 'price'?"


def test_split_shares_must_leave_training_data():
    with pytest.raises(GemkitError, match="nothing to train on"):
        Split(valid=0.6, test=0.5)
