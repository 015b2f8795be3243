"""Bytes on the network and seconds of one step."""

from __future__ import annotations

import dataclasses

from gemkit.plan.assumptions import BYTES, Assumptions
from gemkit.plan.communication import (
    Group,
    consecutive,
    exchange_s,
    exchanged_bytes,
    gather_s,
    gathered_bytes,
    reduce_s,
    reduced_bytes,
    strided,
)
from gemkit.plan.gpus import Gpu
from gemkit.plan.tables import Placement
from gemkit.plan.workload import Workload

ADAMW_BYTES = 28
"""AdamW reads weight, gradient and two moments of each parameter and writes three of them, in fp32."""

IDS_MESSAGES = 3
"""Collectives in which ids are sent: how many there are for each rank, how many of each lookup, and they themselves."""

AGREEMENTS = 2
"""Collectives of a flag in each step: whether every loss is finite, and whether anybody was asked to stop."""

TABLE_PASSES = 5
"""Times that a served vector crosses the memory: read and handed out; its gradient read, the row read and written."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Traffic:
    """What a rank sends (or receives, which is as much) in one step: bytes and seconds.

    Attributes:
        all_gather, reduce_scatter: Of the dense part over `dp_shard`: twice the parameters, once the gradients.
        all_reduce: Of gradient shards over `dp_replicate`.
        table_sync: Averages of tables and their AdaGrad over the groups, spread over `sync_every` steps.
        ids, vectors, vector_gradients: Embedding all-to-all of the busiest rank.
    """

    all_gather: float
    reduce_scatter: float
    all_reduce: float
    table_sync: float
    ids: float
    vectors: float
    vector_gradients: float

    @property
    def dense(self) -> float:
        return self.all_gather + self.reduce_scatter + self.all_reduce

    @property
    def embedding(self) -> float:
        return self.ids + self.vectors + self.vector_gradients


@dataclasses.dataclass(frozen=True, kw_only=True)
class Step:
    """Seconds of one step of the slowest rank.

    Attributes:
        products: Forward, backward, and what is computed again.
        optimizer: AdamW on the shard.
        lookups: Table reads and updates of the busiest rank.
        fixed: What is assumed to take as long for any number of examples.
        hidden: Communication that runs beside computing.
        serial: Communication that nothing runs beside.
        total: `max(compute, hidden) + serial`.
        mfu: FLOPs of forward and backward over peak and `total`.
        scaling: compute / total: what communication leaves.
    """

    products: float
    optimizer: float
    lookups: float
    fixed: float
    hidden: float
    serial: float
    mfu: float

    @property
    def compute(self) -> float:
        return self.products + self.optimizer + self.lookups + self.fixed

    @property
    def total(self) -> float:
        return max(self.compute, self.hidden) + self.serial

    @property
    def exposed(self) -> float:
        """Communication that lengthens the step."""
        return self.total - self.compute

    @property
    def scaling(self) -> float:
        return self.compute / self.total


@dataclasses.dataclass(frozen=True, kw_only=True)
class Mesh:
    """How ranks divide: `dp_replicate` x `dp_shard` for the dense part, `table_groups` x `table_group` for tables."""

    world_size: int
    dp_shard: int
    table_group: int

    @property
    def dp_replicate(self) -> int:
        return self.world_size // self.dp_shard

    @property
    def table_groups(self) -> int:
        return self.world_size // self.table_group


def table_axes(mesh: Mesh, gpu: Gpu, assumptions: Assumptions) -> tuple[Group, Group]:
    """The ranks that hold the tables once, and those that hold the same rows."""
    if assumptions.table_neighbours == "replicas":
        return strided(mesh.table_group, mesh.table_groups, gpu), consecutive(mesh.table_groups, gpu)
    return consecutive(mesh.table_group, gpu), strided(mesh.table_groups, mesh.table_group, gpu)


def traffic(
    work: Workload, placement: Placement, mesh: Mesh, gpu: Gpu, assumptions: Assumptions, local_batch: int
) -> tuple[Traffic, Traffic]:
    """Bytes, and seconds."""
    shard, replicas = consecutive(mesh.dp_shard, gpu), strided(mesh.dp_replicate, mesh.dp_shard, gpu)
    group, groups = table_axes(mesh, gpu, assumptions)
    parameters = 2 * assumptions.gather_bytes * work.dense_params
    gradients = BYTES[assumptions.gradient_dtype] * work.dense_params
    gradient_shard = gradients / mesh.dp_shard
    held = max(placement.bytes_of(assumptions.table_dtype), default=0) / assumptions.steps_between_syncs
    busiest = placement.imbalance * local_batch
    ids = 8 * work.lookups * busiest
    vectors = BYTES[assumptions.exchange_dtype] * work.vector_numbers * busiest
    units = len(work.units)

    def wait(collectives: float, among: Group) -> float:
        return _latency_s(collectives, among.size, assumptions)

    return (
        Traffic(
            all_gather=gathered_bytes(parameters, shard),
            reduce_scatter=gathered_bytes(gradients, shard),
            all_reduce=reduced_bytes(gradient_shard, replicas),
            table_sync=reduced_bytes(held, groups),
            ids=exchanged_bytes(ids, group),
            vectors=exchanged_bytes(vectors, group),
            vector_gradients=exchanged_bytes(vectors, group),
        ),
        Traffic(
            all_gather=gather_s(parameters, shard, gpu) + wait(2 * units, shard),
            reduce_scatter=gather_s(gradients, shard, gpu) + wait(units, shard),
            all_reduce=reduce_s(gradient_shard, replicas, gpu) + wait(units, replicas),
            table_sync=reduce_s(held, groups, gpu) + wait(2 / assumptions.steps_between_syncs, groups),
            ids=exchange_s(ids, group, gpu) + wait(IDS_MESSAGES, group),
            vectors=exchange_s(vectors, group, gpu) + wait(1, group),
            vector_gradients=exchange_s(vectors, group, gpu) + wait(1, group),
        ),
    )


def step(
    work: Workload, placement: Placement, seconds: Traffic, mesh: Mesh, gpu: Gpu, assumptions: Assumptions, batch: int
) -> Step:
    """
    Args:
        seconds: Of `traffic`.
        batch: Examples of each rank.
    """
    peak = gpu.flop_per_s[work.precision]
    products = (work.flops + work.recomputed_flops) * batch / (peak * assumptions.local_mfu)
    optimizer = ADAMW_BYTES * work.dense_params / mesh.dp_shard / gpu.memory_bytes_per_s
    served = BYTES[assumptions.table_dtype] * work.vector_numbers * batch * placement.imbalance
    lookups = TABLE_PASSES * served / gpu.memory_bytes_per_s
    collectives = seconds.dense + seconds.table_sync
    hidden, serial = assumptions.overlap * collectives, (1 - assumptions.overlap) * collectives
    vectors = seconds.vectors + seconds.vector_gradients
    agreed = _latency_s(AGREEMENTS, mesh.world_size, assumptions)
    ahead = {"none": 0.0, "vectors": seconds.embedding}.get(assumptions.sparse_prefetch, seconds.ids)
    made = Step(
        products=products,
        optimizer=optimizer,
        lookups=lookups,
        fixed=1e-3 * assumptions.fixed_ms,
        hidden=hidden + ahead,
        serial=serial + seconds.ids + vectors - ahead + agreed,
        mfu=0.0,
    )
    return dataclasses.replace(made, mfu=work.flops * batch / (peak * made.total))


def _latency_s(collectives: float, ranks: int, assumptions: Assumptions) -> float:
    """Of so many collectives; a rank alone waits for nobody."""
    return collectives * 1e-6 * assumptions.latency_us if ranks > 1 else 0.0
