"""Windows of days, surfaces and tasks: a run reads exactly the examples that they leave, in any order of reading."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import numpy as np
import pytest

from gemkit.config.compose import compose
from gemkit.config.run import LoaderConfig
from gemkit.data import storage
from gemkit.data.build import build
from gemkit.data.collate import Reading, collate
from gemkit.data.dataset import Dataset
from gemkit.data.loader import Loader
from gemkit.data.schema import Task
from gemkit.data.selection import DAY_S, Selection
from gemkit.errors import GemkitError
from gemkit.registry import load_registry
from gemkit.runs.folder import RunFolder
from gemkit.session import base_rates
from gemkit.testing.data import make_source
from gemkit.testing.runs import silent, tiny_run
from gemkit.train import train


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    folder: Path = tmp_path_factory.mktemp("selection") / "data"
    build(make_source(num_examples=3000), folder, lambda *_: None)
    return Dataset.open(folder)


def days_of(data: Dataset) -> np.ndarray:
    times = np.asarray(data.columns[storage.TIMESTAMP])
    return (times - times.min() // DAY_S * DAY_S) / DAY_S


def window(data: Dataset, first: float, last: float) -> tuple[float, float]:
    """A window in shares of the data set's days."""
    end = float(days_of(data).max())
    return first * end, last * end


@pytest.mark.parametrize("order", ["stored", "shuffled", "time"])
@pytest.mark.parametrize("surfaces", [(), ("surface1",)])
def test_a_loader_reads_what_the_selection_leaves(whole: Dataset, order: str, surfaces: tuple[str, ...]) -> None:
    surfaces = tuple(whole.schema.surfaces[1:2]) if surfaces else ()
    first, last = window(whole, 0.2, 0.7)
    data = whole.selected(Selection((("train", (first, last)),), surfaces))
    expected = (first <= days_of(whole)) & (days_of(whole) < last)
    if surfaces:
        expected &= np.asarray(whole.columns[storage.SURFACE]) == 1
    loader = Loader(
        data, "train", batch_size=64, seed=3, config=LoaderConfig(order=order, workers=0, shuffle_buffer=200)
    )
    rows = np.concatenate([loader.global_rows(0, i) for i in range(len(loader))])
    assert sorted(rows) == np.flatnonzero(expected).tolist() == data.split("train").tolist()
    if order == "time":
        assert (np.diff(whole.columns[storage.TIMESTAMP][rows]) >= 0).all()
    ids = np.concatenate([batch.example_id.numpy() for batch in loader.epoch(0)])
    assert ids.tolist() == whole.columns[storage.EXAMPLE_ID][rows].tolist()


def test_splits_that_are_not_named_stay_as_stored(whole: Dataset) -> None:
    data = whole.selected(Selection((("train", window(whole, 0, 0.1)),)))
    assert data.split("test").tolist() == whole.split("test").tolist()
    assert len(data.split("train")) < len(whole.split("train"))
    by_surface = whole.selected(Selection(surfaces=whole.schema.surfaces[:1])).split("test")
    assert set(whole.columns[storage.SURFACE][by_surface]) == {0}


def test_worker_processes_read_the_selection_too(whole: Dataset) -> None:
    data = whole.selected(Selection((("train", window(whole, 0.3, 0.4)),)))
    config = LoaderConfig(order="stored", workers=1, worker_kind="process")
    ids = [batch.example_id for batch in Loader(data, "train", batch_size=50, config=config).epoch(0)]
    assert np.concatenate(ids).tolist() == data.columns[storage.EXAMPLE_ID][data.split("train")].tolist()


def test_tasks_are_left_out_of_the_schema_and_of_batches(whole: Dataset) -> None:
    data = whole.selected(Selection(tasks=("buy",)))
    assert data.schema.task_names == ("buy",)
    assert data.schema.tasks[0].masked_by is None
    ours = next(iter(Loader(data, "test", batch_size=500, config=LoaderConfig(order="stored")).epoch(0)))
    both = next(iter(Loader(whole, "test", batch_size=500, config=LoaderConfig(order="stored")).epoch(0)))
    assert ours.labels.shape == (ours.size, 1)
    assert (ours.labels[:, 0] == both.labels[:, 1]).all() and (ours.masks[:, 0] == both.masks[:, 1]).all()
    assert 0 < ours.masks.mean() < 1  # still masked by the click that is not read


def test_the_base_rate_is_that_of_the_window(whole: Dataset) -> None:
    data = whole.selected(Selection((("train", window(whole, 0, 0.3)),)))
    labels = whole.columns["click"][data.split("train")]
    assert base_rates(data)["click"] == pytest.approx(labels[labels >= 0].mean())
    assert base_rates(data)["click"] != base_rates(whole)["click"]


def test_an_empty_window_says_which_days_there_are(whole: Dataset) -> None:
    with pytest.raises(GemkitError, match="no such example for train: days 500 to 501") as caught:
        whole.selected(Selection((("train", (500.0, 501.0)),))).split("train")
    assert caught.value.where == "data.train_days"
    assert caught.value.allowed == f"days 0 to {int(days_of(whole).max()) + 1}"


