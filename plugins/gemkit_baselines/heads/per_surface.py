"""Each surface predicts with weights of its own."""

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
from gemkit_baselines.surfaces import surface_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class PerSurfaceHeadConfig(BinaryHeadConfig):
    """Options of the head."""

    width_field: ClassVar[str | None] = "hidden"

    name: str = "per_surface"
    hidden: tuple[int, ...] = option((128,), "Hidden widths shared by all surfaces and tasks; may be empty.", ge=1)
    tower_hidden: tuple[int, ...] = option(
        (64,), "Hidden widths of each surface's own tower on top of them; empty: a linear map.", ge=1
    )
    dropout: float = option(0.0, "After each hidden layer.", ge=0, lt=1)


@component("head", PerSurfaceHeadConfig)
class PerSurfaceHead(BinaryHead):
    """Shared bottom, then for each surface a tower that ends in one logit for each task.

    An example goes through its own surface's tower only; the others cost it nothing.

    Paper: Caruana's shared bottom (1997) with surfaces in the place of tasks, as STAR (arXiv 2101.11427) compares
        itself with.
    """

    def __init__(self, config: PerSurfaceHeadConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.num_surfaces = len(context.schema.surfaces)
        self.bottom = MLPBank(context.readout_dim, config.hidden, dropout=config.dropout)
        self.towers = MLPBank(
            config.hidden[-1] if config.hidden else context.readout_dim,
            config.tower_hidden,
            len(context.schema.tasks) * self.num_scores,
            num_inputs=self.num_surfaces,
            dropout=config.dropout,
        )

    def forward(self, readout: Tensor, batch: Batch) -> Tensor:
        """Shape: (B, R) -> (B, P), or (B, P, M)."""
        shared = self.bottom(self.norm(readout).unsqueeze(0)).squeeze(0)
        blocks = surface_blocks(batch.surface, self.num_surfaces)
        return self.arranged(blocks.unpack(self.towers(blocks.pack(shared), blocks.owner)))
