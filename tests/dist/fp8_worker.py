"""One of two processes: trains with activations saved exactly and in FP8, in each layout.

python -m torch.distributed.run --nproc-per-node 2 fp8_worker.py FOLDER

Prints a line of JSON for each layout: the losses of both, and how many numbers each tensor had that was cast. Each
process has a prime number of examples, so what it does not divide is no activation.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import sys
from pathlib import Path
from typing import Any

import torch
from gemkit_kernels.fp8 import saved
from torch import Tensor

from gemkit.registry import load_registry
from gemkit.testing.runs import silent, tiny_run
from gemkit.train import Training

EXAMPLES, STEPS = 509, 3
MODEL = [
    "sequence=none",
    "size.num_tokens=12",
    "interaction.hidden=[1024]",
    f"train.batch_size={2 * EXAMPLES}",
    "train.log_every=100",
]
FP8 = "parallel.saved_activations=fp8"
LAYOUTS = {
    "ddp": ["parallel=ddp"],
    "hsdp": ["parallel=hsdp", "parallel.dp_shard=2"],
    "hsdp, bf16": ["parallel=hsdp", "parallel.dp_shard=2", "train.precision=bf16"],
    "hsdp, accumulated": [
        "parallel=hsdp",
        "parallel.dp_shard=2",
        "train.accumulate=2",
        f"train.batch_size={4 * EXAMPLES}",
    ],
}


def losses(folder: Path, words: list[str]) -> tuple[list[float], list[int]]:
    """Losses of the first steps, the same on all processes, and the sizes of what was cast to FP8 in the last one."""
    cast, found, sizes = saved.fp8_quantise, [], []

    def recorded(x: Tensor, tiled: bool) -> tuple[Tensor, Tensor]:
        sizes.append(x.numel())
        return cast(x, tiled)

    run = tiny_run(folder, *MODEL, *words, f"runs={folder / 'runs'}", num_examples=8000)
    with contextlib.ExitStack() as resources:
        training = Training(run, load_registry(), None, silent(), ["gemkit", "train"], resources)
        training.model.dense.train()
        saved.fp8_quantise = recorded
        batches = iter(training.loader.epoch(0))
        for _ in range(STEPS):
            sizes.clear()
            group = list(itertools.islice(batches, run.train.accumulate))
            loss = training.step(group)
            found.append(float(training.backend.mean(loss)))
        saved.fp8_quantise = cast
    return found, sizes


def main() -> None:
    """All layouts."""
    torch.set_num_threads(1)
    folder = Path(sys.argv[1])
    for layout, words in LAYOUTS.items():
        exact, none = losses(folder, words)
        fp8, sizes = losses(folder, [*words, FP8])
        row: dict[str, Any] = {"layout": layout, "exact": exact, "fp8": fp8, "sizes": sizes, "cast_in_exact": len(none)}
        if torch.distributed.get_rank() == 0:
            print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
