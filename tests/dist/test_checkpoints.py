"""Checkpoints of several processes: the same bits where the layout is the same, and any other layout takes them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from launch import losses, only_run, train_in
from train_worker import run_job

from gemkit.errors import GemkitError
from gemkit.evaluate import evaluate
from gemkit.registry import load_registry
from gemkit.runs import checkpoint, keeping
from gemkit.runs.checkpoint import PARTS
from gemkit.runs.inspect import inspect_run
from gemkit.runs.stopping import Stopped
from gemkit.testing.runs import silent

pytestmark = pytest.mark.xdist_group("processes")
"""One after the other: four processes are enough for a machine."""

STEPS = ["train.max_steps=8", "train.epochs=10", "train.checkpoint_every=2", "optimizer.lr=2e-3", "tokenizer.dropout=0"]
HSDP = ["parallel=hsdp", "parallel.dp_shard=2", "parallel.replicate_below=10", "train.async_checkpoints=true"]
ROWS = [*HSDP, "parallel.sharding=row_wise"]
GROUPS = [*ROWS, "parallel.sparse_groups=2", "parallel.sparse_average_every=3"]
TABLES = [*HSDP, "parallel.sharding=table_wise"]
RTOL = 2e-5


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs on 4, 2 and 1 processes, started in this order; each of `resumed` went on with a copy of a stopped one."""
    folder = tmp_path_factory.mktemp("checkpoints")

    def job(name: str, *overrides: str, **more: Any) -> dict[str, Any]:
        return {"data": str(folder / "data"), "runs": str(folder / name), "overrides": [*STEPS, *overrides], **more}

    def copy(stopped: str, name: str) -> str:
        source = only_run(folder / stopped).path
        shutil.copytree(source, folder / name / source.name)
        return str(folder / name / source.name)

    registry = load_registry()
    run_job(job("one"), registry)
    with pytest.raises(Stopped):
        run_job(job("one stopped", stop_at=4), registry)
    groups = [job("groups", *GROUPS), job("groups stopped", *GROUPS, stop_at=4)]
    train_in(4, folder, [job("four", *ROWS), job("four stopped", *ROWS, stop_at=4), *groups])
    (folder / "resumed").mkdir()
    train_in(2, folder, [job("4 to 2", *TABLES, resume=copy("four stopped", "4 to 2"))])
    again = copy("four stopped", "4 to 4"), copy("one stopped", "1 to 4")
    train_in(4, folder, [job("4 to 4", *ROWS, resume=again[0]), job("1 to 4", *ROWS, resume=again[1])])
    train_in(4, folder, [job("groups again", *GROUPS, resume=copy("groups stopped", "groups again"))])
    run_job(job("groups to 1", resume=copy("groups stopped", "groups to 1")), registry)
    run_job(job("4 to 1", resume=copy("four stopped", "4 to 1")), registry)
    return folder


@pytest.mark.parametrize(("name", "again"), [("four", "4 to 4"), ("groups", "groups again")])
def test_a_stopped_run_ends_with_the_same_bits(folder: Path, name: str, again: str) -> None:
    whole, resumed = only_run(folder / name), only_run(folder / again)
    assert losses(resumed) == losses(whole)
    for name in (keeping.BEST, keeping.LAST):
        (first, a), (second, b) = (checkpoint.load(f.checkpoints / name) for f in (whole, resumed))
        assert sorted(first) == sorted(second) and len(first) > 50
        for key in first:
            assert torch.equal(first[key], second[key]), f"{name}: {key}"
        for counter in ("step", "epoch", "batch", "examples", "best", "best_step"):
            assert a.get("counters", a).get(counter) == b.get("counters", b).get(counter), counter


@pytest.mark.parametrize("name", ["4 to 2", "4 to 1", "1 to 4"])
def test_another_layout_goes_on_with_the_same_losses(folder: Path, name: str) -> None:
    expected, found = only_run(folder / "one"), only_run(folder / name)
    assert len(losses(found)) == 8
    assert losses(found) == pytest.approx(losses(expected), rel=RTOL)
    for task, metrics in expected.metrics()["test"].items():
        assert found.metrics()["test"][task]["logloss"] == pytest.approx(metrics["logloss"], rel=1e-4)


