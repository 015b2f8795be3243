"""Standard knowledge distillation: the baseline that every other transfer must beat."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.data.batch import Batch
from gemkit.interfaces import Answers, BuildContext, Outputs
from gemkit_transfer.base import SoftLabelConfig, SoftLabelStrategy
from gemkit_transfer.losses import soft_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig(SoftLabelConfig):
    """Options of distillation."""

    name: str = "distill"
    weight: float = option(1.0, "Weight of the distillation loss beside the label loss.", ge=0, le=1e6)
    temperature: float = option(1.0, "Divides both sides' logits; the loss is scaled by its square.", gt=0, le=1e6)


@component("transfer", DistillConfig)
class Distill(SoftLabelStrategy):
    """The student's own logit is fitted to the teacher's soft label, beside the true label.

    Every example counts that the log has an answer for, also where its label is masked, for the teacher knows an
    answer there. The gate compares the teacher with the student itself.

    Paper: Hinton et al., Distilling the Knowledge in a Neural Network (arXiv 1503.02531), for binary tasks.
    """

    def __init__(self, config: DistillConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.weight, self.temperature = config.weight, config.temperature

    def loss(self, student: Outputs, teacher: Answers | None, batch: Batch) -> Tensor:
        """Shape: logits (B, P) of both -> ()."""
        assert teacher is not None
        t = self.temperature
        counted = self.counted(teacher.known, batch.weights)
        losses = soft_loss(student.logits / t, torch.sigmoid(teacher.logits / t), counted)
        return self.weight * t * t * self.gated(losses, teacher.logits, student.logits, batch, teacher.known)
