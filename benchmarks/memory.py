"""Peak memory of a training step: activations kept, recomputed in whole or to a budget, or kept in FP8.

    python benchmarks/memory.py

The default model with histories on `data=adsworld`, in two sizes. Each way runs in a process of its own: a first step
on a few examples makes gradients and moments, then some whole steps, whose losses are kept; the memory is how far the
process's peak rises above where it stood in between. (The two settings of glibc give back what is freed at once, so
that what the process holds is what it uses.) Beside it: what the cost meter says of the activations.

The file says for each way whether its losses are those of keeping everything, bit for bit. Writes
benchmarks/results/memory.json.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

import measure
import torch

from gemkit.config.compose import compose
from gemkit.config.run import RunConfig
from gemkit.cost.count import RunCost, count
from gemkit.cost.recompute import recomputed
from gemkit.registry import load_registry
from gemkit.session import make_loader, open_dataset
from gemkit.testing.runs import silent
from gemkit.train import Training

SIZES = {
    "width 32, 4 blocks": ["size.dim=32", "size.num_blocks=4", "train.batch_size=512"],
    "width 64, 8 blocks": ["size.dim=64", "size.num_blocks=8", "size.num_tokens=32", "train.batch_size=256"],
}
WAYS = {
    "all kept": [],
    "budget 0.5": ["train.activation_budget=0.5"],
    "budget 0.25": ["train.activation_budget=0.25"],
    "budget 0": ["train.activation_budget=0"],
    "all recomputed": ["train.checkpoint_activations=true"],
    "FP8": ["parallel.saved_activations=fp8"],
}
FEW = 8


def run_of(folder: Path, words: list[str]) -> RunConfig:
    """A run on a world that is built once."""
    world = ["data=adsworld", "data.num_users=400", "data.mean_history=200", "data.max_history=64"]
    own = [f"data.root={folder}/datasets", f"runs={folder}/runs", "parallel.accelerator=cpu", "loader.workers=0"]
    return compose([*world, *own, *words], load_registry())


def steps(run: RunConfig, number: int) -> tuple[list[float], float, int]:
    """Losses of whole steps, the seconds of processor time of one, and the bytes they need at the most."""
    torch.set_num_threads(1)
    with contextlib.ExitStack() as resources:
        one = Training(run, load_registry(), None, silent(), ["gemkit"], resources)
        few = make_loader(run, one.dataset, one.model, one.backend, "train", FEW)
        _step(one, next(iter(few.epoch(0))))
        batches = [one.loader.batch(0, i) for i in range(number)]
        losses: list[float] = []
        seconds, memory = measure.peak_above(
            lambda: measure.cpu_s(lambda: losses.extend(_step(one, batch) for batch in batches))
        )
        return losses, seconds / number, memory


def _step(one: Training, batch: Any) -> float:
    outputs = one.model(batch)
    loss = one.model.dense.head.loss(outputs.scores, batch)
    one.backend.fabric.backward(loss)
    one.optimizer.step()
    one.optimizer.zero_grad()
    return loss.item()


def predicted(run: RunConfig, cost: RunCost) -> int | None:
    """Bytes of activations at the peak, of which blocks' parts are recomputed as the run says; not for FP8."""
    if run.parallel.saved_activations == "fp8":
        return None
    choice = recomputed(run, cost)
    peak = choice.least_bytes if run.train.checkpoint_activations else choice.peak_bytes
    return cost.total.activation_bytes - choice.full_bytes + peak


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2)
    number = parser.parse_args().steps
    if "MALLOC_MMAP_THRESHOLD_" not in os.environ:  # so that memory that is freed is given back, and seen to be
        os.environ |= {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536", "OMP_NUM_THREADS": "1"}
        os.execv(sys.executable, [sys.executable, *sys.argv])
    sizes: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        for size, words in SIZES.items():
            run = run_of(Path(name), words)
            registry = load_registry()
            dataset = open_dataset(run, registry, silent())
            cost = measure.in_a_process(lambda run=run, d=dataset: _cost(run, d))[0]
            rows: dict[str, Any] = {}
            for way, more in WAYS.items():
                own = run_of(Path(name), [*words, *more])
                losses, seconds, memory = measure.in_a_process(lambda own=own: steps(own, number))[0]
                rows[way] = {
                    "peak_mb": memory / 1e6,
                    "predicted_mb": None if (found := predicted(own, cost)) is None else found / 1e6,
                    "recomputed": list(recomputed(own, cost).blocks),
                    "step_cpu_s": seconds,
                    "losses": losses,
                    "same_losses": losses == rows["all kept"]["losses"] if rows else True,
                }
                print(size, way, {k: v for k, v in rows[way].items() if k != "losses"}, flush=True)
            sizes[size] = rows
    setting = {"steps": number, "threads": 1, "sizes": SIZES, "ways": WAYS}
    measure.write("memory", {"setting": setting, "sizes": sizes, **measure.machine()})


def _cost(run: RunConfig, dataset: Any) -> RunCost:
    with contextlib.ExitStack() as resources:
        one = Training(run, load_registry(), None, silent(), ["gemkit"], resources)
        return count(run, one.model.schema, load_registry(), one.loader.batch(0, 0))


if __name__ == "__main__":
    main()