def test_groups_keep_a_copy_each_between_averages(folder: Path) -> None:
    def apart(steps: int) -> set[str]:
        (path,) = (p for p in saved if checkpoint.summarise(p).state["counters"]["step"] == steps)
        tensors, state = checkpoint.load(path)
        names = {name for name in tensors if name.startswith("copies.")}
        assert state["copies"] == 2
        assert all(not torch.equal(tensors[name], tensors[name.removeprefix("copies.1.")]) for name in names)
        return names

    checkpoints = only_run(folder / "groups stopped").checkpoints
    saved = [checkpoints / keeping.LAST, *keeping.older(checkpoints)]
    tables = {"copies.1.tables.user_id", "copies.1.table_squares.user_id"}
    assert apart(4) >= tables and apart(2) >= tables, "averages are taken after the third step"
    tensors, state = checkpoint.load(only_run(folder / "groups").checkpoints / keeping.LAST)
    assert state["counters"]["step"] == 8 and not [n for n in tensors if n.startswith("copies.")]
    expected, alone = losses(only_run(folder / "groups")), losses(only_run(folder / "groups to 1"))
    assert alone[:4] == expected[:4] and alone[4:] != expected[4:]
    assert alone == pytest.approx(expected, rel=0.05)


def test_blocks_lie_with_those_that_hold_them(folder: Path) -> None:
    run = only_run(folder / "four stopped")
    _, state = checkpoint.load(run.checkpoints / keeping.LAST)
    assert len(state[PARTS]["files"]) == 4
    sizes = sorted((run.checkpoints / PARTS / name).stat().st_size for name in state[PARTS]["files"])
    # Each of the two replicas writes about a half of its shards of the dense part; of the tables, everybody.
    assert sizes[3] < 1.3 * sizes[0]
    alone = only_run(folder / "one stopped").checkpoints / keeping.LAST
    assert (run.checkpoints / keeping.LAST).stat().st_size < 0.7 * alone.stat().st_size
    used = {f for path in run.checkpoints.glob("*.safetensors") for f in _parts(path)}
    assert {p.name for p in (run.checkpoints / PARTS).iterdir()} == used


def _parts(path: Path) -> list[str]:
    files: list[str] = checkpoint.summarise(path).state.get(PARTS, {}).get("files", [])
    return files


def test_one_process_evaluates_and_inspects(folder: Path) -> None:
    run = only_run(folder / "four")
    expected = run.metrics()["test"]
    found = evaluate(run.path, load_registry(), silent())
    for task, metrics in expected.items():
        assert found[task]["logloss"] == pytest.approx(metrics["logloss"], rel=1e-5)
    facts, alone = inspect_run(run.path, verify=True), inspect_run(only_run(folder / "one").path)
    assert all(row["sound"] for row in facts["checkpoints"])
    assert facts["parameters"] == alone["parameters"]
    sizes = [{row["file"]: row["bytes"] for row in found["checkpoints"]} for found in (facts, alone)]
    assert sizes[0] == pytest.approx(sizes[1], rel=0.1)  # with the parts, that is; headers differ


def test_a_damaged_part_is_noticed_and_the_one_before_taken(folder: Path, tmp_path: Path) -> None:
    source = only_run(folder / "four stopped").path
    damaged = tmp_path / source.name
    shutil.copytree(source, damaged)
    checkpoints = damaged / "checkpoints"
    part = checkpoints / PARTS / _parts(checkpoints / keeping.LAST)[2]
    content = bytearray(part.read_bytes())
    content[-5] ^= 1
    part.write_bytes(content)
    said: list[str] = []
    found = keeping.load_last(checkpoints, said.append)
    assert found is not None and found[2].name.startswith("step-") and "sha256" in said[0]
    (row,) = (r for r in inspect_run(damaged, verify=True)["checkpoints"] if r["file"] == keeping.LAST)
    assert row["sound"] is False and "sha256" in row["problem"]
    part.unlink()
    with pytest.raises(GemkitError, match="is missing"):
        checkpoint.load(checkpoints / keeping.LAST)


def test_a_name_that_leads_out_of_the_folder_is_refused(folder: Path, tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    index = {"files": ["../../secret.safetensors"], "tensors": {}}
    checkpoint.save(path, {"x": torch.zeros(1)}, {PARTS: index})
    with pytest.raises(GemkitError, match="outside of its folder"):
        checkpoint.load(path)
