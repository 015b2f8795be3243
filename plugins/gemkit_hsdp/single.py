"""One process, one device: the backend that everything else must agree with."""

from __future__ import annotations

import dataclasses
import importlib.util

import torch
from torch import Tensor, nn

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.config.run import OptimizerConfig, RunConfig
from gemkit.data.schema import Schema
from gemkit.errors import GemkitError
from gemkit.interfaces import EmbeddingTables, ParallelBackend
from gemkit_hsdp.activations import saving
from gemkit_hsdp.dense import adamw
from gemkit_hsdp.devices import PRECISIONS, uses_cuda
from gemkit_hsdp.memory import MemoryConfig
from gemkit_hsdp.tables import FusedTables, LocalTables, TorchTables, check_rows_fit


@dataclasses.dataclass(frozen=True, kw_only=True)
class SingleConfig(MemoryConfig):
    """Options of the single process."""

    name: str = "single"
    accelerator: str = option("auto", "Device.", choices=("auto", "cpu", "cuda"))
    embeddings: str = option(
        "auto",
        "Tables: FBGEMM's fused ones, or gemkit's own of the same values, in PyTorch; auto: FBGEMM's on a GPU if it is "
        "installed, else gemkit's own, which are faster on a CPU (docs/results.md).",
        choices=("auto", "fbgemm", "torch"),
    )

    def check_run(self, run: RunConfig) -> None:
        super().check_run(run)
        if self.uses_fbgemm and run.size.dim % 4:
            raise GemkitError(
                f"size.dim = {run.size.dim}, and FBGEMM's tables have rows of whole fours",
                where="size.dim",
                allowed="a multiple of 4",
                fix="change it, or parallel.embeddings=torch",
            )

    @property
    def uses_fbgemm(self) -> bool:
        """Whether the tables are FBGEMM's."""
        if self.embeddings == "auto":
            return self.accelerator != "cpu" and torch.cuda.is_available() and has_fbgemm()
        return self.embeddings == "fbgemm"


def has_fbgemm() -> bool:
    """Whether FBGEMM is installed."""
    return importlib.util.find_spec("fbgemm_gpu") is not None


@component("parallel", SingleConfig)
class SingleProcess(ParallelBackend):
    """Trains in this process on one CPU or one GPU; tables are local, with fused row-wise AdaGrad.

    Paper: AdamW (arXiv 1711.05101) for the dense part, row-wise AdaGrad as in FBGEMM for the tables.
    """

    def __init__(self, config: SingleConfig) -> None:
        self.config = config

    def launch(self, run: RunConfig) -> None:
        from lightning.fabric import Fabric

        cuda = uses_cuda(self.config.accelerator)
        precision = PRECISIONS[run.train.precision]
        self.fabric = Fabric(accelerator="cuda" if cuda else "cpu", devices=1, precision=precision)  # type: ignore[arg-type]
        self.fabric.launch()
        self.compiled = run.train.compile

    def build_embeddings(self, schema: Schema, dim: int, optimizer: OptimizerConfig, seed: int) -> EmbeddingTables:
        kind, dtype, by_chance = self._tables_kind(), self.config.rows_dtype, self.config.rounds_by_chance
        if kind is FusedTables:
            self.config.check_fbgemm(self.fabric.device, "parallel.embeddings=torch")
        check_rows_fit(schema, dim, dtype)
        lr, eps, device = optimizer.embedding_lr, optimizer.embedding_eps, self.fabric.device
        return kind(schema, dim, lr, eps, seed, dtype, by_chance, device).to(device)

    def _tables_kind(self) -> type[LocalTables]:
        if self.config.uses_fbgemm and not has_fbgemm():
            raise GemkitError(
                "parallel.embeddings = fbgemm, and FBGEMM is not installed",
                where="parallel.embeddings",
                fix="pip install fbgemm-gpu-cpu (CPU) or fbgemm-gpu (CUDA), or parallel.embeddings=torch",
            )
        return FusedTables if self.config.uses_fbgemm else TorchTables

    def place(self, dense: nn.Module, optimizer: OptimizerConfig) -> tuple[nn.Module, torch.optim.Optimizer]:
        placed = adamw(dense, optimizer)
        model, placed = self.fabric.setup(saving(dense, self.config, self.compiled), placed)
        return model, placed

    def clip(self, dense: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
        norm = self.fabric.clip_gradients(dense, optimizer, max_norm=max_norm, error_if_nonfinite=False)
        assert norm is not None
        return norm

    def all_gather(self, values: Tensor) -> Tensor:
        return values

    @property
    def rank(self) -> int:
        return 0

    @property
    def world_size(self) -> int:
        return 1
