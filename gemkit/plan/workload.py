"""What each example costs wherever it is computed: what a plan needs of a run, taken from the cost meter."""

from __future__ import annotations

import dataclasses
from collections import defaultdict

from gemkit.config.run import RunConfig
from gemkit.cost.count import RunCost
from gemkit.plan.tables import TableLoad

ROOT = "rest"
"""The unit of what is in no block."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Workload:
    """A model and one example's share of a step.

    Attributes:
        precision: Of the dense part: fp32 or bf16.
        flops: Forward and backward, of one example.
        recomputed_flops: What activation checkpointing computes again; 0 without it.
        activation_bytes: What autograd keeps, of one example.
        cast_bytes: What autograd keeps whatever the batch: the copies of weights that autocast makes.
        units: Parameters of each FSDP unit: every block, and the rest.
        tables: With the lookups of one example.
    """

    precision: str
    flops: float
    recomputed_flops: float
    activation_bytes: float
    cast_bytes: float
    units: dict[str, int]
    tables: tuple[TableLoad, ...]

    @property
    def dense_params(self) -> int:
        return sum(self.units.values())

    @property
    def table_params(self) -> int:
        return sum(table.params for table in self.tables)

    @property
    def vector_numbers(self) -> float:
        """Numbers of the embedding vectors that one example reads."""
        return sum(table.lookups * table.dim for table in self.tables)

    @property
    def lookups(self) -> float:
        """Ids of one example."""
        return sum(table.lookups for table in self.tables)


def workload(run: RunConfig, cost: RunCost, single: RunCost) -> Workload:
    """
    Args:
        cost: Of a batch.
        single: Of a batch of one example: the difference tells what grows with the batch from what does not.
    """
    units: defaultdict[str, int] = defaultdict(int)
    grows: defaultdict[str, float] = defaultdict(float)
    stays: defaultdict[str, float] = defaultdict(float)
    forward, others = 0, cost.num_examples - single.num_examples
    for path, part in cost.modules.items():
        words = path.split(".")
        unit = ".".join(words[:2]) if words[0] == "blocks" and len(words) > 1 else ROOT
        units[unit] += part.params
        alone = single.modules[path].activation_bytes
        each = max(0.0, (part.activation_bytes - alone) / others)
        grows[unit] += each
        stays[unit] += max(0.0, alone - each)
        forward += part.forward_flops if unit != ROOT else 0
    saved, casts, recomputed = sum(grows.values()), sum(stays.values()), 0.0
    if run.train.checkpoint_activations:
        saved = _one_block(grows) + _inputs(run, cost) / cost.num_examples
        casts, recomputed = _one_block(stays), forward / cost.num_examples
    return Workload(
        precision=run.train.precision,
        flops=cost.flops_per_example,
        recomputed_flops=recomputed,
        activation_bytes=saved,
        cast_bytes=casts,
        units={unit: number for unit, number in units.items() if number},
        tables=tuple(
            TableLoad(name=name, num_embeddings=t.num_embeddings, dim=t.dim, lookups=t.lookups / cost.num_examples)
            for name, t in cost.tables.items()
        ),
    )


def _one_block(kept: dict[str, float]) -> float:
    """Of everything outside of the blocks, and of the block that keeps most."""
    return kept.get(ROOT, 0.0) + max((number for unit, number in kept.items() if unit != ROOT), default=0.0)


def _inputs(run: RunConfig, cost: RunCost) -> int:
    """Bytes of the tokens and events that enter the blocks, in fp32: all that checkpointing keeps of a block."""
    tokens = [cost.num_tokens, *(block.num_tokens for block in run.blocks[:-1])]
    return 4 * run.size.dim * sum(cost.num_examples * number + cost.num_events for number in tokens)
