"""What strategies that read soft labels share: the log, a gate, and who says what to the history."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from gemkit.config.fields import option
from gemkit.data.batch import Batch
from gemkit.interfaces import Answers, BuildContext, TransferStrategy
from gemkit.transfer.answers import LogConfig, LoggedAnswers
from gemkit_transfer.gate import Gate, named
from gemkit_transfer.losses import Counted, soft_loss


@dataclasses.dataclass(frozen=True, kw_only=True)
class SoftLabelConfig(LogConfig):
    """Options of all strategies that read soft labels."""

    gate: bool = option(
        False, "Turn the weight down where soft labels predict new examples worse than what they compete with."
    )
    gate_tolerance: float = option(0.02, "Disadvantage in logloss, as a share, at which the gate is shut.", gt=0, le=1)
    gate_half_life: float = option(20.0, "Batches after which a batch counts half for the gate.", gt=0, le=1e6)
    settled_after_s: float = option(
        0.0,
        "Labels that come late (data.labels_as_of) count for gates and adapters from this age on, seconds: a younger 0 "
        "may be a 'not yet'.",
        ge=0,
    )


class SoftLabelStrategy(TransferStrategy):
    """A strategy that reads a teacher log batch by batch. Derive from it and write `loss`."""

    task_weights: Tensor
    late: Tensor
    """(P,) bool: tasks whose labels come later than their examples."""
    sums: Tensor
    """Since the last report: examples, those with an answer, and the days that their teachers were behind."""

    def __init__(self, config: SoftLabelConfig, context: BuildContext) -> None:
        super().__init__()
        self.tasks = context.schema.task_names
        self.answers = LoggedAnswers(config.log, context.schema)
        self.gate = Gate(len(self.tasks), config.gate_tolerance, config.gate_half_life) if config.gate else None
        self.settled_after_s = config.settled_after_s
        late = torch.tensor([task.delay is not None for task in context.schema.tasks])
        self.register_buffer("late", late, persistent=False)
        weights = torch.tensor([task.weight for task in context.schema.tasks])
        self.register_buffer("task_weights", weights, persistent=False)
        self.register_buffer("sums", torch.zeros(3))

    def summed(self, losses: Tensor) -> Tensor:
        """The tasks' losses as the serving head adds up its own: a weight of 1 is as much as the labels. Shape: ()."""
        return (losses * self.task_weights).sum()

    def counted(self, known: Tensor, weights: Tensor) -> Counted:
        """What is known, by the weights of the examples. Shape: (B, P), (B,)."""
        each = known * weights.unsqueeze(1)
        return Counted(each, self.mean(each.sum(0)))

    def settled(self, batch: Batch) -> Tensor:
        """1 where a label is old enough to be what it will be. Shape: (B, P)."""
        old = (batch.elapsed >= self.settled_after_s).unsqueeze(1)
        return (old | ~self.late).float()

    def gated(self, losses: Tensor, target: Tensor, rival: Tensor, batch: Batch, known: Tensor) -> Tensor:
        """The tasks' losses, each turned down as far as its gate is shut, summed.

        Args:
            target, rival: Logits (B, P) whose loglosses on new labels the gate compares.
            known: (B, P), where both are there.

        Shape: losses (P,) -> ().
        """
        if self.gate is None:
            return self.summed(losses)
        opening: Tensor = self.gate()  # what earlier batches say: this one shall not choose its own weight
        if self.training and self.fresh:
            counted = self.counted(known * self.settled(batch) * batch.masks, batch.weights)
            ours, theirs = (soft_loss(logits.detach(), batch.labels, counted) for logits in (target, rival))
            ours, theirs = self.mean(torch.stack([ours, theirs])).unbind()
            self.gate.observe(ours, theirs, counted.total)
        return self.summed(opening.detach() * losses)

    @torch.no_grad()
    def answer(self, batch: Batch) -> Answers:
        """What the log says; examples without an answer are counted."""
        answers: Answers = self.answers(batch)
        if self.training:
            known = answers.known.amax(1)
            days = (answers.ages * known).sum() / 86_400
            size = known.new_tensor(float(batch.size))
            self.sums += torch.stack([size, known.sum(), days])
        return answers

    def report(self) -> dict[str, float]:
        """Share of examples with an answer, its mean age, and the gate."""
        asked, answered, days = self.mean(self.sums).tolist()
        self.sums.zero_()
        found = {"transfer/answered": answered / asked} if asked else {}
        found |= {"transfer/teacher_age_days": days / answered} if answered else {}
        return found | (named("gate", self.gate(), self.tasks) if self.gate is not None else {})
