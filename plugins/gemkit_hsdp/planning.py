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
from gemkit.config.run import OptimizerConfig
from gemkit.data.schema import Schema
from gemkit.errors import GemkitError, did_you_mean
from gemkit_hsdp.groups import Spread, over_groups
from gemkit_hsdp.memory import MemoryConfig

RESERVED = 0.15
"""Share of a device's memory that the planner leaves to everything but tables."""

SHARDINGS = ("auto", "table_wise", "row_wise", "column_wise", "data_parallel")


@dataclasses.dataclass(frozen=True, kw_only=True)
class TableSharding(Config):
    """How one table is spread."""

    table: str = option("", "Table.")
    sharding: str = option("auto", "How.", choices=SHARDINGS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class TablesConfig(MemoryConfig):
    """How tables are spread over processes."""

    sharding: str = option(
        "auto",
        "How tables are spread that `tables` does not name; auto: as TorchRec's planner says.",
        choices=SHARDINGS,
    )
    tables: tuple[TableSharding, ...] = option((), "How single tables are spread.")
    replicate_below: int = option(
        1000, "Tables of fewer rows are held by every process (data_parallel), with sharding=auto.", ge=0
    )
    prefetch_ids: bool = option(
        False, "Send the next batch's ids to the processes that hold their rows while this one is computed."
    )
    exchange_precision: str = option(
        "fp32",
        "What travels between processes; half: looked up rows in fp16, and their gradients in bf16, which has the "
        "range for them (gloo knows no bf16: in fp32).",
        choices=("fp32", "half"),
    )
    sparse_groups: int = option(
        1, "Groups of processes that hold all tables once each (2-D sparse parallelism), averaged now and then.", ge=1
    )
    sparse_neighbours: str = option(
        "group",
        "Which processes are neighbours: those of a group, so that lookups stay in a machine if a group fits into one; "
        "or the replicas, which hold the same rows, so that averages do.",
        choices=("group", "replicas"),
    )
    sparse_average_every: int = option(10, "Optimiser steps between averages over the groups.", ge=1)


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
    rows: Mapping[str, int],
    dim: int,
    optimizer: OptimizerConfig,
    device: torch.device,
    how: Mapping[str, str],
    config: TablesConfig,
) -> Spread:
    """The tables in TorchRec's `DistributedModelParallel`, or in one for each group, as the planner spreads them.

    Args:
        rows, how: Table -> rows, and sharding.

    Raises:
        GemkitError: The planner finds no room for them.
    """
    from fbgemm_gpu.split_embedding_configs import EmbOptimType, SparseType
    from torchrec import EmbeddingCollection, EmbeddingConfig
    from torchrec.distributed.embedding import EmbeddingCollectionSharder
    from torchrec.distributed.model_parallel import DistributedModelParallel
    from torchrec.distributed.types import ShardingEnv
    from torchrec.modules.embedding_configs import DataType

    dtype = {torch.float32: DataType.FP32, torch.float16: DataType.FP16}[config.rows_dtype]
    configs = [
        EmbeddingConfig(name=name, num_embeddings=n, embedding_dim=dim, feature_names=[name], data_type=dtype)
        for name, n in rows.items()
    ]
    tables = EmbeddingCollection(tables=configs, device=torch.device("meta"))
    fused = {
        "optimizer": EmbOptimType.EXACT_ROWWISE_ADAGRAD,
        "learning_rate": optimizer.embedding_lr,
        "eps": optimizer.embedding_eps,
        "output_dtype": SparseType.FP32,
        "stochastic_rounding": config.rounds_by_chance,
    }
    codecs = None if config.exchange_precision == "fp32" else _codecs(device)
    sharders = [EmbeddingCollectionSharder(fused, use_index_dedup=False, qcomm_codecs_registry=codecs)]
    with quiet():
        plan = _plan(tables, sharders, device, how, config)
        if config.sparse_groups > 1:
            side_by_side = config.sparse_neighbours == "group"
            return over_groups(tables, plan, sharders, device, config.sparse_groups, side_by_side)
        env = ShardingEnv.from_process_group(dist.group.WORLD)
        return Spread(DistributedModelParallel(tables, env, device, plan, sharders))


