"""One world size: mesh, placement of the tables, memory, traffic, step, and what does not fit."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gemkit.errors import GemkitError
from gemkit.plan.assumptions import LARGEST_GROUP, Assumptions
from gemkit.plan.fit import Misfit, first_misfit
from gemkit.plan.gpus import Gpu
from gemkit.plan.memory import Memory, memory
from gemkit.plan.step import Mesh, Step, Traffic, step, table_axes, traffic
from gemkit.plan.tables import Cluster, Placement, TableLoad, TablePlanner
from gemkit.plan.workload import Workload


@dataclasses.dataclass(frozen=True, kw_only=True)
class Plan:
    """What is to be expected of a run on `mesh.world_size` GPUs.

    Attributes:
        usable_bytes: Of a GPU's memory, without the reserve.
        sent: Bytes of each rank and step.
        seconds: The same collectives, each alone.
        misfit: None if everything fits.
    """

    mesh: Mesh
    local_batch: int
    placement: Placement
    memory: Memory
    usable_bytes: float
    sent: Traffic
    seconds: Traffic
    step: Step
    misfit: Misfit | None

    @property
    def examples_per_s(self) -> float:
        return self.local_batch * self.mesh.world_size / self.step.total


def mesh_of(world_size: int, gpu: Gpu, assumptions: Assumptions) -> Mesh:
    """
    Raises:
        GemkitError: The ranks cannot be divided as is assumed.
    """
    dp_shard = assumptions.dp_shard or min(gpu.per_node, world_size)
    groups = assumptions.table_groups
    if groups is not None and world_size % groups:
        raise GemkitError(
            f"{world_size} GPUs cannot be divided into {groups} groups",
            where="--table-groups (parallel.sparse_groups)",
            allowed="a divisor of --world-size",
        )
    table_group = assumptions.table_group or (world_size // groups if groups else min(LARGEST_GROUP, world_size))
    for flag, size in (("--dp-shard", dp_shard), ("--table-group", table_group)):
        whole_nodes = size % gpu.per_node == 0 or gpu.per_node % size == 0 or size == world_size
        if world_size % size or not whole_nodes:
            raise GemkitError(
                f"{world_size} GPUs in nodes of {gpu.per_node} cannot be divided into groups of {size}",
                where=flag,
                allowed="a divisor of --world-size that is a divisor or a multiple of the node",
            )
    return Mesh(world_size=world_size, dp_shard=dp_shard, table_group=table_group)


def make_plan(
    work: Workload,
    gpu: Gpu,
    world_size: int,
    assumptions: Assumptions,
    planner: TablePlanner,
    *,
    local_batch: int,
    checkpointed: bool = False,
) -> Plan:
    """
    Args:
        gpu: With the assumptions applied (`Assumptions.on`).
        checkpointed: Whether `train.checkpoint_activations` is on already.

    Raises:
        GemkitError: The ranks cannot be divided as is assumed.
    """
    mesh = mesh_of(world_size, gpu, assumptions)
    usable = gpu.memory_bytes * (1 - assumptions.reserve)
    # What the tables may take is what the dense part leaves; vectors are in the planner's own estimate.
    nothing = Placement(planner="", kinds={}, params=(0,), rows=(0,), served=(0.0,))
    others = memory(work, nothing, assumptions, local_batch=local_batch, dp_shard=mesh.dp_shard)
    group, _ = table_axes(mesh, gpu, assumptions)
    cluster = Cluster(
        num_ranks=mesh.table_group,
        gpu=dataclasses.replace(gpu, per_node=group.per_node),
        table_bytes=int(usable - others.dense + others.vectors),
        local_batch=local_batch,
        table_dtype=assumptions.table_dtype,
    )
    placement = planner(work.tables, cluster)
    held = memory(work, placement, assumptions, local_batch=local_batch, dp_shard=mesh.dp_shard)
    sent, seconds = traffic(work, placement, mesh, gpu, assumptions, local_batch)
    return Plan(
        mesh=mesh,
        local_batch=local_batch,
        placement=placement,
        memory=held,
        usable_bytes=usable,
        sent=sent,
        seconds=seconds,
        step=step(work, placement, seconds, mesh, gpu, assumptions, local_batch),
        misfit=first_misfit(held, usable, mesh, local_batch, checkpointed, placement.refused),
    )


def remembering(planner: TablePlanner) -> TablePlanner:
    """The planner, asked once for the same tables and cluster: world sizes differ in the number of groups only."""
    known: dict[object, Placement] = {}

    def ask(tables: Sequence[TableLoad], cluster: Cluster) -> Placement:
        facts = (cluster.num_ranks, cluster.table_bytes, cluster.local_batch, cluster.table_dtype)
        key = tuple(tables), facts, (cluster.gpu.name, cluster.gpu.per_node)
        if key not in known:
            known[key] = planner(tables, cluster)
        return known[key]

    return ask
