"""What the heads have in common: labels of 0 and 1, and the loss that goes with them."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemkit.data.batch import Batch
from gemkit.interfaces import BuildContext, Head


class BinaryHead(Head):
    """A head of tasks with two outcomes, each with masked binary cross-entropy.

    The loss of a task is the weighted mean over the examples whose label counts; a task without any in the
    batch adds nothing. Task weights come from the schema.
    """

    def __init__(self, context: BuildContext) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(context.readout_dim)
        weights = torch.tensor([task.weight for task in context.schema.tasks])
        self.register_buffer("task_weights", weights, persistent=False)

    def loss(self, logits: Tensor, batch: Batch) -> Tensor:
        """Shape: (B, P) -> ()."""
        counts = batch.masks * batch.weights.unsqueeze(-1)
        losses = F.binary_cross_entropy_with_logits(logits.float(), batch.labels, reduction="none")
        totals = counts.sum(0) if batch.totals is None else batch.totals
        means = (losses * counts).sum(0) / totals.clamp(min=1e-12)
        return (means * self.task_weights).sum()
