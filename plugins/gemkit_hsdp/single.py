"""One process, one device: the backend that everything else must agree with."""

from __future__ import annotations

import dataclasses
import importlib.util

import torch
from torch import Tensor, nn

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.config.memory import check_fits
from gemkit.config.run import OptimizerConfig, RunConfig
from gemkit.data.schema import Schema
from gemkit.errors import GemkitError
from gemkit.interfaces import EmbeddingTables, ParallelBackend
from gemkit_hsdp.activations import SavedInFp8
from gemkit_hsdp.dense import adamw
from gemkit_hsdp.devices import PRECISIONS, uses_cuda
from gemkit_hsdp.tables import FusedTables, LocalTables, TorchTables


@dataclasses.dataclass(frozen=True, kw_only=True)
class SingleConfig(Config):
    """Options of the single process."""

    name: str = "single"
    accelerator: str = option("auto", "Device.", choices=("auto", "cpu", "cuda"))
    embeddings: str = option(
        "auto",
        "Tables: FBGEMM's fused ones, or gemkit's own of the same values, in PyTorch; auto: FBGEMM's on a GPU if it is "
        "installed, else gemkit's own, which are faster on a CPU (docs/results.md).",
        choices=("auto", "fbgemm", "torch"),
    )
    embedding_precision: str = option(
        "fp32",
        "What the rows of the tables are held in; what is looked up, gradients and the optimiser's state are fp32.",
        choices=("fp32", "fp16"),
    )
    embedding_rounding: str = option(
        "nearest",
        "Of updated rows in fp16: to the nearest, or up or down by chance, right on average; FBGEMM on a CPU cannot.",
        choices=("nearest", "stochastic"),
    )
    saved_activations: str = option(
        "exact",
        "What training keeps of the dense part for the backward pass: activations as they are, or those of 65,536 "
        "numbers or more in FP8, a byte each. Tables and evaluation are exact; copies of weights in bf16 are not.",
        choices=("exact", "fp8"),
    )

    def check_run(self, run: RunConfig) -> None:
        if self.saved_activations == "fp8" and run.train.checkpoint_activations:
            raise GemkitError(
                "parallel.saved_activations = fp8 beside train.checkpoint_activations, which saves none in the blocks",
                where="parallel.saved_activations",
                allowed="one of the two",
                fix="parallel.saved_activations=exact, or train.checkpoint_activations=false",
            )
        if self.saved_activations == "fp8" and run.train.activation_budget < 1:
            raise GemkitError(
                f"parallel.saved_activations = fp8 beside train.activation_budget = {run.train.activation_budget}, "
                "which reckons with activations as they are",
                where="parallel.saved_activations",
                allowed="one of the two",
                fix="parallel.saved_activations=exact, or train.activation_budget=1",
            )
        if self.embedding_rounding == "stochastic" and self.embedding_precision == "fp32":
            raise GemkitError(
                "parallel.embedding_rounding = stochastic, and rows in fp32 are not rounded",
                where="parallel.embedding_rounding",
                fix="parallel.embedding_rounding=nearest, or parallel.embedding_precision=fp16",
            )
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
        kind = self._tables_kind()
        rows = sum(t.num_embeddings for t in schema.tables)
        dtype, stochastic = self._rows_kind(kind)
        needed = rows * (dim * dtype.itemsize + 4)
        check_fits(needed, "the embedding tables", {"size.dim": dim, "rows of the tables": rows})
        tables = kind(schema, dim, optimizer.embedding_lr, optimizer.embedding_eps, seed, dtype, stochastic)
        return tables.to(self.fabric.device)

    def _tables_kind(self) -> type[LocalTables]:
        if self.config.uses_fbgemm and not has_fbgemm():
            raise GemkitError(
                "parallel.embeddings = fbgemm, and FBGEMM is not installed",
                where="parallel.embeddings",
                fix="pip install fbgemm-gpu-cpu (CPU) or fbgemm-gpu (CUDA), or parallel.embeddings=torch",
            )
        return FusedTables if self.config.uses_fbgemm else TorchTables

    def _rows_kind(self, kind: type[LocalTables]) -> tuple[torch.dtype, bool]:
        """Type of the tables' rows, and whether they are rounded by chance."""
        stochastic = self.config.embedding_rounding == "stochastic"
        if stochastic and kind is FusedTables and self.fabric.device.type == "cpu":
            raise GemkitError(
                "parallel.embedding_rounding = stochastic, and FBGEMM's tables on a CPU round to the nearest only",
                where="parallel.embedding_rounding",
                fix="parallel.embeddings=torch, or parallel.embedding_rounding=nearest",
            )
        return {"fp32": torch.float32, "fp16": torch.float16}[self.config.embedding_precision], stochastic

    def place(self, dense: nn.Module, optimizer: OptimizerConfig) -> tuple[nn.Module, torch.optim.Optimizer]:
        placed = adamw(dense, optimizer)
        if self.config.saved_activations == "fp8":
            dense = SavedInFp8(dense, self.compiled)
        model, placed = self.fabric.setup(dense, placed)
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
