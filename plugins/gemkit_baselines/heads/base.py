"""What the heads have in common: labels of 0 and 1, and the loss that goes with them."""

from __future__ import annotations

import dataclasses
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemkit.config.fields import Config, option
from gemkit.data.batch import Batch
from gemkit.errors import GemkitError
from gemkit.interfaces import BuildContext, Head
from gemkit_baselines.heads.late import KINDS, late_labels


@dataclasses.dataclass(frozen=True, kw_only=True)
class BinaryHeadConfig(Config):
    """Options of all heads of tasks with two outcomes."""

    late_labels: str = option(
        "naive",
        "For tasks with a delay, what a label of 0 means that is not final (data.labels_as_of): a no; not yet, after "
        "exponential delays; or in none of the windows that are over.",
        choices=KINDS,
    )
    windows_s: tuple[float, ...] = option(
        (3_600.0, 86_400.0, 604_800.0), "With `windows`, where each ends, in seconds; later counts as never.", gt=0
    )

    def check(self) -> None:
        if not self.windows_s or any(a >= b for a, b in pairwise(self.windows_s)):
            raise GemkitError(
                f"windows_s = {list(self.windows_s)} are no windows that follow each other",
                where="windows_s",
                allowed="one end or more, ascending",
                fix="windows_s=[3600,86400,604800]",
            )


class BinaryHead(Head):
    """A head of tasks with two outcomes, each with masked binary cross-entropy, or a likelihood that knows of delays.

    The loss of a task is the weighted mean over the examples whose label counts; a task without any in the
    batch adds nothing. Task weights come from the schema.

    Attributes:
        num_scores: M, scores that `forward` makes for each task; `arranged` puts them in order.
    """

    task_weights: Tensor
    delayed: Tensor

    def __init__(self, config: BinaryHeadConfig, context: BuildContext) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(context.readout_dim)
        tasks = context.schema.tasks
        self.register_buffer("task_weights", torch.tensor([task.weight for task in tasks]), persistent=False)
        self.register_buffer("delayed", torch.tensor([task.delay is not None for task in tasks]), persistent=False)
        self.late = late_labels(config.late_labels, config.windows_s)
        self.num_scores = 1 if self.late is None else self.late.num_scores
        if self.late is not None and not any(task.delay for task in tasks):
            raise GemkitError(
                f"late_labels={config.late_labels} needs a task whose labels come with a delay; "
                f"data set {context.schema.name!r} has none",
                where="head.late_labels",
                allowed="naive, for such data",
                fix="head.late_labels=naive, or name the column of the delay in the data set's task",
            )

    def arranged(self, scores: Tensor) -> Tensor:
        """Scores of all tasks, one task after the other. Shape: (B, P * M) -> (B, P), or (B, P, M)."""
        return scores if self.late is None else scores.unflatten(-1, (-1, self.num_scores))

    def logits(self, scores: Tensor) -> Tensor:
        """What is served. Shape: (B, P) or (B, P, M) -> (B, P)."""
        if self.late is None:
            return scores
        return torch.where(self.delayed, self.late.logits(scores), scores[..., 0])

    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """Shape: (B, P) or (B, P, M) -> ()."""
        counts = batch.masks * batch.weights.unsqueeze(-1)
        losses = self._losses(scores.float(), batch)
        totals = counts.sum(0) if batch.totals is None else batch.totals
        means = (losses * counts).sum(0) / totals.clamp(min=1e-12)
        return (means * self.task_weights).sum()

    def _losses(self, scores: Tensor, batch: Batch) -> Tensor:
        at_once = scores if self.late is None else scores[..., 0]
        losses = F.binary_cross_entropy_with_logits(at_once, batch.labels, reduction="none")
        return losses if self.late is None else torch.where(self.delayed, self.late.losses(scores, batch), losses)
