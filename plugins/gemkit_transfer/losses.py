"""Soft labels, their loss, and a head that learns them in the place of the serving head."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F

from gemkit.data.batch import Batch
from gemkit.nn.layers import mlp


def soft_loss(logits: Tensor, target: Tensor, known: Tensor, weights: Tensor) -> Tensor:
    """Cross-entropy with probabilities: for each task its weighted mean over the examples that have an answer.

    A task without any answer in the batch adds nothing.

    Shape: logits, target, known (B, P), weights (B,) -> (P,).
    """
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    counted = known * weights.unsqueeze(1)
    return (losses * counted).sum(0) / counted.sum(0).clamp(min=1e-12)


def label_loss(logits: Tensor, batch: Batch, known: Tensor) -> Tensor:
    """The same with the labels that count, where there is an answer too. Shape: (B, P) -> (P,)."""
    return soft_loss(logits, batch.labels, known * batch.masks, batch.weights)


class AuxiliaryHead(nn.Module):
    """A head beside the serving head, on the same readout. What it learns reaches the backbone scaled by `beta`.

    Paper: ExFM (arXiv 2502.17494), the distillation head of section 4, and its gradient scaling.

    Shape: readout (B, R) -> (B, P).
    """

    def __init__(self, width: int, hidden: tuple[int, ...], num_tasks: int, beta: float) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = mlp(width, hidden, num_tasks)
        self.beta = beta

    def forward(self, readout: Tensor) -> Tensor:
        scaled = readout * self.beta + readout.detach() * (1 - self.beta)
        logits: Tensor = self.mlp(self.norm(scaled))
        return logits
