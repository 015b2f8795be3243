"""Low-rank tuning in several processes: DDP tunes as one process does, sharded weights are refused."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from launch import HERE, losses, only_run, torchrun

from gemkit.registry import load_registry
from gemkit.runs import checkpoint, keeping
from gemkit.testing.runs import silent, tiny_run
from gemkit.train import train

pytestmark = [pytest.mark.xdist_group("processes"), pytest.mark.slow]
"""One after the other."""

SIZE = ["size.num_blocks=1", "sequence=none", "cross=none", "tokenizer.dropout=0"]
RTOL = 2e-5


def test_low_rank_tuning_in_two_processes(tmp_path: Path) -> None:
    registry, data = load_registry(), tmp_path / "data"
    train(tiny_run(data, *SIZE, "train.max_steps=2", f"runs={tmp_path / 'teacher'}"), registry, progress=silent())
    words = [*SIZE, "train.max_steps=5", "seed=2", "transfer=parameter_sharing", "transfer.tuning=low_rank"]
    words += [f"transfer.teacher={only_run(tmp_path / 'teacher').path}", "transfer.share=[dense.tokenizer.*]"]
    train(tiny_run(data, *words, f"runs={tmp_path / 'one'}"), registry, progress=silent())
    jobs = [
        {"data": str(data), "runs": str(tmp_path / name), "overrides": [*words, f"parallel={name}"]}
        for name in ("ddp", "hsdp")
    ]
    path = tmp_path / "jobs.json"
    path.write_text(json.dumps(jobs), encoding="utf-8")
    done = torchrun(2, str(HERE / "train_worker.py"), str(path))

    one, two = only_run(tmp_path / "one"), only_run(tmp_path / "ddp")
    assert losses(two) == pytest.approx(losses(one), rel=RTOL) and len(losses(two)) == 5
    mine, theirs = (checkpoint.load(run.checkpoints / keeping.LAST)[0] for run in (two, one))
    factors = [name for name in theirs if name.startswith("transfer.factors.")]
    assert len(factors) > 10
    for name in factors:
        torch.testing.assert_close(mine[name], theirs[name], rtol=1e-3, atol=1e-4)

    assert done.returncode != 0
    assert "low-rank tuning needs whole weights" in done.stdout and "parallel=ddp" in done.stdout
    assert not (tmp_path / "hsdp").exists()
