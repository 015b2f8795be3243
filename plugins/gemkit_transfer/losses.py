"""Soft labels, their loss, and a head that learns them in the place of the serving head."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor, nn
from torch.nn import functional as F

from gemkit.nn.layers import mlp


class Counted(NamedTuple):
    """How much each example of a batch counts for each task.

    Attributes:
        each: (B, P), 0 where there is nothing to learn from.
        total: (P,), of this process's examples; of several processes the mean, so that the mean of what they divide by
            it is that of the global batch.
    """

    each: Tensor
    total: Tensor


def soft_loss(logits: Tensor, target: Tensor, counted: Counted) -> Tensor:
    """Cross-entropy with probabilities: for each task its weighted mean. One that nothing counts for adds nothing.

    Shape: logits, target (B, P) -> (P,).
    """
    losses = F.binary_cross_entropy_with_logits(logits, target, reduction="none")
    return (losses * counted.each).sum(0) / counted.total.clamp(min=1e-12)


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
