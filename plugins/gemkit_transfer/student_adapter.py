"""ExFM's Student Adapter: a small network corrects a stale teacher by the newest labels, before it is distilled."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

import torch
from torch import Tensor, nn

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.data.batch import Batch
from gemkit.interfaces import Answers, BuildContext, EmbeddingTables, Outputs
from gemkit.nn.layers import mlp
from gemkit_transfer.auxiliary_head import head_for
from gemkit_transfer.base import SoftLabelConfig, SoftLabelStrategy
from gemkit_transfer.losses import soft_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentAdapterConfig(SoftLabelConfig):
    """Options of the Student Adapter."""

    name: str = "student_adapter"
    head: str = option(
        "auxiliary",
        "What is fitted to the adapter: a head of its own beside the serving head, or the serving head's logit.",
        choices=("auxiliary", "serving"),
    )
    weight: float = option(1.0, "Weight of the distillation from the adapter.", ge=0, le=1e6)
    beta: float = option(1.0, "How much of the auxiliary head's gradient reaches the backbone.", ge=0, le=1e6)
    adapter_hidden: tuple[int, ...] = option((32,), "Hidden widths of the adapter.", ge=1)
    context: bool = option(
        False, "The adapter reads the student's readout too, without gradient, not the teacher's logits alone."
    )
    adapter_lr: float = option(1e-2, "Peak learning rate of the adapter's AdamW.", gt=0)
    hidden: tuple[int, ...] = option((128, 64), "Hidden widths of the auxiliary head.", ge=1)
    lr: float = option(1e-3, "Peak learning rate of the auxiliary head's AdamW.", gt=0)


class Adapter(nn.Module):
    """`y_SA = y_F + MLP(y_F, ...)`: the teacher itself until labels say otherwise, for its last layer begins at zero.

    Shape: logits (B, P), known (B, P), readout (B, R) -> (B, P).
    """

    def __init__(self, num_tasks: int, hidden: tuple[int, ...], readout: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(readout) if readout else None
        widths = (2 * num_tasks + readout, *hidden)
        layers = mlp(widths[0], hidden, num_tasks)
        self.bottom, self.top = layers[:-1], Correction(widths[-1], num_tasks)

    def forward(self, logits: Tensor, known: Tensor, readout: Tensor) -> Tensor:
        inputs = [logits, known] + ([] if self.norm is None else [self.norm(readout.detach())])
        adapted: Tensor = logits + self.top(self.bottom(torch.cat(inputs, dim=1)))
        return adapted


class Correction(nn.Linear):
    """A linear map that begins at zero."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)


@component("transfer", StudentAdapterConfig)
class StudentAdapter(SoftLabelStrategy):
    """An adapter `y_SA = y_F + MLP(y_F)` follows the labels; the student is distilled from it, without gradient to it.

    `L_SA = h(y_SA, y)` trains the adapter alone, on labels newer than the teacher, with an optimiser of its own;
    `L_sa = h(y_D', sg(y_SA))` is added to the student's loss. The gate compares the adapter with the bare teacher:
    where the teacher is fresh, correcting it by few labels is worse than leaving it.

    Paper: ExFM (arXiv 2502.17494), Student Adapter.
    Differs: a residual map that begins as the identity. Adapter and student step together, so the student's target is
        the adapter as it was before it saw the batch's labels: it cannot pass them on. Other measurements found harm
        with a fresh teacher, over several epochs and without an auxiliary head; hence one pass, `head=auxiliary` as
        the default, and the gate.
    """

    def __init__(self, config: StudentAdapterConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.options = config
        self.adapter: nn.Module = nn.Identity()
        self.head: nn.Module | None = None

    def prepare(self, student: nn.Module, embeddings: EmbeddingTables) -> None:
        """Makes the adapter, and the head if it has one."""
        options, tasks = self.options, len(self.tasks)
        head = head_for(student, options.hidden, tasks, options.beta)
        self.adapter = Adapter(tasks, options.adapter_hidden, head.norm.normalized_shape[0] if options.context else 0)
        self.head = head if options.head == "auxiliary" else None

    def optimizers(self) -> Iterable[torch.optim.Optimizer]:
        groups = [{"params": list(self.adapter.parameters()), "lr": self.options.adapter_lr}]
        if self.head is not None:
            groups.append({"params": list(self.head.parameters()), "lr": self.options.lr})
        return (torch.optim.AdamW(groups, weight_decay=0.0),)

    def loss(self, student: Outputs, teacher: Answers | None, batch: Batch) -> Tensor:
        """Shape: logits (B, P), readout (B, R) -> ()."""
        assert teacher is not None
        adapted = self.adapter(teacher.logits, teacher.known, student.readout)
        newer = teacher.known * (teacher.ages > 0).float().unsqueeze(1) * self.settled(batch)
        fit = soft_loss(adapted, batch.labels, self.counted(newer * batch.masks, batch.weights))
        target = torch.sigmoid(adapted.detach())
        logits = student.logits if self.head is None else self.head(student.readout)
        losses = soft_loss(logits, target, self.counted(teacher.known, batch.weights))
        return self.summed(fit) + self.options.weight * self.gated(losses, adapted, teacher.logits, batch, newer)
