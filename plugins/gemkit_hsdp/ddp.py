"""Every process holds the whole model: the simplest backend of several processes."""

from __future__ import annotations

import dataclasses
from typing import Any

import torch
from torch import Tensor, nn

from gemkit.component import component
from gemkit.config.run import OptimizerConfig
from gemkit.data.schema import Schema
from gemkit.interfaces import EmbeddingTables
from gemkit_hsdp.activations import saving
from gemkit_hsdp.dense import adamw
from gemkit_hsdp.processes import Processes, ProcessesConfig
from gemkit_hsdp.replicated import ReplicatedTables
from gemkit_hsdp.tables import check_rows_fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class DdpConfig(ProcessesConfig):
    """Options of data parallelism."""

    name: str = "ddp"


@component("parallel", DdpConfig)
class DataParallel(Processes):
    """Trains a copy of the model in each process on its share of each batch; gradients are averaged.

    Paper: PyTorch Distributed (arXiv 2006.15704) for the dense part.
    """

    def __init__(self, config: DdpConfig) -> None:
        self.config = config

    def strategy(self, **options: Any) -> Any:
        from lightning.fabric.strategies.ddp import DDPStrategy

        # A process without examples, at the end of an epoch, leaves parameters out.
        return DDPStrategy(find_unused_parameters=True, **options)

    def build_embeddings(self, schema: Schema, dim: int, optimizer: OptimizerConfig, seed: int) -> EmbeddingTables:
        dtype, by_chance = self.config.rows_dtype, self.config.rounds_by_chance
        check_rows_fit(schema, dim, dtype)
        tables = ReplicatedTables(schema, dim, optimizer.embedding_lr, optimizer.embedding_eps, seed, dtype, by_chance)
        return tables.to(self.fabric.device)

    def place(self, dense: nn.Module, optimizer: OptimizerConfig) -> tuple[nn.Module, torch.optim.Optimizer]:
        placed = adamw(dense, optimizer)
        model, placed = self.fabric.setup(saving(dense, self.config, self.compiled), placed)
        return model, placed

    def clip(self, dense: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
        norm = self.fabric.clip_gradients(dense, optimizer, max_norm=max_norm, error_if_nonfinite=False)
        assert norm is not None
        return norm
