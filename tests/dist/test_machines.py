"""Two machines, each with an agent of torchrun and two processes: they train as one process does, and come back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from launch import HERE, losses, only_run, torchrun_on_machines
from train_worker import run_job

from gemkit.registry import load_registry

pytestmark = pytest.mark.xdist_group("processes")
"""One after the other: four processes are enough for a machine."""

STEPS = ["train.max_steps=8", "train.checkpoint_every=2", "tokenizer.dropout=0", "optimizer.embedding_lr=2e-3"]
RTOL = 2e-5


def test_a_process_of_the_second_machine_dies(tmp_path: Path) -> None:
    """Its own agent counts that as a restart, the first machine's does not; both go on with the run's folder."""
    one = {"data": str(tmp_path / "data"), "runs": str(tmp_path / "one"), "overrides": STEPS}
    run_job(one, load_registry())
    words = [*STEPS, "parallel=hsdp", "parallel.replicate_below=10"]
    job = one | {"runs": str(tmp_path / "four"), "overrides": words, "die_at": 5}
    (tmp_path / "jobs.json").write_text(json.dumps([job]), encoding="utf-8")
    done = torchrun_on_machines(2, 2, str(HERE / "train_worker.py"), str(tmp_path / "jobs.json"), restarts=1)
    assert [machine.returncode for machine in done] == [0, 0], done[0].stdout[-3000:] + done[1].stdout[-3000:]
    assert (tmp_path / "four.died").exists()
    run = only_run(tmp_path / "four")
    assert losses(run) == pytest.approx(losses(only_run(tmp_path / "one")), rel=RTOL) and len(losses(run)) == 8
    assert (run.path / "log.txt").read_text(encoding="utf-8").count("parameters, run folder") == 2, "it did not begin again"
