"""`train.start_from`: a run that begins where another one ended."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from gemkit.data import storage
from gemkit.data.dataset import Dataset
from gemkit.errors import GemkitError
from gemkit.registry import load_registry
from gemkit.runs import checkpoint
from gemkit.runs.folder import RunFolder
from gemkit.session import load_run, newest_trained, open_dataset
from gemkit.testing.runs import silent, tiny_run
from gemkit.testing.teaching import write_log
from gemkit.train import train

BATCH = 8
STEADY = ("optimizer.schedule=constant", "optimizer.warmup_steps=0", "loader.order=time", f"train.batch_size={BATCH}")
SMALL = ("size.num_blocks=1", "sequence=none", "cross=none")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("starting")


def finished(data: Path, runs: Path, *words: str) -> RunFolder:
    train(tiny_run(data, *SMALL, *STEADY, *words, f"runs={runs}"), load_registry(), progress=silent())
    (path,) = runs.iterdir()
    return RunFolder.open(path)


def opened(data: Path) -> Dataset:
    return open_dataset(tiny_run(data), load_registry(), silent())


def cuts(dataset: Dataset) -> list[float]:
    """Days before which there are whole batches only."""
    days = np.sort(dataset.days(np.arange(dataset.num_examples)))
    ends = [i for i in range(BATCH, len(days), BATCH) if days[i - 1] < days[i]]
    return [float(days[i - 1] + days[i]) / 2 for i in ends]


@pytest.mark.parametrize("transfer", [False, True], ids=["alone", "with an adapter"])
def test_two_runs_one_after_the_other_are_one(data: Path, tmp_path: Path, transfer: bool) -> None:
    """Weights, moments, the tables' squares and what a transfer strategy has learned, bit for bit."""
    cut, end = cuts(opened(data))[:2]
    words = ["data.valid_days=[0,1000]"]
    if transfer:
        write_log(tmp_path / "log", opened(data))
        words += ["transfer=student_adapter", f"transfer.log={tmp_path / 'log'}", "transfer.gate=true"]
    whole = finished(data, tmp_path / "whole", *words, f"data.train_days=[0,{end}]")
    first = finished(data, tmp_path / "first", *words, f"data.train_days=[0,{cut}]")
    days = f"data.train_days=[{cut},{end}]"
    second = finished(data, tmp_path / "second", *words, days, f"train.start_from={first.path}")
    steps = [run.metrics()["train"]["steps"] for run in (whole, first, second)]
    assert steps[0] == steps[1] + steps[2] and min(steps) > 1
    one, two = (checkpoint.load(run.checkpoints / "last.safetensors")[0] for run in (whole, second))
    names = [name for name in one if not name.startswith(("rng", "losses"))]
    assert any(name.startswith("optimizer0.state") for name in names)
    assert any(name.startswith("table_squares") for name in names)
    assert any(name.startswith("transfer.gate") for name in names) == transfer
    for name in names:
        if name != "transfer.sums":  # since the last report, and each run reports at its own steps
            assert torch.equal(one[name], two[name]), name


def test_other_options_of_the_optimiser_are_the_new_runs(data: Path, tmp_path: Path) -> None:
    first = finished(data, tmp_path / "first", "train.max_steps=2")
    words = [f"train.start_from={first.path}", "optimizer.beta1=0.5", "train.max_steps=1"]
    second = finished(data, tmp_path / "second", *words)
    state = checkpoint.load(second.checkpoints / "last.safetensors")[1]
    text = json.dumps(state["rest"]["optimizer0"])
    assert "0.5, 0.999" in text and "0.9, 0.999" not in text


def test_a_strategy_that_is_new_begins_anew(data: Path, tmp_path: Path) -> None:
    first = finished(data, tmp_path / "first", "train.max_steps=2")
    write_log(tmp_path / "log", opened(data))
    words = [f"train.start_from={first.path}", "transfer=auxiliary_head", f"transfer.log={tmp_path / 'log'}"]
    second = finished(data, tmp_path / "second", *words, "train.max_steps=1")
    assert "begins anew" in (second.path / "log.txt").read_text()


def test_how_new_the_examples_are_that_weights_know(data: Path, tmp_path: Path) -> None:
    """Those of the run that it began with count too."""
    whole = opened(data)
    cut = cuts(whole)[0]
    late = finished(data, tmp_path / "late", f"data.train_days=[{cut},1000]", "train.max_steps=1")
    words = [f"data.train_days=[0,{cut}]", "train.max_steps=1"]
    early = finished(data, tmp_path / "early", *words)
    after = finished(data, tmp_path / "after", *words, f"train.start_from={late.path}")
    found = [load_run(run.path, load_registry()).snapshot_s for run in (late, early, after)]
    times = np.asarray(whole.columns[storage.TIMESTAMP])
    assert found[0] == times.max() == found[2]
    assert found[1] == times[whole.days(np.arange(len(times))) < cut].max() < found[0]
    assert newest_trained(whole) == times[whole.split("train")].max()


def test_a_run_that_started_from_another_is_resumed_without_it(data: Path, tmp_path: Path) -> None:
    first = finished(data, tmp_path / "first", "train.max_steps=2")
    words = [f"train.start_from={first.path}", "train.max_steps=2", f"runs={tmp_path / 'second'}"]
    run = tiny_run(data, *SMALL, *STEADY, *words)
    before = train(run, load_registry(), progress=silent())["test"]
    (folder,) = (tmp_path / "second").iterdir()
    first.path.rename(tmp_path / "gone")
    (folder / "metrics.json").unlink()
    assert train(run, load_registry(), folder, progress=silent())["test"] == before


def test_what_cannot_be_started_from(data: Path, tmp_path: Path) -> None:
    first = finished(data, tmp_path / "first", "train.max_steps=1")
    start = f"train.start_from={first.path}"
    with pytest.raises(GemkitError, match="of another model"):
        finished(data, tmp_path / "wider", start, "size.dim=24")
    with pytest.raises(GemkitError, match="does not exist"):
        finished(data, tmp_path / "nothing", "train.start_from=runs/nothing")
    other = tiny_run(tmp_path / "other", *SMALL, start, f"runs={tmp_path / 'x'}", num_items=20)
    with pytest.raises(GemkitError, match="other id spaces"):
        train(other, load_registry(), progress=silent())