def _codecs(device: torch.device) -> Any:
    """What TorchRec turns rows and gradients into before it sends them."""
    from torchrec.distributed.fbgemm_qcomm_codec import CommType, QCommsConfig, get_qcomm_codecs_registry

    # Gradients are small, since the loss is a mean. FBGEMM can scale them for fp16, but takes that back in fp16.
    gradients = CommType.FP32 if dist.get_backend() == "gloo" else CommType.BF16
    return get_qcomm_codecs_registry(QCommsConfig(CommType.FP16, gradients), device=device)


def _plan(tables: Any, sharders: list[Any], device: torch.device, how: Mapping[str, str], config: TablesConfig) -> Any:
    """TorchRec's plan for the processes of one group; the first process makes it for all."""
    from torchrec.distributed.planner import EmbeddingShardingPlanner, ParameterConstraints, Topology
    from torchrec.distributed.planner.storage_reservations import FixedPercentageStorageReservation
    from torchrec.distributed.planner.types import PlannerError

    group = dist.get_world_size() // config.sparse_groups
    here = int(os.environ.get("LOCAL_WORLD_SIZE", dist.get_world_size()))
    if config.sparse_neighbours == "replicas":
        here = max(1, here // config.sparse_groups)
    # Its other types are for several GPUs in a machine. One process has nothing to cut.
    usual = ["table_wise", "row_wise", "column_wise"] if group > 1 else ["table_wise"]
    constraints = {
        name: ParameterConstraints(
            sharding_types=[kind] if kind != "auto" and group > 1 else usual,
            compute_kernels=["fused"],  # others cache rows, which checkpoints and averages would not see
            min_partition=4,
        )
        for name, kind in how.items()
    }
    caps = {"hbm_cap": torch.cuda.get_device_properties(device).total_memory} if device.type == "cuda" else {}
    topology = Topology(world_size=group, local_world_size=min(here, group), compute_device=device.type, **caps)
    reserved = FixedPercentageStorageReservation(RESERVED)
    planner = EmbeddingShardingPlanner(topology=topology, constraints=constraints, storage_reservation=reserved)
    outcome: list[Any] = [None]
    if dist.get_rank() == 0:
        try:
            outcome = [planner.plan(tables, sharders)]
        except PlannerError as error:
            outcome = [_no_room(tables, group, topology, config, error.error_type.value)]
    dist.broadcast_object_list(outcome)
    if isinstance(outcome[0], GemkitError):
        raise outcome[0]
    return outcome[0]


def _no_room(tables: Any, group: int, topology: Any, config: TablesConfig, why: str) -> GemkitError:
    # Every row has its numbers, and 4 bytes of the optimiser.
    width = config.rows_dtype.itemsize
    needed = sum(c.num_embeddings * (c.embedding_dim * width + 4) for c in tables.embedding_configs())
    one = topology.devices[0].storage
    return GemkitError(
        f"TorchRec's planner finds no room for tables of {needed / 1e9:,.1f} GB on {group} processes, of whose "
        f"{(one.hbm or one.ddr) / 1e9:,.1f} GB each it uses {1 - RESERVED:.0%} ({why})",
        where="parallel",
        fix="more processes (fewer parallel.sparse_groups), parallel.sharding=auto or row_wise, "
        "parallel.embedding_precision=fp16, or a smaller size.dim",
    )


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Without TorchRec's deliberations, which ask users of gemkit for what they cannot give."""
    loggers = [logging.getLogger(name) for name in ("torchrec", "")]
    levels, handlers = [logger.level for logger in loggers], list(logging.root.handlers)
    try:
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        logging.root.handlers[:] = handlers  # the first warning to the root logger adds one
