"""Which process holds which part of which table: TorchRec's planner, told what this device and the user allow."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist

from gemkit.config.fields import Config, option
from gemkit.data.schema import Schema
from gemkit.errors import GemkitError, did_you_mean

RESERVED = 0.15
"""Share of a device's memory that the planner leaves to everything but tables."""

SHARDINGS = ("auto", "table_wise", "row_wise", "column_wise", "data_parallel")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableSharding(Config):
    """How one table is spread."""

    table: str = option("", "Table.")
    sharding: str = option("auto", "How.", choices=SHARDINGS)


def check_tables(shardings: Sequence[TableSharding], schema: Schema) -> dict[str, str]:
    """Table -> how.

    Raises:
        GemkitError: There is no such table.
    """
    known = [t.name for t in schema.tables]
    for i, s in enumerate(shardings):
        if s.table not in known:
            raise GemkitError(
                f"the model reads no table {s.table!r}",
                where=f"parallel.tables[{i}].table",
                allowed=", ".join(known),
                fix=did_you_mean(s.table, known),
            )
    return {s.table: s.sharding for s in shardings}


def sharded_tables(
    rows: Mapping[str, int], dim: int, lr: float, eps: float, device: torch.device, how: Mapping[str, str], group: Any
) -> Any:
    """The tables in a `DistributedModelParallel`, as the planner spreads them."""
    from fbgemm_gpu.split_embedding_configs import EmbOptimType
    from torchrec import EmbeddingCollection, EmbeddingConfig
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.types import ShardingEnv

    configs = [
        EmbeddingConfig(name=name, num_embeddings=n, embedding_dim=dim, feature_names=[name])
        for name, n in rows.items()
    ]
    tables = EmbeddingCollection(tables=configs, device=torch.device("meta"))
    world = dist.get_world_size(group)
    # Its other types are for several GPUs in a machine. One process has nothing to cut.
    usual = ["table_wise", "row_wise", "column_wise"] if world > 1 else ["table_wise"]
    constraints = {
        name: ParameterConstraints(
            sharding_types=[how[name]] if how[name] != "auto" and world > 1 else usual, min_partition=4
        )
        for name in rows
    }
    fused = {"optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD, "learning_rate": lr, "eps": eps}
    sharder = EmbeddingCollectionSharder(fused_params=fused, use_index_dedup=False)
    with quiet():
        here = min(int(os.environ.get("LOCAL_WORLD_SIZE", world)), world)
        topology = Topology(world_size=world, local_world_size=here, compute_device=device.type)
        reserved = FixedPercentageStorageReservation(RESERVED)
        planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints, storage_reservation=reserved)
        plan = planner.collective_plan(tables, [sharder], dist.group.WORLD)
    _move_to(plan, dist.get_process_group_ranks(group))
    return DistributedModelParallel(
        tables, env=ShardingEnv.from_process_group(group), device=device, plan=plan, sharders=[sharder]
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without TorchRec's deliberations, which ask users of gemkit for what they cannot give."""
    logger = logging.getLogger("torchrec")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        yield
    finally:
        logger.setLevel(level)


def _move_to(plan: Any, ranks: Sequence[int]) -> None:
    """Changes a plan for processes 0, 1, ... into one for `ranks`, of which there are as many."""
    from torch.distributed.remote_device import _remote_device

    for parameters in plan.plan.values():
        for how in parameters.values():
            how.ranks = [ranks[r] for r in how.ranks]
            for shard in how.sharding_spec.shards:
                rank, _, device = str(shard.placement).partition("/")
                shard.placement = _remote_device(f"rank:{ranks[int(rank.removeprefix('rank:'))]}/{device}")
