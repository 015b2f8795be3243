"""What every backend can hold in fewer bytes: the rows of embedding tables, and saved activations."""

from __future__ import annotations

import dataclasses

import torch

from gemkit.config.fields import Config, option
from gemkit.config.run import RunConfig
from gemkit.errors import GemkitError


@dataclasses.dataclass(frozen=True, kw_only=True)
class MemoryConfig(Config):
    """Numbers of fewer bits, where they are many."""

    name: str = "memory"
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
        if self.rounds_by_chance and self.embedding_precision == "fp32":
            raise GemkitError(
                "parallel.embedding_rounding = stochastic, and rows in fp32 are not rounded",
                where="parallel.embedding_rounding",
                fix="parallel.embedding_rounding=nearest, or parallel.embedding_precision=fp16",
            )

    @property
    def rows_dtype(self) -> torch.dtype:
        """Of the tables' rows."""
        return {"fp32": torch.float32, "fp16": torch.float16}[self.embedding_precision]

    @property
    def rounds_by_chance(self) -> bool:
        """Whether updated rows are."""
        return self.embedding_rounding == "stochastic"

    def check_fbgemm(self, device: torch.device, otherwise: str) -> None:
        """Whether FBGEMM's tables on this device can round as wanted.

        Args:
            otherwise: What else would mend it.

        Raises:
            GemkitError: They cannot.
        """
        if self.rounds_by_chance and device.type == "cpu":
            raise GemkitError(
                "parallel.embedding_rounding = stochastic, and FBGEMM's tables on a CPU round to the nearest only",
                where="parallel.embedding_rounding",
                fix=f"{otherwise}, or parallel.embedding_rounding=nearest",
            )
