"""What a model costs when it serves, measured."""

from __future__ import annotations

import time
from pathlib import Path
from statistics import median

import torch

from gemkit.registry import Registry
from gemkit.runs.progress import Progress
from gemkit.session import load_run, make_loader, to_device

REPEATS = 7


@torch.no_grad()
def milliseconds(run: Path, registry: Registry, examples: int = 1024) -> float:
    """Time of the best model for 1,000 examples of its test split, batch in hand: lookups and dense part.

    The median of repeats after one that is not counted, on this machine with this many threads.
    """
    loaded = load_run(run, registry)
    data = loaded.open_dataset(registry, Progress(quiet=True))
    size = min(examples, len(data.split("test")))
    loader = make_loader(loaded.model.run, data, loaded.model, loaded.backend, "test", size)
    batch = next(iter(to_device(iter([loader.batch(0, 0)]), loaded.backend)))
    times = []
    for _ in range(REPEATS + 1):
        started_s = time.perf_counter()
        logits = loaded.model(batch).logits
        float(logits.sum())  # waits for a device
        times.append(time.perf_counter() - started_s)
    return 1e6 * median(times[1:]) / size
