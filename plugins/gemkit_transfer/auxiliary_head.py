"""ExFM's auxiliary head: soft labels reach the backbone, and never the head that serves."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.data.batch import Batch
from gemkit.interfaces import Answers, BuildContext, EmbeddingTables, Outputs
from gemkit_transfer.base import SoftLabelConfig, SoftLabelStrategy
from gemkit_transfer.losses import AuxiliaryHead, soft_loss

if TYPE_CHECKING:
    from gemkit.model import GEM


@dataclasses.dataclass(frozen=True, kw_only=True)
class AuxiliaryHeadConfig(SoftLabelConfig):
    """Options of the auxiliary head."""

    name: str = "auxiliary_head"
    weight: float = option(1.0, "Loss scaling w: weight of the auxiliary head's loss.", ge=0, le=1e6)
    beta: float = option(1.0, "Gradient scaling: how much of its gradient reaches the backbone.", ge=0, le=1e6)
    alpha: float = option(1.0, "Label scaling: the soft label times this, clipped to 0 .. 1.", gt=0, le=1e3)
    hidden: tuple[int, ...] = option((128, 64), "Hidden widths of the auxiliary head.", ge=1)
    lr: float = option(1e-3, "Peak learning rate of the auxiliary head's AdamW.", gt=0)


@component("transfer", AuxiliaryHeadConfig)
class AuxiliaryHeadTransfer(SoftLabelStrategy):
    """A head D of its own learns the teacher's soft labels; the serving head learns labels only.

    `L = h(y_S, y) + w h(y_D, clip(alpha y_F))`, and the gradient of the second term into the backbone is scaled by
    beta. The bias of a teacher ends in D, which is not served. The gate compares the (scaled) soft label with the
    serving head.

    Paper: ExFM (arXiv 2502.17494), auxiliary head with gradient, label and loss scaling.
    Differs: D is an MLP after a LayerNorm, with an AdamW of its own.
    """

    def __init__(self, config: AuxiliaryHeadConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.options = config
        self.head: nn.Module = nn.Identity()

    def prepare(self, student: nn.Module, embeddings: EmbeddingTables) -> None:
        """Makes D, as wide as the student's readout."""
        self.head = head_for(student, self.options.hidden, len(self.tasks), self.options.beta)

    def optimizers(self) -> Iterable[torch.optim.Optimizer]:
        return (torch.optim.AdamW(self.head.parameters(), lr=self.options.lr, weight_decay=0.0),)

    def loss(self, student: Outputs, teacher: Answers | None, batch: Batch) -> Tensor:
        """Shape: logits (B, P), readout (B, R) -> ()."""
        assert teacher is not None
        target = (self.options.alpha * torch.sigmoid(teacher.logits)).clamp(0, 1)
        losses = soft_loss(self.head(student.readout), target, self.counted(teacher.known, batch.weights))
        scaled = torch.logit(target, eps=1e-6)
        return self.options.weight * self.gated(losses, scaled, student.logits, batch, teacher.known)


def head_for(student: nn.Module, hidden: tuple[int, ...], num_tasks: int, beta: float) -> AuxiliaryHead:
    """An auxiliary head on the readout of a GEM."""
    dense: GEM = student  # type: ignore[assignment]
    return AuxiliaryHead(dense.readout.width, hidden, num_tasks, beta)
