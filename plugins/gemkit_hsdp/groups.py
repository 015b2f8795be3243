"""Groups of processes that hold all tables once each: two-dimensional sparse parallelism."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh

from gemkit_hsdp.shards import local_shards

REFUSED: tuple[str, ...] = ("cpu",)
"""Devices that `DMPCollection` does not take."""


@dataclasses.dataclass(frozen=True)
class Spread:
    """Tables over processes.

    Attributes:
        tables: A `DistributedModelParallel`.
        mesh: `replicate` x `shard`, if there are several groups that each hold all tables.
        average: The mean of weights and optimiser state over these.
    """

    tables: Any
    mesh: DeviceMesh | None = None
    average: Callable[[], None] = lambda: None


def over_groups(
    tables: nn.Module, plan: Any, sharders: Sequence[Any], device: torch.device, groups: int, side_by_side: bool
) -> Spread:
    """The tables in each of several groups.

    On GPUs TorchRec's `DMPCollection`, which refuses CPUs and gives each shard the number of its device, which those
    have not. There, each group is a `DistributedModelParallel`, with the same plan, mesh and averages.

    Args:
        plan: TorchRec's, for one group.
        side_by_side: A group is neighbouring processes; else those that hold the same are neighbours.
    """
    from torchrec.distributed.model_parallel import DistributedModelParallel, DMPCollection
    from torchrec.distributed.types import ShardingEnv2D

    world = dist.get_world_size()
    if device.type not in REFUSED:
        size, sharders = world // groups, list(sharders)
        collection = DMPCollection(
            tables,
            device,
            plan,
            world,
            size,
            dist.group.WORLD,
            sharders=sharders,
            use_inter_host_allreduce=side_by_side,
        )
        return Spread(collection, collection.device_mesh, collection.sync)
    ranks = torch.arange(world)
    ranks = ranks.view(groups, -1) if side_by_side else ranks.view(-1, groups).T
    mesh = DeviceMesh("cpu", ranks.contiguous(), mesh_dim_names=("replicate", "shard"))
    group, replicas = mesh.get_group("shard"), mesh.get_group("replicate")
    _move_to(plan, dist.get_process_group_ranks(group))
    env = ShardingEnv2D(group, replicas, dist.group.WORLD, mesh)
    spread = DistributedModelParallel(tables, env, device, plan, list(sharders))
    return Spread(spread, mesh, functools.partial(_average, spread, replicas))


def _move_to(plan: Any, ranks: Sequence[int]) -> None:
    """Changes a plan for processes 0, 1, ... into one for `ranks`, of which there are as many."""
    from torch.distributed.remote_device import _remote_device

    for parameters in plan.plan.values():
        for how in parameters.values():
            how.ranks = [ranks[r] for r in how.ranks]
            for shard in how.sharding_spec.shards:
                shard.placement = _remote_device(f"rank:{ranks[shard.placement.rank()]}/cpu")


@torch.no_grad()
def _average(spread: Any, replicas: Any) -> None:
    for held in _held(spread):
        for _, values in local_shards(held):
            mean = values.float()
            dist.all_reduce(mean, group=replicas)
            values.copy_(mean / dist.get_world_size(replicas))


def _held(spread: Any) -> Iterable[Tensor]:
    yield from spread.state_dict().values()
    for state in spread.fused_optimizer.state_dict()["state"].values():
        yield from (value for name, value in state.items() if name.endswith("momentum1"))
