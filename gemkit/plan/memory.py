"""Bytes of one rank, part by part."""

from __future__ import annotations

import dataclasses

from gemkit.plan.assumptions import BYTES, Assumptions
from gemkit.plan.tables import Placement
from gemkit.plan.workload import Workload


@dataclasses.dataclass(frozen=True, kw_only=True)
class Memory:
    """What the fullest rank holds, in bytes.

    Attributes:
        parameters: fp32 shard of the dense parameters.
        gradients: Its gradients.
        optimizer: AdamW's two moments.
        gathered: Whole units, and their gradients before they are reduced.
        casts: Copies of weights that autocast makes and autograd keeps, if parameters are gathered in fp32.
        activations: What autograd keeps of the local batch.
        vectors: Embedding vectors of the local batch, where they are served and where they are used.
        tables: Weights and row-wise AdaGrad.
    """

    parameters: float
    gradients: float
    optimizer: float
    gathered: float
    casts: float
    activations: float
    vectors: float
    tables: float

    @property
    def dense(self) -> float:
        """Everything but the tables."""
        return self.total - self.tables

    @property
    def total(self) -> float:
        return float(sum(getattr(self, field.name) for field in dataclasses.fields(self)))


def memory(
    work: Workload, placement: Placement, assumptions: Assumptions, *, local_batch: int, dp_shard: int
) -> Memory:
    """Of the fullest rank. Shards are `ceil(parameters / dp_shard)`, unit by unit."""
    shard = 4 * sum(-(-number // dp_shard) for number in work.units.values())
    largest = sorted(work.units.values(), reverse=True)[: 1 + assumptions.units_ahead]
    whole = 0.0
    if dp_shard > 1:
        whole = 2 * assumptions.gather_bytes * sum(largest)
    numbers = work.vector_numbers * local_batch
    return Memory(
        parameters=shard,
        gradients=shard,
        optimizer=2 * shard,
        gathered=whole,
        casts=work.cast_bytes if assumptions.gather_bytes == BYTES["fp32"] else 0.0,
        activations=work.activation_bytes * local_batch,
        vectors=numbers * (4 + BYTES[assumptions.exchange_dtype] * placement.imbalance),
        tables=max(placement.bytes_of(assumptions.table_dtype), default=0),
    )
