"""The embedding step (lookup, gradient, update) of 26 tables: what training uses, raw FBGEMM, PyTorch, and layers.

    OMP_NUM_THREADS=1 python benchmarks/embedding_speed.py

B 4,096, one id of each of 26 tables for each example, new uniform ids in each round, one thread; processor time of
interleaved rounds. All receive the same ids and gradients. Freed memory stays with the process, as in training.

* `torch`: the default tables on a CPU as training calls them: a dict of ids in, a dict of rows out.
* `fbgemm`: FBGEMM's, in the same way.
* `tbe`: FBGEMM's table-batched embedding itself, one call for all tables with bags of one row, ids and offsets ready,
  one gradient for all. `tbe unpooled`: the same with PoolingMode.NONE.
* `embedding_bag`: 26 `nn.EmbeddingBag(sparse=True)` and `SparseAdam`. Left out, as is `tbe unpooled`, where weights and
  Adam's moments take more than 3 GB.

Before that, `torch` and `fbgemm` are held against each other after three steps. Writes
benchmarks/results/embedding_speed.json.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import measure
import torch
from gemkit_hsdp.tables import FusedTables, LocalTables, TorchTables
from torch import Tensor, nn

from gemkit.runs.freed_memory import keep_freed_memory

TABLES, EXAMPLES = 26, 4096
SIZES = ((1_000_000, 16), (1_000_000, 64), (10_000_000, 16), (10_000_000, 64))
LR, EPS = 0.05, 1e-8
LARGEST_OF_ALL = 3e9
"""Bytes of weights and two moments up to which every side is timed."""

Step = Callable[[Tensor, Tensor], Any]
"""Takes ids (26, B) and the gradient of what they look up (26 B, D)."""


def schema(rows: int) -> Any:
    """26 tables with `rows` in all, a feature each."""
    names = [f"table{i}" for i in range(TABLES)]
    tables = [SimpleNamespace(name=name, num_embeddings=rows // TABLES) for name in names]
    return SimpleNamespace(tables=tables, feature_tables={name: name for name in names})


def through_interface(tables: LocalTables) -> Step:
    """A step as training does it."""

    def step(ids: Tensor, gradient: Tensor) -> None:
        rows = tables({name: ids[i] for i, name in enumerate(tables.names)})
        torch.autograd.backward(list(rows.values()), list(gradient.split(EXAMPLES)))

    return step


def raw_tbe(rows: int, dim: int, pooled: bool) -> Step:
    """A step of FBGEMM's module alone."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from fbgemm_gpu.split_table_batched_embeddings_ops_common import EmbeddingLocation, PoolingMode
    from fbgemm_gpu.split_table_batched_embeddings_ops_training import (
        ComputeDevice,
        SplitTableBatchedEmbeddingBagsCodegen,
    )

    specs = [(rows // TABLES, dim, EmbeddingLocation.HOST, ComputeDevice.CPU)] * TABLES
    tbe = SplitTableBatchedEmbeddingBagsCodegen(
        specs,
        optimizer=EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        learning_rate=LR,
        eps=EPS,
        pooling_mode=PoolingMode.SUM if pooled else PoolingMode.NONE,
    )
    for weights in tbe.split_embedding_weights():
        weights.uniform_(-0.1, 0.1)
    offsets = torch.arange(TABLES * EXAMPLES + 1) if pooled else torch.arange(TABLES + 1) * EXAMPLES

    def step(ids: Tensor, gradient: Tensor) -> None:
        out = tbe(ids.view(-1), offsets)
        out.backward(gradient.view(out.shape))  # pooled rows lie otherwise; the numbers are noise anyway

    return step


def layers(rows: int, dim: int) -> Step:
    """A step of one layer for each table."""
    bags = [nn.EmbeddingBag(rows // TABLES, dim, mode="sum", sparse=True) for _ in range(TABLES)]
    optimizer = torch.optim.SparseAdam([bag.weight for bag in bags], lr=LR)
    offsets = torch.arange(EXAMPLES)

    def step(ids: Tensor, gradient: Tensor) -> None:
        rows_of = [bag(ids[i], offsets) for i, bag in enumerate(bags)]
        torch.autograd.backward(rows_of, list(gradient.split(EXAMPLES)))
        optimizer.step()
        optimizer.zero_grad()

    return step


def largest_difference(rows: int, dim: int) -> float:
    """Between weights of `torch` and `fbgemm` after three steps from the same start."""
    both: list[LocalTables] = [kind(schema(rows), dim, LR, EPS, seed=1) for kind in (FusedTables, TorchTables)]
    for number in range(3):
        ids, gradient = inputs(rows, dim, number)
        for tables in both:
            through_interface(tables)(ids, gradient)
    pairs = zip(both[0].tables().values(), both[1].tables().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def inputs(rows: int, dim: int, seed: int) -> tuple[Tensor, Tensor]:
    """Ids and a gradient."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(0, rows // TABLES, (TABLES, EXAMPLES), generator=generator)
    return ids, torch.randn(TABLES * EXAMPLES, dim, generator=generator)


def timed(rows: int, dim: int, rounds: int) -> dict[str, Any]:
    """Milliseconds of each side, and their ratios to `tbe`."""
    keep_freed_memory(torch.device("cpu"))
    difference = largest_difference(rows, dim)
    sides: dict[str, Step] = {
        "tbe": raw_tbe(rows, dim, pooled=True),
        "torch": through_interface(TorchTables(schema(rows), dim, LR, EPS, seed=1)),
        "fbgemm": through_interface(FusedTables(schema(rows), dim, LR, EPS, seed=1)),
    }
    if 12 * rows * dim < LARGEST_OF_ALL:
        sides |= {"tbe unpooled": raw_tbe(rows, dim, pooled=False), "embedding_bag": layers(rows, dim)}
    seconds: dict[str, list[float]] = {name: [] for name in sides}
    for number in range(rounds + 1):
        ids, gradient = inputs(rows, dim, 100 + number)
        for name, step in sides.items():
            taken = measure.cpu_s(lambda step=step, ids=ids, gradient=gradient: step(ids, gradient))
            if number:
                seconds[name].append(taken)
    bags = seconds.get("embedding_bag")
    found = {
        name: {
            "median_ms": 1e3 * statistics.median(values),
            "least_ms": 1e3 * min(values),
            "of_tbe": measure.median_ratio(values, seconds["tbe"]),
            "embedding_bag_over_it": measure.median_ratio(bags, values) if bags else None,
        }
        for name, values in seconds.items()
    }
    return {"largest_difference": difference, "sides": found}


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=25)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    cases = {}
    for rows, dim in SIZES:
        # In a process of its own: 10 M rows of 64, five times over, are gone before the next.
        cases[f"{rows} x {dim}"], _ = measure.in_a_process(lambda rows=rows, dim=dim: timed(rows, dim, rounds))
        sides = cases[f"{rows} x {dim}"]["sides"]
        print(rows, dim, {name: f"{side['median_ms']:.1f} ms, {side['of_tbe']:.2f}" for name, side in sides.items()})
    setting = {"tables": TABLES, "examples": EXAMPLES, "threads": 1, "rounds": rounds}
    measure.write("embedding_speed", {"setting": setting, "cases": cases, **measure.machine()})


if __name__ == "__main__":
    main()
