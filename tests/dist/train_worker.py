"""One of several processes: trains the runs that a JSON file lists, one after the other.

python -m torch.distributed.run --nproc-per-node N train_worker.py JOBS.json

Each job: `data` (folder of the synthetic data set), `runs`, `overrides`, and perhaps `resume` (a run folder),
`stop_at` (a step after which the last process is asked to stop) and `die_at` (one after which it is killed, once).
Into `runs`, each process writes which blocks it recomputed and what PyTorch traced; the compiler proper, which would
take minutes, is left out.
"""

from __future__ import annotations

import contextlib
import functools
import json
import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._dynamo.utils import counters

from gemkit.registry import Registry, load_registry
from gemkit.runs.stopping import Stopped
from gemkit.testing.runs import silent, tiny_run
from gemkit.train import Training

VARIABLES: list[int] = []
"""Of each graph that was traced: numbers that it takes for variables, as it should sizes of batches alone."""


def traced(graph: torch.fx.GraphModule, inputs: list[Any]) -> Callable[..., Any]:
    """In place of a compiler."""
    VARIABLES.append(sum(isinstance(x, torch.SymInt) for x in inputs))
    return graph.forward


def run_job(job: dict[str, Any], registry: Registry) -> None:
    """Trains one."""
    run = tiny_run(Path(job["data"]), *job["overrides"], f"runs={job['runs']}", registry=registry)
    resume = Path(job["resume"]) if "resume" in job else None
    with contextlib.ExitStack() as resources:
        training = Training(run, registry, resume, silent(), ["gemkit", "train"], resources)
        if "stop_at" in job:
            _signal_after(training, job["stop_at"], signal.SIGTERM)
        died = Path(f"{job['runs']}.died")
        if "die_at" in job and not died.exists():
            _signal_after(training, job["die_at"], signal.SIGKILL, died)
        with training.stop:
            training.fit()
            training.finish()
    done = {"recomputed": training.model.dense.recomputed, "graphs": VARIABLES, "breaks": counters["graph_break"]}
    (Path(job["runs"]) / f"process{training.backend.rank}.json").write_text(json.dumps(done), encoding="utf-8")


def _signal_after(training: Training, step: int, number: signal.Signals, note: Path | None = None) -> None:
    """The last process sends itself a signal after a step, and leaves a note before."""
    inner = training.step

    def step_and_signal(batches: Any) -> Any:
        loss = inner(batches)
        if training.state.step == step and training.backend.rank == training.backend.world_size - 1:
            if note is not None:
                note.touch()
            os.kill(os.getpid(), number)
        return loss

    training.step = step_and_signal  # type: ignore[method-assign]


def main() -> None:
    """Trains them."""
    torch.set_num_threads(1)
    nn.Module.compile = functools.partialmethod(nn.Module.compile, backend=traced)  # type: ignore[assignment]
    registry = load_registry()
    for job in json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")):
        torch._dynamo.reset()
        counters.clear()
        VARIABLES.clear()
        with contextlib.suppress(Stopped):
            run_job(job, registry)


if __name__ == "__main__":
    main()
