"""One of four processes: sharded tables against the same algorithm in one process.

Prints a line of JSON for each case: the largest difference of looked up rows, weights and sums of squares.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import torch
import torch.distributed as dist
from gemkit_hsdp.replicated import ReplicatedTables
from gemkit_hsdp.sharded import ShardedTables
from gemkit_hsdp.tables import TorchTables
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh

DIM, LR, EPS, SEED, STEPS, EVERY = 8, 0.05, 1e-8, 3, 6, 2
ROWS = {"a": 30, "b": 21, "tiny": 4}
FEATURES = {"x": "a", "y": "a", "z": "b", "w": "tiny"}


@dataclasses.dataclass(frozen=True)
class Table:
    """What tables want to know of a schema's."""

    name: str
    num_embeddings: int


@dataclasses.dataclass(frozen=True)
class Tables:
    """What tables want to know of a schema."""

    tables: tuple[Table, ...] = tuple(Table(*item) for item in ROWS.items())
    feature_tables: Any = dataclasses.field(default_factory=lambda: FEATURES)


def batch_of(rank: int, step: int) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Ids and gradients of one process; the last one reads nothing at step 3."""
    generator = torch.Generator().manual_seed(100 * step + rank)
    counts = {"x": 5 + rank, "y": 2, "z": 3 * rank + 1, "w": 6}
    if (rank, step) == (3, 3):
        counts = dict.fromkeys(counts, 0)
    ids = {f: torch.randint(0, ROWS[FEATURES[f]], (n,), generator=generator) for f, n in counts.items()}
    return ids, {f: torch.randn(n, DIM, generator=generator) for f, n in counts.items()}


def train(tables: Any, ids: dict[str, Tensor], gradients: dict[str, Tensor], share: float = 1.0) -> dict[str, Tensor]:
    """One step; returns what was looked up."""
    found: dict[str, Tensor] = tables(ids)
    (share * sum((found[f] * gradients[f]).sum() for f in ids)).backward()
    return {f: rows.detach() for f, rows in found.items()}


def difference(tables: ShardedTables, weights: dict[str, Tensor], squares: dict[str, Tensor]) -> float:
    """The largest of what this process holds."""
    worst = 0.0
    for held, expected in ((tables.weight_pieces(), weights), (tables.state_pieces(), squares)):
        assert held.keys() == expected.keys() == ROWS.keys()
        for name, pieces in held.items():
            assert pieces.shape == tuple(expected[name].shape)
            for start, values in pieces.pieces:
                block = expected[name][tuple(slice(a, a + n) for a, n in zip(start, values.shape, strict=True))]
                worst = max(worst, float((values - block).abs().max()))
    return worst


def sharded(sharding: str, below: int, prefetches: bool = False, groups: int = 1) -> ShardedTables:
    """Sharded tables over all processes, or in groups."""
    group, replicas = dist.group.WORLD, None
    if groups > 1:
        mesh = init_device_mesh("cpu", (groups, 4 // groups), mesh_dim_names=("replicas", "group"))
        group, replicas = mesh.get_group("group"), mesh.get_group("replicas")
    schema: Any = Tables()
    device = torch.device("cpu")
    return ShardedTables(schema, DIM, LR, EPS, SEED, device, {}, sharding, below, prefetches, group, replicas)


def against_replicated(sharding: str, below: int, prefetches: bool) -> float:
    """All steps beside tables that every process holds, whose rate changes from step to step."""
    schema: Any = Tables()
    rank, worst = dist.get_rank(), 0.0
    tables, whole = sharded(sharding, below, prefetches), ReplicatedTables(schema, DIM, LR, EPS, SEED)
    batches = [batch_of(rank, step) for step in range(STEPS)]
    for step, (ids, gradients) in enumerate(batches):
        for each in (tables, whole):
            each.set_lr(LR * (step + 1))
        if prefetches and step + 1 < STEPS:
            tables.prefetch(batches[step + 1][0])
        found, expected = train(tables, ids, gradients), train(whole, ids, gradients)
        worst = max([worst, *(float((found[f] - expected[f]).abs().max()) for f in ids if len(ids[f]))])
    return max(worst, difference(tables, whole.tables(), whole.optimizer_state()))


def two_dimensional(groups: int = 2) -> float:
    """Groups that hold all tables once each, beside a simulation of every group in this process."""
    schema: Any = Tables()
    rank, size = dist.get_rank(), 4 // groups
    tables = sharded("row_wise", 0, groups=groups)
    copies = [TorchTables(schema, DIM, LR, EPS, SEED) for _ in range(groups)]
    for step in range(STEPS):
        train(tables, *batch_of(rank, step))
        for group, copy in enumerate(copies):
            read = [batch_of(group * size + r, step) for r in range(size)]
            ids = {f: torch.cat([own[f] for own, _ in read]) for f in FEATURES}
            train(copy, ids, {f: torch.cat([g[f] for _, g in read]) for f in FEATURES}, share=1 / size)
        if (step + 1) % EVERY == 0:
            tables.average_replicas()
            for name in ROWS:
                for state in ([c.tables() for c in copies], [c.optimizer_state() for c in copies]):
                    mean = torch.stack([s[name] for s in state]).mean(0)
                    for s in state:
                        s[name].copy_(mean)
    own = copies[rank // size]
    return difference(tables, own.tables(), own.optimizer_state())


def main() -> None:
    """All cases."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    cases = {
        "row_wise": lambda: against_replicated("row_wise", 0, False),
        "table_wise": lambda: against_replicated("table_wise", 0, False),
        "auto, tiny replicated": lambda: against_replicated("table_wise", 10, False),
        "prefetched": lambda: against_replicated("row_wise", 0, True),
        "two-dimensional": two_dimensional,
    }
    for name, case in cases.items():
        worst = torch.tensor(case())
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        if dist.get_rank() == 0:
            print(json.dumps({"case": name, "difference": float(worst)}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
