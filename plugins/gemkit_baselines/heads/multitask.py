"""The plain head: a bottom that all tasks share, then one logit a task."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.data.batch import Batch
from gemkit.errors import GemkitError
from gemkit.interfaces import BuildContext
from gemkit.nn.layers import mlp
from gemkit_baselines.heads.banks import MLPBank
from gemkit_baselines.heads.base import BinaryHead, BinaryHeadConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class MultiTaskHeadConfig(BinaryHeadConfig):
    """Options of the head."""

    width_field: ClassVar[str | None] = "hidden"

    name: str = "multitask"
    hidden: tuple[int, ...] = option((128, 64), "Hidden widths shared by all tasks.", ge=1)
    tower_hidden: tuple[int, ...] = option(
        (), "Hidden widths of each task's own tower on top of them; empty: a linear map.", ge=1
    )
    dropout: float = option(0.0, "After each hidden layer.", ge=0, lt=1)

    def check(self) -> None:
        super().check()
        if self.tower_hidden and not self.hidden:
            raise GemkitError(
                "hidden is empty, and towers need a bottom to stand on",
                where="hidden",
                allowed="one width or more, with tower_hidden",
                fix="head=single_task, where tasks share nothing",
            )


@component("head", MultiTaskHeadConfig)
class MultiTaskHead(BinaryHead):
    """Shared bottom: an MLP on the readout, then a linear map or a tower for each task.

    Paper: Caruana, Multitask Learning (1997), hard parameter sharing.
    """

    def __init__(self, config: MultiTaskHeadConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        dim, tasks = context.readout_dim, len(context.schema.tasks)
        self.has_towers = bool(config.tower_hidden)
        if self.has_towers:
            self.bottom = MLPBank(dim, config.hidden, dropout=config.dropout)
            self.towers = MLPBank(
                config.hidden[-1], config.tower_hidden, self.num_scores, per_input=tasks, dropout=config.dropout
            )
        else:
            self.mlp = mlp(dim, config.hidden, tasks * self.num_scores, config.dropout)

    def forward(self, readout: Tensor, batch: Batch) -> Tensor:
        """Shape: (B, R) -> (B, P), or (B, P, M)."""
        readout = self.norm(readout)
        if self.has_towers:
            scores = self.towers(self.bottom(readout.unsqueeze(0))).transpose(0, 1).flatten(1)
        else:
            scores = self.mlp(readout)
        return self.arranged(scores)