@pytest.mark.parametrize(
    ("selection", "where"),
    [(Selection(surfaces=("shop",)), "data.only_surfaces[0]"), (Selection(tasks=("clik",)), "data.only_tasks[0]")],
)
def test_unknown_names_are_refused(whole: Dataset, selection: Selection, where: str) -> None:
    with pytest.raises(GemkitError, match="has no") as caught:
        whole.selected(selection)
    assert caught.value.where == where


@pytest.mark.parametrize("value", ["[3]", "[5,5]", "[7,2]", "[-1,2]", "[1,2,3]"])
def test_a_window_that_is_none_is_refused(value: str) -> None:
    with pytest.raises(GemkitError, match="is no window") as caught:
        compose([f"data.train_days={value}"], load_registry())
    assert caught.value.where == "data.train_days"


BUY = 1
"""The task of the synthetic data that comes days after its example."""


def test_labels_are_as_they_were_known_on_a_day(whole: Dataset) -> None:
    first, last = window(whole, 0, 0.5)
    days = (("train", (first, last)), ("valid", (first, last)), ("test", (first, last)))
    data, final = whole.selected(Selection(days, labels_as_of=last)), whole.selected(Selection(days))
    now_s = data.known_until_s("train")
    assert now_s is not None and data.known_until_s("valid") == now_s and data.known_until_s("test") is None
    rows = data.split("train")
    ours, theirs = (collate(data, rows, Reading(known_until_s=s)) for s in (now_s, None))
    changed = 0
    for i in range(ours.size):
        delay, elapsed = float(theirs.delays[i, BUY]), now_s - int(theirs.timestamp[i])
        assert float(ours.elapsed[i]) == pytest.approx(elapsed) and elapsed > 0
        later = delay > elapsed
        assert bool(ours.labels[i, BUY]) == (bool(theirs.labels[i, BUY]) and not later)
        assert np.isnan(float(ours.delays[i, BUY])) == (later or np.isnan(delay))
        changed += later
    assert changed > 10
    assert theirs.elapsed.isinf().all()
    assert (ours.labels[:, 0] == theirs.labels[:, 0]).all() and (ours.masks == theirs.masks).all()
    assert final.known_until_s("train") is None
    assert base_rates(data) == base_rates(final)  # metrics are relative to what came out in the end


def test_a_label_that_hangs_on_one_that_is_not_known_yet_does_not_count(tmp_path: Path) -> None:
    source = make_source(num_examples=2000)
    bought = source.examples["buy"]
    table = source.examples.append_column("returned", bought)
    tasks = (*source.tasks, Task(name="returned", masked_by="buy"))
    build(dataclasses.replace(source, examples=table, tasks=tasks), tmp_path / "data", lambda *_: None)
    data = Dataset.open(tmp_path / "data")
    rows = np.arange(data.num_examples)
    now_s = int(np.quantile(data.columns[storage.TIMESTAMP], 0.999))
    before, later = collate(data, rows, Reading(), rows, 2), collate(data, rows, Reading(known_until_s=now_s), rows, 2)
    hidden = (before.labels[:, BUY] == 1) & (later.labels[:, BUY] == 0)
    assert hidden.sum() > 10
    assert (before.masks[:, 2] == before.labels[:, BUY]).all()
    assert (later.masks[:, 2] == before.masks[:, 2] * ~hidden).all()
    assert later.totals is not None and before.totals is not None
    assert later.totals == pytest.approx((later.masks * later.weights[:, None]).sum(0) / 2, rel=1e-5)
    assert later.totals[2] < before.totals[2]


def test_labels_cannot_be_known_before_their_examples(whole: Dataset) -> None:
    data = whole.selected(Selection((("train", (0.0, 9.0)),), labels_as_of=8.0))
    with pytest.raises(
        GemkitError, match=r"as of day 8: the train split of 'synthetic' has examples of day 8\."
    ) as caught:
        data.known_until_s("train")
    assert caught.value.where == "data.labels_as_of"
    assert data.known_until_s("test") is None


def test_a_run_trains_on_known_labels_and_is_tested_on_final_ones(tmp_path: Path) -> None:
    found = {}
    for name, words in {
        "final": [],
        "known": ["data.labels_as_of=13"],
        "windows": ["data.labels_as_of=13", "head.late_labels=windows", "head.windows_s=[86400,518400]"],
    }.items():
        days = ["data.train_days=[0,11]", "data.valid_days=[11,13]", "data.test_days=[13,31]"]
        run = tiny_run(tmp_path / name, *days, *words, "train.save_predictions=true")
        metrics = train(run, load_registry(), progress=silent())
        folder = RunFolder.open(next((tmp_path / name / "runs").iterdir()))
        rows = [json.loads(line) for line in (folder.path / "metrics.jsonl").read_text("utf-8").splitlines()]
        found[name] = metrics["test"]["buy"], rows[-1]["buy"], sum(row.get("loss", 0) for row in rows)
    for test, _, _ in found.values():
        assert (test["examples"], test["positives"]) == (found["final"][0]["examples"], found["final"][0]["positives"])
    assert found["known"][1]["positives"] < found["final"][1]["positives"]
    assert len({loss for _, _, loss in found.values()}) == 3
