"""Standard knowledge distillation: the baseline that every other transfer must beat."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.data.batch import Batch
from gemkit.errors import GemkitError
from gemkit.interfaces import BuildContext, Outputs, TransferStrategy


@dataclasses.dataclass(frozen=True, kw_only=True)
class DistillConfig(Config):
    """Options of distillation."""

    name: str = "distill"
    teacher: str = option("", "Run folder of the teacher; it must know the student's tasks and read its data set.")
    weight: float = option(1.0, "Weight of the distillation loss beside the label loss.", ge=0, le=1e6)
    temperature: float = option(1.0, "Divides both sides' logits; the loss is scaled by its square.", gt=0, le=1e6)

    def check(self) -> None:
        if not self.teacher:
            raise GemkitError("transfer=distill needs a teacher", where="teacher", fix="transfer.teacher=runs/<name>")


@component("transfer", DistillConfig)
class Distill(TransferStrategy):
    """The student's own logit is fitted to the teacher's soft label, beside the true label.

    The teacher answers online, batch by batch, without gradient; every example counts, also where its label is
    masked, for the teacher knows an answer there.

    Paper: Hinton et al., Distilling the Knowledge in a Neural Network (arXiv 1503.02531), for binary tasks.
    Differs: nothing checks that the teacher is older than the examples it answers for; distilling from a
        teacher on its own training data passes on what it memorised.
    """

    def __init__(self, config: DistillConfig, context: BuildContext) -> None:
        super().__init__()
        from gemkit.registry import load_registry
        from gemkit.session import load_run

        self.config = config
        teacher = load_run(Path(config.teacher), load_registry(), context.schema).model
        if teacher.schema.task_names != context.schema.task_names:
            raise GemkitError(
                f"the teacher predicts {', '.join(teacher.schema.task_names)}",
                where="transfer.teacher",
                allowed=f"a run with the tasks {', '.join(context.schema.task_names)}",
            )
        # In a tuple, so that the teacher is no submodule: it is neither trained nor saved with the student.
        self._teacher = (teacher,)

    @torch.no_grad()
    def answer(self, batch: Batch) -> Outputs:
        return self._teacher[0](batch)

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Shape: logits (B, P) of both -> ()."""
        assert teacher is not None
        t = self.config.temperature
        soft = torch.sigmoid(teacher.logits / t)
        losses = F.binary_cross_entropy_with_logits(student.logits / t, soft, reduction="none").mean(1)
        mean = (losses * batch.weights).sum() / batch.weights.sum().clamp(min=1e-12)
        return self.config.weight * t * t * mean
