"""The plain head: one MLP on the readout, one logit a task."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.data.batch import Batch
from gemkit.interfaces import BuildContext, Head
from gemkit.nn.layers import mlp


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiTaskHeadConfig(Config):
    """Options of the head."""

    name: str = "multitask"
    hidden: tuple[int, ...] = option((128, 64), "Hidden widths shared by all tasks.", ge=1)
    dropout: float = option(0.0, "After each hidden layer.", ge=0, lt=1)


@component("head", MultiTaskHeadConfig)
class MultiTaskHead(Head):
    """Shared bottom: an MLP on the readout, then one logit for each task; masked binary cross-entropy.

    The loss of a task is the weighted mean over the examples whose label counts; a task without any in the
    batch adds nothing. Task weights come from the schema.

    Paper: Caruana, Multitask Learning (1997), hard parameter sharing.
    """

    def __init__(self, config: MultiTaskHeadConfig, context: BuildContext) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(context.readout_dim)
        self.mlp = mlp(context.readout_dim, config.hidden, len(context.schema.tasks), config.dropout)
        weights = torch.tensor([task.weight for task in context.schema.tasks])
        self.register_buffer("task_weights", weights, persistent=False)

    def forward(self, readout: Tensor, batch: Batch) -> Tensor:
        """Shape: (B, R) -> (B, P)."""
        logits: Tensor = self.mlp(self.norm(readout))
        return logits

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Shape: (B, P) -> ()."""
        counts = batch.masks * batch.weights.unsqueeze(-1)
        losses = F.binary_cross_entropy_with_logits(logits.float(), batch.labels, reduction="none")
        means = (losses * counts).sum(0) / counts.sum(0).clamp(min=1e-12)
        return (means * self.task_weights).sum()
