"""TorchRec's planner on a cluster that is not there."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import nn

from gemkit.plan.tables import Cluster, Placement, TableLoad, even_rows
from gemkit_hsdp.planning import quiet

PLANNER = "TorchRec's EmbeddingShardingPlanner"

SMALL = 5000
"""Tables times ranks up to which the planner tries all of its own proposals; above, that takes hours."""


def plan_tables(tables: Sequence[TableLoad], cluster: Cluster) -> Placement:
    """What the planner chooses for unpooled tables in GPU memory (compute kernel `fused`) on the simulated topology.

    Without TorchRec, or if there is no memory to plan with, the even split of the rows, which says so.

    Differs: for large plans only the proposals with one sharding type for all tables are tried, where TorchRec by
        default tries thousands of mixed ones.
    """
    if cluster.table_bytes <= 0:
        return even_rows(tables, cluster, refused="no memory is left for tables")
    try:
        import torchrec  # noqa: F401
    except ImportError:
        placement = even_rows(tables, cluster)
        return dataclasses.replace(placement, planner=f"{placement.planner}, as TorchRec is not installed")
    with quiet():
        return _planned(tables, cluster)


def _planned(tables: Sequence[TableLoad], cluster: Cluster) -> Placement:
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.planner import EmbeddingShardingPlanner
    from torchrec.distributed.planner.enumerators import EmbeddingEnumerator
    from torchrec.distributed.planner.proposers import UniformProposer
    from torchrec.distributed.planner.shard_estimators import EmbeddingPerfEstimator, EmbeddingStorageEstimator
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import ParameterConstraints, PlannerError, Topology
    from torchrec.modules.embedding_configs import DataType, EmbeddingConfig
    from torchrec.modules.embedding_modules import EmbeddingCollection

    gpu = cluster.gpu
    topology = Topology(
        world_size=cluster.num_ranks,
        compute_device="cuda",
        hbm_cap=cluster.table_bytes,
        local_world_size=min(gpu.per_node, cluster.num_ranks),
        hbm_mem_bw=gpu.memory_bytes_per_s / 1000,  # its unit is bytes a millisecond
        intra_host_bw=gpu.intra_bytes_per_s / 1000,
        inter_host_bw=gpu.inter_bytes_per_s / 1000,
    )
    dtype = DataType.FP16 if cluster.table_dtype == "fp16" else DataType.FP32
    configs = [
        EmbeddingConfig(
            name=t.name,
            num_embeddings=t.num_embeddings,
            embedding_dim=t.dim,
            feature_names=[t.name],
            data_type=dtype,
        )
        for t in tables
    ]
    module = nn.ModuleDict({"tables": EmbeddingCollection(tables=configs, device=torch.device("meta"))})
    constraints = {
        t.name: ParameterConstraints(compute_kernels=["fused"], pooling_factors=[max(t.lookups, 1e-6)]) for t in tables
    }
    large = len(tables) * cluster.num_ranks > SMALL
    estimators = [
        _OnceForEachSize(estimator(topology=topology, constraints=constraints))
        for estimator in (EmbeddingPerfEstimator, EmbeddingStorageEstimator)
    ]
    planner = EmbeddingShardingPlanner(
        topology=topology,
        batch_size=cluster.local_batch,
        storage_reservation=FixedPercentageStorageReservation(0.0),
        enumerator=EmbeddingEnumerator(topology, cluster.local_batch, constraints, estimators),
        proposer=UniformProposer() if large else None,
        constraints=constraints,
        stats=[],
    )
    try:
        plan = planner.plan(module, [EmbeddingCollectionSharder()])
    except PlannerError as error:
        return even_rows(tables, cluster, refused=f"{PLANNER}: {error.error_type.value}")
    return _placement(tables, cluster, next(iter(plan.plan.values())))


class _OnceForEachSize:
    """TorchRec's estimator, asked once for all shards of one size: a row-wise table has one for every rank."""

    def __init__(self, estimator: Any) -> None:
        self.estimator = estimator

    def estimate(self, sharding_options: list[Any], sharder_data_map: Any) -> None:
        """Sets `perf` or `storage` of every shard."""
        for option in sharding_options:
            shards = option.shards
            of_size = {tuple(shard.size): shard for shard in shards}
            option.shards = list(of_size.values())
            self.estimator.estimate([option], sharder_data_map)
            for shard in shards:
                asked = of_size[tuple(shard.size)]
                shard.perf, shard.storage = asked.perf, asked.storage
            option.shards = shards


def _placement(tables: Sequence[TableLoad], cluster: Cluster, plan: Any) -> Placement:
    """Adds up the shards of TorchRec's plan, rank by rank."""
    params, rows, served = ([0] * cluster.num_ranks, [0] * cluster.num_ranks, [0.0] * cluster.num_ranks)
    kinds: Counter[str] = Counter()
    for table in tables:
        sharding = plan[table.name]
        kinds[sharding.sharding_type] += 1
        for shard in sharding.sharding_spec.shards:
            rank, (height, width) = shard.placement.rank(), shard.shard_sizes
            rows[rank] += height
            params[rank] += height * width
            served[rank] += table.lookups * width * height / table.num_embeddings
    return Placement(planner=PLANNER, kinds=dict(kinds), params=tuple(params), rows=tuple(rows), served=tuple(served))
