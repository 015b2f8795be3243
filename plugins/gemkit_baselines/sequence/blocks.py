"""Fixed blocks: each event sees the events of its own block."""

from __future__ import annotations

import dataclasses

import numpy as np
from gemkit_kernels.chunk_attention import chunk_attention
from torch import Tensor
from torch.nn import functional as F

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.interfaces import BuildContext, Events
from gemkit.nn.attention import attention
from gemkit.nn.jagged import ChunkPlan, from_chunks, to_chunks
from gemkit_baselines.sequence.layer import AttentionConfig, AttentionEncoder
from gemkit_baselines.sequence.local import cls_attention, cls_attention_jagged, local_plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class BlocksConfig(AttentionConfig):
    """Options of one layer."""

    name: str = "blocks"
    block_size: int = option(64, "Events of a block.", ge=1, le=4096)
    align: str = option(
        "newest",
        "Which end of the history its full blocks start from. `oldest` keeps blocks fixed as events "
        "arrive (cacheable).",
        choices=("newest", "oldest"),
    )
    qk_norm: bool = option(True, "RMSNorm of each head's queries and keys, before rotary positions.")


@component("sequence", BlocksConfig)
class Blocks(AttentionEncoder):
    """Self-attention inside fixed, non-overlapping blocks of each history, at cost O(T * block).

    A block sees nothing but itself. CLS tokens see all events of their history, at cost O(T * S); no event sees them.

    Paper: Meta's GEM post of 2026-08-03, where 64-event blocks with QK-norm took the place of a sliding window.
    Differs: the post has no equations and says nothing of CLS tokens: pre-norm residuals, rotary positions inside
        blocks, the age of an event in the first layer, and what CLS tokens see are our reading.
    """

    def __init__(self, config: BlocksConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.block_size, self.align = config.block_size, config.align

    def plan(self, lengths: np.ndarray) -> ChunkPlan:
        """The blocks of all histories, one after another."""
        return local_plan(lengths, self.block_size, self.align)

    def attend(self, qkv: Tensor, cls: Tensor, events: Events) -> tuple[Tensor, Tensor]:
        """Shape: (T, 3 D), cls (U, S, 3 D) -> (T, D), (U, S, D)."""
        plan: ChunkPlan = events.layout.plan
        if qkv.is_cuda:
            return self.attend_jagged(qkv, events), cls_attention_jagged(cls, qkv, events.offsets, self.num_heads)
        # Chunks of one shape, whose places are known already, serve the CLS tokens too.
        blocks = to_chunks(qkv, plan)
        mixed = from_chunks(attention(blocks, plan.valid, self.num_heads), plan)
        return mixed, cls_attention(cls, blocks, plan, self.num_heads)

    def attend_jagged(self, qkv: Tensor, events: Events) -> Tensor:
        """The events' part of `attend`, without padding. Shape: (T, 3 D) -> (T, D)."""
        valid: Tensor = events.layout.plan.valid
        starts = F.pad(valid.sum(1).cumsum(0), (1, 0))
        mixed, _ = chunk_attention(qkv, starts, valid.shape[1], self.num_heads)
        return mixed
