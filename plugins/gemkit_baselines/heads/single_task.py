"""Nothing shared: one MLP a task."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

from torch import Tensor

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.data.batch import Batch
from gemkit.interfaces import BuildContext
from gemkit_baselines.heads.banks import MLPBank
from gemkit_baselines.heads.base import BinaryHead, BinaryHeadConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class SingleTaskHeadConfig(BinaryHeadConfig):
    """Options of the head."""

    width_field: ClassVar[str | None] = "hidden"

    name: str = "single_task"
    hidden: tuple[int, ...] = option((128, 64), "Hidden widths of each task's MLP.", ge=1)
    dropout: float = option(0.0, "After each hidden layer.", ge=0, lt=1)


@component("head", SingleTaskHeadConfig)
class SingleTaskHead(BinaryHead):
    """One MLP on the readout for each task.

    Paper: none; single-task learning, what papers on multi-task learning compare with.
    Differs: the tasks share the readout and its LayerNorm; what follows is each task's own.
    """

    def __init__(self, config: SingleTaskHeadConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        tasks = len(context.schema.tasks)
        self.towers = MLPBank(
            context.readout_dim, config.hidden, self.num_scores, per_input=tasks, dropout=config.dropout
        )

    def forward(self, readout: Tensor, batch: Batch) -> Tensor:
        """Shape: (B, R) -> (B, P), or (B, P, M)."""
        towers = self.towers(self.norm(readout).unsqueeze(0))
        return self.arranged(towers.transpose(0, 1).flatten(1))
