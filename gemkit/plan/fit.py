"""The first thing that does not fit, by how much, and what would change that."""

from __future__ import annotations

import dataclasses

from gemkit.plan.memory import Memory
from gemkit.plan.step import Mesh


@dataclasses.dataclass(frozen=True, kw_only=True)
class Misfit:
    """
    Attributes:
        what: Part of `Memory`, or the planner's own words.
        missing_bytes: Of each rank; 0 if only the planner refuses.
        fix: What to change.
    """

    what: str
    missing_bytes: float
    fix: str


def first_misfit(
    memory: Memory, usable: float, mesh: Mesh, local_batch: int, checkpointed: bool, refused: str | None
) -> Misfit | None:
    """Fills the memory part by part, in the order in which a run would: the first that is too much is named.

    Args:
        usable: Bytes of a GPU without the reserve.
        refused: Why the tables' planner has no plan.
    """
    states = memory.parameters + memory.gradients + memory.optimizer
    if states > usable:
        return Misfit(
            what="parameters, gradients and optimiser of the dense part",
            missing_bytes=states - usable,
            fix=f"shard them over more GPUs: --dp-shard {_doubled(mesh.dp_shard, states, usable)}",
        )
    if states + memory.gathered > usable:
        return Misfit(
            what="whole blocks, gathered for computing",
            missing_bytes=states + memory.gathered - usable,
            fix="gather fewer ahead (--units-ahead 0), in --gather-dtype bf16, or over more GPUs (--dp-shard)",
        )
    if states + memory.gathered + memory.casts > usable:
        return Misfit(
            what="copies of the weights in bf16",
            missing_bytes=states + memory.gathered + memory.casts - usable,
            fix="--gather-dtype bf16 (FSDP's own mixed precision), or train.checkpoint_activations=true",
        )
    if memory.total - memory.activations - memory.vectors > usable:
        left = usable - states - memory.gathered - memory.casts
        needed = "more" if left <= 0 else f"at least {_doubled(mesh.table_group, memory.tables, left)}"
        return Misfit(
            what="embedding tables",
            missing_bytes=memory.tables - left,
            fix=f"shard them over more GPUs: --table-group, {needed}; or --table-dtype fp16",
        )
    if memory.total > usable:
        left = usable - (memory.total - memory.activations - memory.vectors)
        share = left / (memory.activations + memory.vectors)
        smaller = f"--local-batch {int(local_batch * share)}" if int(local_batch * share) else "more GPUs"
        return Misfit(
            what="activations and embedding vectors",
            missing_bytes=memory.total - usable,
            fix=smaller if checkpointed else f"train.checkpoint_activations=true, or {smaller}",
        )
    if refused:
        return Misfit(what=refused, missing_bytes=0.0, fix="a larger --table-group, or --table-dtype fp16")
    return None


def _doubled(ranks: int, needed: float, usable: float) -> int:
    """Ranks, doubled until what each of them holds fits."""
    while needed > usable:
        ranks, needed = 2 * ranks, needed / 2
    return ranks
