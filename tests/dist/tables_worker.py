"""One of four processes: sharded tables against the same algorithm in one process.

python -m torch.distributed.run --nproc-per-node 4 tables_worker.py
python -m torch.distributed.run --nproc-per-node 4 --no-python python -O tables_worker.py collection
python -m torch.distributed.run --nproc-per-node 1 tables_worker.py "too large"

Prints a line of JSON for each case: the largest difference of looked up rows, weights and sums of squares. With
`collection`, groups are TorchRec's `DMPCollection`, as on GPUs: it asserts that there is one (without -O), and gives
each shard the number of its device, which CPUs have not.
"""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from gemkit_hsdp import groups
from gemkit_hsdp import sharded as sharded_module
from gemkit_hsdp.memory import MemoryConfig
from gemkit_hsdp.planning import TablesConfig
from gemkit_hsdp.replicated import ReplicatedTables
from gemkit_hsdp.sharded import ShardedTables
from gemkit_hsdp.tables import TorchTables
from torch import Tensor
from torchrec.distributed import model_parallel

from gemkit.config.run import OptimizerConfig
from gemkit.errors import GemkitError
from gemkit.interfaces import EmbeddingTables

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


def difference(tables: EmbeddingTables, weights: dict[str, Tensor], squares: dict[str, Tensor]) -> float:
    """The largest of what this process holds."""
    worst = 0.0
    for held, expected in ((tables.weight_pieces(), weights), (tables.state_pieces(), squares)):
        if not held.keys() == expected.keys() == ROWS.keys():
            raise KeyError(held.keys() ^ expected.keys())
        for name, pieces in held.items():
            if pieces.shape != tuple(expected[name].shape):
                raise ValueError(f"{name}: {pieces.shape}, {tuple(expected[name].shape)}")
            for start, values in pieces.pieces:
                block = expected[name][tuple(slice(a, a + n) for a, n in zip(start, values.shape, strict=True))]
                worst = max(worst, float((values - block).abs().max()))
    return worst


def sharded(sharding: str, below: int, rows: dict[str, int] = ROWS, **options: Any) -> ShardedTables:
    """Sharded tables over all processes, or in groups."""
    schema: Any = Tables(tuple(Table(*item) for item in rows.items()))
    optimizer = OptimizerConfig(embedding_lr=LR, embedding_eps=EPS)
    config = TablesConfig(sharding=sharding, replicate_below=below, **options)
    return ShardedTables(schema, DIM, optimizer, SEED, torch.device("cpu"), config)


def against_replicated(sharding: str, below: int, **options: Any) -> float:
    """All steps beside tables that every process holds, whose rate changes from step to step."""
    schema: Any = Tables()
    rank, worst, tables = dist.get_rank(), 0.0, sharded(sharding, below, **options)
    whole = ReplicatedTables(schema, DIM, LR, EPS, SEED, MemoryConfig(**_memory(options)).rows_dtype)
    batches = [batch_of(rank, step) for step in range(STEPS)]
    for step, (ids, gradients) in enumerate(batches):
        for each in (tables, whole):
            each.set_lr(LR * (step + 1))
        if tables.prefetches and step + 1 < STEPS:
            tables.prefetch(batches[step + 1][0])
        found, expected = train(tables, ids, gradients), train(whole, ids, gradients)
        worst = max([worst, *(float((found[f] - expected[f]).abs().max()) for f in ids if len(ids[f]))])
    return max(worst, difference(tables, whole.tables(), whole.optimizer_state()))


def unreached() -> float:
    """A process whose loss does not depend on tables of which the others wait for its part."""
    schema: Any = Tables()
    tables, whole = sharded("auto", 10), ReplicatedTables(schema, DIM, LR, EPS, SEED)
    ids, gradients = batch_of(dist.get_rank(), 0)
    found = tables(ids)
    reads = ("w",) if dist.get_rank() == 3 else FEATURES
    sum((found[f] * gradients[f]).sum() for f in reads).backward()
    train(whole, ids, {f: g if f in reads else torch.zeros_like(g) for f, g in gradients.items()})
    return difference(tables, whole.tables(), whole.optimizer_state())


def in_pieces() -> float:
    """Ids of each table in several pieces, as on GPUs."""
    before = sharded_module.pieces_on
    try:
        sharded_module.pieces_on = lambda device: 5
        return max(against_replicated("row_wise", 0), against_replicated("table_wise", 0))
    finally:
        sharded_module.pieces_on = before


