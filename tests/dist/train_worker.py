"""One of several processes: trains the runs that a JSON file lists, one after the other.

python -m torch.distributed.run --nproc-per-node N train_worker.py JOBS.json

Each job: `data` (folder of the synthetic data set), `runs`, `overrides`, and perhaps `resume` (a run folder) and
`stop_at` (a step after which one process, not the first, is asked to stop).
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch

from gemkit.registry import Registry, load_registry
from gemkit.runs.stopping import Stopped
from gemkit.testing.runs import silent, tiny_run
from gemkit.train import Training


def run_job(job: dict[str, Any], registry: Registry) -> None:
    """Trains one."""
    run = tiny_run(Path(job["data"]), *job["overrides"], f"runs={job['runs']}", registry=registry)
    resume = Path(job["resume"]) if "resume" in job else None
    with contextlib.ExitStack() as resources:
        training = Training(run, registry, resume, silent(), ["gemkit", "train"], resources)
        if "stop_at" in job:
            _stop_after(training, job["stop_at"])
        with training.stop:
            training.fit()
            training.finish()


def _stop_after(training: Training, step: int) -> None:
    inner = training.step

    def step_and_ask(batches: Any) -> Any:
        loss = inner(batches)
        if training.state.step == step and training.backend.rank == training.backend.world_size - 1:
            os.kill(os.getpid(), signal.SIGTERM)
        return loss

    training.step = step_and_ask  # type: ignore[method-assign]


def main() -> None:
    """Trains them."""
    torch.set_num_threads(1)
    registry = load_registry()
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        with contextlib.suppress(Stopped):
            run_job(job, registry)


if __name__ == "__main__":
    main()
