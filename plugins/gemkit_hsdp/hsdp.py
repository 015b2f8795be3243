"""The dense part sharded inside groups of processes and replicated over them, embedding tables spread over all."""

from __future__ import annotations

import contextlib
import dataclasses
import importlib.util
from typing import Any

import torch
from torch import Tensor, nn

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.config.run import OptimizerConfig, RunConfig
from gemkit.data.schema import Schema
from gemkit.errors import GemkitError
from gemkit.interfaces import EmbeddingTables
from gemkit_hsdp.activations import saving
from gemkit_hsdp.dense import adamw
from gemkit_hsdp.planning import TablesConfig
from gemkit_hsdp.processes import Processes, ProcessesConfig
from gemkit_hsdp.sharded import ShardedTables
from gemkit_hsdp.waiting import wait_at_most


@dataclasses.dataclass(frozen=True, kw_only=True)
class HsdpConfig(ProcessesConfig, TablesConfig):
    """Options of hybrid-sharded data parallelism with sharded tables."""

    name: str = "hsdp"
    dp_shard: int | None = option(
        None, "Processes over which the dense part is sharded; null: those of one machine.", ge=1
    )

    def check_run(self, run: RunConfig) -> None:
        super().check_run(run)
        if run.size.dim % 4:
            raise GemkitError(
                f"size.dim = {run.size.dim}, and FBGEMM's tables have rows of whole fours",
                where="size.dim",
                allowed="a multiple of 4",
                fix="change it, or parallel=ddp",
            )


@component("parallel", HsdpConfig)
class HybridSharded(Processes):
    """FSDP2 on a mesh `dp_replicate` x `dp_shard` for the dense part, TorchRec for the tables.

    Paper: PyTorch FSDP (arXiv 2304.11277), its hybrid sharding; 2-D sparse parallelism (arXiv 2508.03854).
    Differs: AdaGrad is not scaled by the number of groups, as that paper proposes. On CPUs, which TorchRec's
        `DMPCollection` refuses, groups are one `DistributedModelParallel` each, with the same averages.
    """

    def __init__(self, config: HsdpConfig) -> None:
        self.config: HsdpConfig = config

    def strategy(self, **options: Any) -> Any:
        from gemkit_hsdp.strategy import sharded_strategy

        return sharded_strategy(**options)

    def launch(self, run: RunConfig) -> None:
        for package in ("torchrec", "fbgemm_gpu"):
            if importlib.util.find_spec(package) is None:
                raise GemkitError(
                    f"parallel=hsdp needs {package}, which is not installed",
                    where="parallel",
                    fix="see `gemkit doctor`, which prints the commands; or parallel=ddp",
                )
        super().launch(run)
        self.precision = run.train.precision
        from torch.distributed.device_mesh import init_device_mesh

        world, config = self.world_size, self.config
        shard = config.dp_shard or world // self.num_nodes
        for name, parts in (("dp_shard", shard), ("sparse_groups", config.sparse_groups)):
            if world % parts:
                raise GemkitError(
                    f"parallel.{name} = {parts} does not divide {world} processes",
                    where=f"parallel.{name}",
                    allowed=", ".join(str(n) for n in range(1, world + 1) if world % n == 0),
                )
        device = self.fabric.device.type
        mesh = init_device_mesh(device, (world // shard, shard), mesh_dim_names=("dp_replicate", "dp_shard"))
        self.mesh = wait_at_most(mesh, self.timeout)

    def build_embeddings(self, schema: Schema, dim: int, optimizer: OptimizerConfig, seed: int) -> EmbeddingTables:
        self.config.check_fbgemm(self.fabric.device, "parallel=ddp")
        tables = ShardedTables(schema, dim, optimizer, seed, self.fabric.device, self.config)
        if tables.mesh is not None:
            wait_at_most(tables.mesh, self.timeout)
        return tables

    def place(self, dense: nn.Module, optimizer: OptimizerConfig) -> tuple[nn.Module, torch.optim.Optimizer]:
        from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

        policy = MixedPrecisionPolicy()
        if self.precision == "bf16":
            # Gathered in bf16. Inputs stay: the ages of events do not fit into bf16.
            policy = MixedPrecisionPolicy(torch.bfloat16, torch.float32, cast_forward_inputs=False)
        for block in getattr(dense, "blocks", ()):
            fully_shard(block, mesh=self.mesh, mp_policy=policy)
        fully_shard(dense, mesh=self.mesh, mp_policy=policy)
        # A process whose examples leave parameters out must still send as much as the others.
        dense.set_reduce_scatter_unused_params(True)  # type: ignore[operator]
        if self.compiled:
            # In modules that FSDP has marked, torch.compile takes numbers of heads and widths for variables, as sizes
            # of batches are; with so many of them it fails (torch 2.13). FSDP itself does not read the mark.
            for module in dense.modules():
                module._is_fsdp_managed_module = False  # type: ignore[assignment]
        self._sharded: Any = dense
        placed = adamw(dense, optimizer)
        dense = saving(dense, self.config, self.compiled, gathers=True)
        model, placed = self.fabric.setup(dense, placed, move_to_device=False)
        return model, placed

    def clip(self, dense: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
        norm = nn.utils.clip_grad_norm_(dense.parameters(), max_norm)
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm

    def accumulating(self, dense: nn.Module, more: bool) -> contextlib.AbstractContextManager[None]:
        self._sharded.set_requires_gradient_sync(not more)
        return contextlib.nullcontext()

    def after_step(self, step: int, embeddings: EmbeddingTables) -> None:
        assert isinstance(embeddings, ShardedTables)
        embeddings.have_moved()
        if step % self.config.sparse_average_every == 0:
            embeddings.average()
