"""The same global batches in one process, in four of DDP, and in 2 x 2 of HSDP with sharded tables: the same losses."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from launch import losses, only_run, train_in

from gemkit.registry import load_registry
from gemkit.session import open_dataset
from gemkit.testing.runs import silent, tiny_run
from gemkit.testing.teaching import write_log
from gemkit.train import train

pytestmark = pytest.mark.xdist_group("processes")
"""One after the other: four processes are enough for a machine."""

STEPS, FIRST, MORE = 20, 20, 50
"""Steps of a run, how many of them are first ones, and steps in `make test-all`."""
RTOL_FIRST, RTOL = 2e-5, 5e-4
"""Of a loss in fp32, in the first steps and in all: sums are taken in another order, and training adds that up."""

BF16 = ["train.max_steps=3", "train.precision=bf16"]
ACCUMULATED = ["train.max_steps=6", "train.accumulate=2", "train.epochs=10"]
RECOMPUTED = ["train.max_steps=3", "size.num_blocks=3", "train.activation_budget=0.5"]
COMPILED = ["train.max_steps=3", "sequence=none", "train.compile=true"]
"""Blocks without histories: tracing those takes minutes."""
TAUGHT = ["train.max_steps=6", "transfer=[distill,student_adapter]"]
TAUGHT += ["transfer.parts.distill.gate=true", "transfer.parts.distill.gate_tolerance=1"]
FEW = ["train.max_steps=10", "train.batch_size=3", "train.eval_batch_size=61", "optimizer.embedding_lr=2e-3"]
"""Fewer examples than processes: some have none, and others have no events."""
KINDS = {
    " few": FEW,
    " few bf16": [*FEW, "train.batch_size=6", "train.accumulate=2", "train.precision=bf16"],
    " accumulated": ACCUMULATED,
    " bf16": BF16,
    " recomputed": RECOMPUTED,
    " compiled": COMPILED,
    " taught": TAUGHT,
}
LAYOUTS: dict[str, list[str]] = {
    "ddp": ["parallel=ddp"],
    "hsdp": ["parallel=hsdp", "parallel.dp_shard=2", "parallel.replicate_below=10", "parallel.sharding=row_wise"],
    "hsdp of whole tables prefetched": [
        "parallel=hsdp",
        "parallel.dp_shard=4",
        "parallel.sharding=table_wise",
        "parallel.prefetch_ids=true",
    ],
}


@pytest.fixture(scope="module", params=[STEPS, pytest.param(MORE, marks=pytest.mark.slow)])
def steps(request: pytest.FixtureRequest) -> int:
    """How long the runs in fp32 are that accumulate nothing."""
    return int(request.param)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory, steps: int) -> dict[str, Path]:
    """Folders with one run each: those of one process here, those of four in one start of four processes."""
    # Adam divides a gradient that is zero but for rounding by its own size; with a larger epsilon it stays next to
    # zero. Runs that differ by rounding stay 1e-7 apart until an input of some ReLU is so near to zero that rounding
    # decides on which side it is: then they are 1e-3 apart soon. With small steps of the tables that is rare.
    whole = [f"train.max_steps={steps}", "train.epochs=10", "optimizer.lr=2e-3", "optimizer.eps=1e-4"]
    whole.append("optimizer.embedding_lr=2e-3")
    folder = tmp_path_factory.mktemp("parity")
    data = folder / "data"
    dataset = open_dataset(tiny_run(data), load_registry(), silent())
    answered = np.random.default_rng(1).permutation(dataset.num_examples)[: dataset.num_examples // 3]
    write_log(folder / "log", dataset, rows=answered, code_width=None)
    found: dict[str, Path] = {}
    jobs: list[dict[str, Any]] = []
    for kind, overrides in {"": whole, **KINDS}.items():
        if kind == " taught":
            overrides = [*overrides, f"transfer.log={folder / 'log'}"]
        found[f"single{kind}"] = folder / f"single{kind}"
        plain = ["train.activation_budget=1", "train.compile=false"]
        run = tiny_run(data, *overrides, *plain, f"runs={found[f'single{kind}']}")
        train(run, load_registry(), progress=silent())
        for layout, own in LAYOUTS.items():
            if (kind not in ("", " few") and layout.startswith("hsdp of")) or ("bf16" in kind and layout == "ddp"):
                continue
            found[layout + kind] = folder / (layout + kind)
            words = [*overrides, *own, f"train.compile_cache={folder / 'cache'}"]
            jobs.append({"data": str(data), "runs": str(found[layout + kind]), "overrides": words})
    train_in(4, folder, jobs)
    return found


@pytest.mark.parametrize("layout", [*LAYOUTS, "ddp accumulated", "hsdp accumulated"])
def test_losses_and_metrics_are_those_of_one_process(runs: dict[str, Path], layout: str, steps: int) -> None:
    kind = " accumulated" if "accumulated" in layout else ""
    one, several = only_run(runs[f"single{kind}"]), only_run(runs[layout])
    expected = losses(one)
    assert len(expected) == (6 if kind else steps)
    assert losses(several)[:FIRST] == pytest.approx(expected[:FIRST], rel=RTOL_FIRST)
    assert losses(several) == pytest.approx(expected, rel=RTOL)
    for task, metrics in one.metrics()["test"].items():
        found = several.metrics()["test"][task]
        assert found["examples"] == metrics["examples"]
        for name in ("auc", "logloss", "ne", "calibration"):
            assert found[name] == pytest.approx(metrics[name], rel=RTOL), (task, name)


@pytest.mark.parametrize("layout", ["ddp", "hsdp"])
def test_blocks_are_recomputed_or_compiled_in_every_process(runs: dict[str, Path], layout: str) -> None:
    for kind in (" recomputed", " compiled"):
        expected, found = losses(only_run(runs[f"single{kind}"])), losses(only_run(runs[layout + kind]))
        assert len(found) == 3 and found == pytest.approx(expected, rel=RTOL_FIRST)
    again = [_told(runs[f"{layout} recomputed"], rank)["recomputed"] for rank in range(4)]
    assert again == 4 * again[:1] and 0 < len(again[0]) < 3
    compiled = [_told(runs[f"{layout} compiled"], rank) for rank in range(4)]
    # Equal blocks share a graph; evaluation, without gradients, has its own. The number of examples varies.
    assert [(one["graphs"], one["breaks"]) for one in compiled] == 4 * [([1, 1], {})]
    start = only_run(runs[f"{layout} compiled"]).metrics()["train"]["start_s"]
    assert 0 < start["compile"] < start["total"]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_processes_without_examples_or_events_keep_up(runs: dict[str, Path], layout: str) -> None:
    one, several = only_run(runs["single few"]), only_run(runs[f"{layout} few"])
    assert len(losses(one)) == 10 and losses(several) == pytest.approx(losses(one), rel=RTOL_FIRST)
    events = [row["rank_events"] for row in several.rows() if row["split"] == "train"]
    assert any(min(of_ranks) == 0 for of_ranks in events)
    for task, metrics in one.metrics()["test"].items():
        assert several.metrics()["test"][task]["logloss"] == pytest.approx(metrics["logloss"], rel=RTOL), task


@pytest.mark.parametrize("layout", ["ddp", "hsdp"])
def test_soft_labels_count_as_in_one_process(runs: dict[str, Path], layout: str) -> None:
    one, several = (only_run(runs[f"{name} taught"]) for name in ("single", layout))
    assert len(losses(one)) == 6 and losses(several) == pytest.approx(losses(one), rel=RTOL_FIRST)
    told = [
        [{key: value for key, value in row.items() if key.startswith("transfer/")} for row in folder.rows()]
        for folder in (one, several)
    ]
    for expected, found in zip(*told, strict=True):
        assert found == pytest.approx(expected, rel=1e-4)
    gates = [row[key] for row in told[0] for key in row if key.startswith("transfer/gate/")]
    assert any(0 < gate < 1 for gate in gates), "no gate is ajar"


def _told(runs: Path, rank: int) -> dict[str, Any]:
    told: dict[str, Any] = json.loads((runs / f"process{rank}.json").read_text(encoding="utf-8"))
    return told


def test_every_process_is_told_of(runs: dict[str, Path]) -> None:
    (row, *_) = (r for r in only_run(runs["hsdp"]).rows() if r["split"] == "train")
    assert len(row["rank_events"]) == len(row["rank_busy_s"]) == 4 and min(row["rank_events"]) > 0
    assert 0 < row["balance"] <= 1
    (alone, *_) = (r for r in only_run(runs["single"]).rows() if r["split"] == "train")
    assert "balance" not in alone


def test_the_first_process_alone_leaves_a_folder(runs: dict[str, Path]) -> None:
    folder = only_run(runs["hsdp"])
    assert {p.name for p in folder.path.iterdir()} >= {"config.yaml", "metrics.json", "log.txt", "curves.png"}
    assert folder.metrics()["train"]["params"] == only_run(runs["single"]).metrics()["train"]["params"]


@pytest.mark.parametrize("kind", ["bf16", "few bf16"])
def test_bf16_is_near_that_of_one_process(runs: dict[str, Path], kind: str) -> None:
    one, several = losses(only_run(runs[f"single {kind}"])), losses(only_run(runs[f"hsdp {kind}"]))
    assert several == pytest.approx(one, rel=5e-3) and several != one
