"""Multi-gate mixture of experts."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.data.batch import Batch
from gemkit.interfaces import BuildContext
from gemkit_baselines.heads.banks import MLPBank
from gemkit_baselines.heads.base import BinaryHead, BinaryHeadConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class MMoEHeadConfig(BinaryHeadConfig):
    """Options of the head."""

    width_field: ClassVar[str | None] = "expert_hidden"

    name: str = "mmoe"
    num_experts: int = option(8, "Experts, which all tasks share.", ge=2, le=1024)
    expert_hidden: tuple[int, ...] = option((64,), "Widths of each expert, a ReLU after each.", ge=1, filled=True)
    tower_hidden: tuple[int, ...] = option((64,), "Hidden widths of each task's tower; empty: a linear map.", ge=1)
    dropout: float = option(0.0, "After each hidden layer.", ge=0, lt=1)


@component("head", MMoEHeadConfig)
class MMoEHead(BinaryHead):
    """Experts that all tasks share; each task mixes them with a gate of its own, then goes through its tower.

    `y_k = h_k(sum_i softmax(W_k x)_i f_i(x))`, with experts f, gates W and towers h.

    Paper: Ma et al., Modeling Task Relationships in Multi-task Learning with Multi-gate Mixture-of-Experts (KDD 2018).
    Differs: x is the readout after a LayerNorm.
    """

    def __init__(self, config: MMoEHeadConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        dim, tasks = context.readout_dim, len(context.schema.tasks)
        self.num_tasks = tasks
        self.experts = MLPBank(dim, config.expert_hidden, per_input=config.num_experts, dropout=config.dropout)
        self.gates = nn.Linear(dim, tasks * config.num_experts, bias=False)
        self.towers = MLPBank(
            config.expert_hidden[-1], config.tower_hidden, self.num_scores, num_inputs=tasks, dropout=config.dropout
        )

    def forward(self, readout: Tensor, batch: Batch) -> Tensor:
        """Shape: (B, R) -> (B, P), or (B, P, M)."""
        x = self.norm(readout)
        experts = self.experts(x.unsqueeze(0))
        gates = self.gates(x).unflatten(-1, (self.num_tasks, -1)).softmax(-1)
        towers = self.towers(torch.einsum("bpe,ebh->pbh", gates, experts))
        return self.arranged(towers.transpose(0, 1).flatten(1))
