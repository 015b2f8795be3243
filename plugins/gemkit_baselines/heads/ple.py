"""Progressive layered extraction: experts of each task's own beside shared ones, level on level."""

from __future__ import annotations

import dataclasses
import functools
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
class PLEHeadConfig(BinaryHeadConfig):
    """Options of the head."""

    width_field: ClassVar[str | None] = "expert_hidden"

    name: str = "ple"
    num_levels: int = option(2, "Levels of extraction; 1 is the paper's CGC.", ge=1, le=64)
    num_task_experts: int = option(2, "Experts of each task's own, in each level.", ge=1, le=1024)
    num_shared_experts: int = option(2, "Experts that all tasks share, in each level.", ge=1, le=1024)
    expert_hidden: tuple[int, ...] = option((64,), "Widths of each expert, a ReLU after each.", ge=1, filled=True)
    tower_hidden: tuple[int, ...] = option((64,), "Hidden widths of each task's tower; empty: a linear map.", ge=1)
    dropout: float = option(0.0, "After each hidden layer.", ge=0, lt=1)


class ExtractionLevel(nn.Module):
    """Every task mixes its own experts and the shared ones; the shared side, unless it ends here, mixes them all.

    Paper: Tang et al. (RecSys 2020), customized gate control.

    Args:
        num_inputs: P, or 1 where all tasks read the same.

    Shape: tasks (num_inputs, B, dim_in), shared (1, B, dim_in) -> (P, B, width), (1, B, width).
    """

    def __init__(self, config: PLEHeadConfig, num_tasks: int, num_inputs: int, dim_in: int, is_last: bool) -> None:
        super().__init__()
        self.num_own = config.num_task_experts
        hidden, num_shared, num_readers = config.expert_hidden, config.num_shared_experts, num_tasks // num_inputs
        banks = functools.partial(MLPBank, dim_in, dropout=config.dropout)
        self.own = banks(hidden, num_inputs=num_inputs, per_input=num_readers * self.num_own)
        self.shared = banks(hidden, per_input=num_shared)
        self.gates = MLPBank(
            dim_in, (), self.num_own + num_shared, num_inputs=num_inputs, per_input=num_readers, bias=False
        )
        num_all = num_tasks * self.num_own + num_shared
        self.shared_gate = None if is_last else nn.Linear(dim_in, num_all, bias=False)

    def forward(self, tasks: Tensor, shared: Tensor) -> tuple[Tensor, Tensor]:
        own_experts, shared_experts = self.own(tasks), self.shared(shared)
        to_own, to_shared = self.gates(tasks).softmax(-1).tensor_split([self.num_own], dim=-1)
        # Not an einsum: that would be B small products of one row each.
        mixed = (to_own.transpose(1, 2).unsqueeze(-1) * own_experts.unflatten(0, (-1, self.num_own))).sum(1)
        mixed = mixed + torch.einsum("pbe,ebh->pbh", to_shared, shared_experts)
        if self.shared_gate is not None:
            to_all = self.shared_gate(shared).softmax(-1)
            shared = torch.einsum("sbe,ebh->sbh", to_all, torch.cat([own_experts, shared_experts]))
        return mixed, shared


@component("head", PLEHeadConfig)
class PLEHead(BinaryHead):
    """Levels of experts, some of each task's own and some shared; each task's gate sees its own and the shared ones.

    `g_k = softmax(W_k x_k) [E_k; E_s]`, where x_k is g_k of the level below. The shared side's gate sees all experts.
    The first level reads the readout everywhere; a tower on each task's last g_k gives its logit.

    Paper: Tang et al., Progressive Layered Extraction (RecSys 2020).
    Differs: the readout goes through a LayerNorm; every level has the same numbers of experts and widths.
    """

    def __init__(self, config: PLEHeadConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        tasks = len(context.schema.tasks)
        width, last = config.expert_hidden[-1], config.num_levels - 1
        self.levels = nn.ModuleList([ExtractionLevel(config, tasks, 1, context.readout_dim, is_last=last == 0)])
        self.levels.extend(
            ExtractionLevel(config, tasks, tasks, width, is_last=level == last) for level in range(1, last + 1)
        )
        self.towers = MLPBank(width, config.tower_hidden, self.num_scores, num_inputs=tasks, dropout=config.dropout)

    def forward(self, readout: Tensor, batch: Batch) -> Tensor:
        """Shape: (B, R) -> (B, P), or (B, P, M)."""
        tasks = shared = self.norm(readout).unsqueeze(0)
        for level in self.levels:
            tasks, shared = level(tasks, shared)
        return self.arranged(self.towers(tasks).transpose(0, 1).flatten(1))
