"""Two machines, imitated on this one: their processes train as one does, and come back when one has died."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from launch import HERE, losses, only_run, srun, torchrun_on_machines
from train_worker import run_job

from gemkit.registry import load_registry

pytestmark = pytest.mark.xdist_group("processes")
"""One after the other: four processes are enough for a machine."""

STEPS = ["train.max_steps=8", "train.checkpoint_every=2", "tokenizer.dropout=0", "optimizer.embedding_lr=2e-3"]
RTOL = 2e-5


@pytest.fixture(scope="module")
def one(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The job of one process, done."""
    folder = tmp_path_factory.mktemp("machines")
    job = {"data": str(folder / "data"), "runs": str(folder / "one"), "overrides": STEPS}
    run_job(job, load_registry())
    return job


def job_file(one: dict[str, Any], name: str, *words: str, **more: Any) -> tuple[Path, str]:
    """Where several processes train, and the file that tells them so."""
    runs = Path(one["runs"]).with_name(name)
    path = runs.with_suffix(".json")
    job = one | {"runs": str(runs), "overrides": [*STEPS, *words], **more}
    path.write_text(json.dumps([job]), encoding="utf-8")
    return runs, str(path)


def test_a_process_of_the_second_machine_dies(one: dict[str, Any]) -> None:
    """Its own agent of torchrun counts that as a restart, the first machine's does not; both go on with the folder."""
    runs, jobs = job_file(one, "four", "parallel=hsdp", "parallel.replicate_below=10", die_at=5)
    done = torchrun_on_machines(2, 2, str(HERE / "train_worker.py"), jobs, restarts=1)
    assert [machine.returncode for machine in done] == [0, 0], done[0].stdout[-3000:] + done[1].stdout[-3000:]
    assert Path(f"{runs}.died").exists()
    run = only_run(runs)
    assert losses(run) == pytest.approx(losses(only_run(Path(one["runs"]))), rel=RTOL) and len(losses(run)) == 8
    starts = (run.path / "log.txt").read_text(encoding="utf-8").count("parameters, run folder")
    assert starts == 2, "it did not begin again"


def test_slurm_starts_the_processes_itself(one: dict[str, Any]) -> None:
    runs, jobs = job_file(one, "two", "parallel=ddp")
    done = srun(2, str(HERE / "train_worker.py"), jobs)
    assert [machine.returncode for machine in done] == [0, 0], done[0].stdout[-3000:] + done[1].stdout[-3000:]
    assert losses(only_run(runs)) == pytest.approx(losses(only_run(Path(one["runs"]))), rel=RTOL)
