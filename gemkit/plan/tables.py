"""Embedding tables over ranks: what a planner is told, what it answers, and the even split if there is no planner."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from gemkit.plan.assumptions import BYTES
from gemkit.plan.gpus import Gpu

EVEN = "even split of the rows"


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableLoad:
    """A table and how often it is read.

    Attributes:
        lookups: For each example, repetitions counted.
    """

    name: str
    num_embeddings: int
    dim: int
    lookups: float

    @property
    def params(self) -> int:
        return self.num_embeddings * self.dim


@dataclasses.dataclass(frozen=True, kw_only=True)
class Cluster:
    """The ranks over which one copy of the tables is sharded.

    Attributes:
        num_ranks: Ranks; the GPUs of a node follow one another.
        gpu: What each is; `per_node` of them are connected directly.
        table_bytes: Memory of each that the tables may take.
        local_batch: Examples of each rank.
        table_dtype: Numbers of the tables.
    """

    num_ranks: int
    gpu: Gpu
    table_bytes: int
    local_batch: int
    table_dtype: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Placement:
    """Which rank holds how much.

    Attributes:
        planner: Who decided.
        kinds: Sharding type -> number of tables.
        params: Parameters that each rank holds.
        rows: Rows of tables that each rank holds; a row in two column shards is two.
        served: Numbers of embedding vectors that each rank looks up for one example of the group.
        refused: Why the planner has no plan; then this is what the even split would be.
    """

    planner: str
    kinds: dict[str, int]
    params: tuple[int, ...]
    rows: tuple[int, ...]
    served: tuple[float, ...]
    refused: str | None = None

    def bytes_of(self, dtype: str) -> tuple[int, ...]:
        """Of each rank: its weights, and four bytes a row for row-wise AdaGrad."""
        return tuple(BYTES[dtype] * p + 4 * r for p, r in zip(self.params, self.rows, strict=True))

    @property
    def imbalance(self) -> float:
        """Numbers that the busiest rank serves, over their mean."""
        return max(self.served) * len(self.served) / sum(self.served) if sum(self.served) else 1.0


TablePlanner = Callable[[Sequence[TableLoad], Cluster], Placement]
"""Chooses a placement; what the hook `gemkit_table_planner` returns."""


def even_rows(tables: Sequence[TableLoad], cluster: Cluster, refused: str | None = None) -> Placement:
    """Every table in blocks of `ceil(rows / ranks)` rows, one for each rank; ids are taken to be spread evenly."""
    params, rows, served = ([0] * cluster.num_ranks, [0] * cluster.num_ranks, [0.0] * cluster.num_ranks)
    for table in tables:
        block = -(-table.num_embeddings // cluster.num_ranks)
        for rank in range(cluster.num_ranks):
            held = min(block, max(0, table.num_embeddings - rank * block))
            rows[rank] += held
            params[rank] += held * table.dim
            served[rank] += table.lookups * table.dim * held / table.num_embeddings
    kinds = {"row_wise": len(tables)} if tables else {}
    return Placement(
        planner=EVEN, kinds=kinds, params=tuple(params), rows=tuple(rows), served=tuple(served), refused=refused
    )