def _memory(options: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in options.items() if name.startswith("embedding_")}


def two_dimensional(sharding: str, neighbours: str, **memory: Any) -> float:
    """Groups that hold all tables once each, beside a simulation of every group in this process."""
    schema: Any = Tables()
    rank, count, size = dist.get_rank(), 2, 2
    tables = sharded(sharding, 0, sparse_groups=count, sparse_neighbours=neighbours, **memory)
    if isinstance(tables.large, model_parallel.DMPCollection) == bool(groups.REFUSED):
        raise TypeError(type(tables.large))
    dtype = MemoryConfig(**memory).rows_dtype
    copies = [TorchTables(schema, DIM, LR, EPS, SEED, dtype) for _ in range(count)]
    group_of = [r // size if neighbours == "group" else r % count for r in range(4)]
    for step in range(STEPS):
        train(tables, *batch_of(rank, step))
        tables.have_moved()
        for group, copy in enumerate(copies):
            read = [batch_of(r, step) for r in range(4) if group_of[r] == group]
            ids = {f: torch.cat([own[f] for own, _ in read]) for f in FEATURES}
            train(copy, ids, {f: torch.cat([g[f] for _, g in read]) for f in FEATURES}, share=1 / size)
        if (step + 1) % EVERY == 0:
            tables.average()
            for name in ROWS:
                for state in ([c.tables() for c in copies], [c.optimizer_state() for c in copies]):
                    mean = torch.stack([s[name].float() for s in state]).mean(0)
                    for s in state:
                        s[name].copy_(mean)
    own = copies[group_of[rank]]
    return difference(tables, own.tables(), own.optimizer_state())


def rounded_by_chance() -> float:
    """Copies in every process, whose rows are rounded by chance: how far they are from the first one's."""
    schema: Any = Tables()
    torch.manual_seed(dist.get_rank())  # streams differ, as those of a run do
    tables = ReplicatedTables(schema, DIM, LR, EPS, SEED, torch.float16, stochastic=True)
    nearest = ReplicatedTables(schema, DIM, LR, EPS, SEED, torch.float16)
    for step in range(STEPS):
        for each in (tables, nearest):
            train(each, *batch_of(dist.get_rank(), step))
    if torch.equal(tables.weights, nearest.weights):
        raise ValueError("nothing was rounded by chance")
    first = tables.weights.clone()
    dist.broadcast(first, 0)
    return float((tables.weights - first).abs().max())


HALF: dict[str, Any] = {"embedding_precision": "fp16"}
CASES: dict[str, Callable[[], float]] = {
    "row_wise": lambda: against_replicated("row_wise", 0),
    "table_wise": lambda: against_replicated("table_wise", 0),
    "auto, tiny replicated": lambda: against_replicated("auto", 10),
    "prefetched": lambda: against_replicated("row_wise", 0, prefetch_ids=True),
    "fp16": lambda: against_replicated("auto", 10, **HALF),
    "fp16 by chance": rounded_by_chance,
    "unreached": unreached,
    "in pieces": in_pieces,
    "sent in half": lambda: against_replicated("auto", 10, exchange_precision="half"),
}
GROUPED: dict[str, Callable[[], float]] = {
    "two-dimensional": lambda: two_dimensional("row_wise", "group"),
    "two-dimensional, whole tables, replicas side by side": lambda: two_dimensional("table_wise", "replicas"),
    "two-dimensional, fp16": lambda: two_dimensional("row_wise", "replicas", **HALF),
}


def main() -> None:
    """All cases."""
    torch.set_num_threads(1)
    dist.init_process_group("gloo")
    if sys.argv[1:] == ["too large"]:
        try:
            sharded("auto", 0, rows={"a": 10**12})
        except GemkitError as error:
            print(json.dumps({"what": error.what, "where": error.where, "fix": error.fix}), flush=True)
        return
    collection = sys.argv[1:] == ["collection"]
    if collection:
        groups.REFUSED = ()
        placed = model_parallel._remote_device
        model_parallel._remote_device = lambda place: placed(place.partition("/")[0] + "/cpu")
    for name, case in (GROUPED if collection else CASES | GROUPED).items():
        worst = torch.tensor(case())
        dist.all_reduce(worst, dist.ReduceOp.MAX)
        if dist.get_rank() == 0:
            print(json.dumps({"case": name, "difference": float(worst)}), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main()
