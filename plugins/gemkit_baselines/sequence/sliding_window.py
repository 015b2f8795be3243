"""Each event sees the events just before it."""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import numpy as np
from gemkit_kernels.jagged_attention import has_kernels, jagged_attention
from torch import Tensor

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.interfaces import BuildContext, Events
from gemkit.nn.jagged import ChunkPlan, from_chunks, to_chunks
from gemkit_baselines.sequence.layer import AttentionConfig, AttentionEncoder
from gemkit_baselines.sequence.local import cls_attention, cls_attention_jagged, local_plan, window_attention


@dataclasses.dataclass(frozen=True, kw_only=True)
class SlidingWindowConfig(AttentionConfig):
    """Options of one layer."""

    name: str = "sliding_window"
    window: int = option(64, "W, events that an event sees: itself and the W - 1 before it.", ge=1, le=4096)
    both_sides: bool = option(False, "It also sees the W - 1 after it.")


class WindowPlan(NamedTuple):
    """Chunks of at most W slots, and whether a window reaches over their edge (1) or not (0)."""

    chunks: ChunkPlan
    reach: int


@component("sequence", SlidingWindowConfig)
class SlidingWindow(AttentionEncoder):
    """Self-attention to a window of W events, at cost O(T * W); n layers see n * (W - 1) events back.

    Kernels for jagged histories compute it where there are some, elsewhere PyTorch does, chunk by chunk: a chunk of W
    slots and the one before it hold everything that its events may see. CLS tokens see all events of their history, at
    cost O(T * S); no event sees them.

    Paper: Longformer (arXiv 2004.05150), section 3.1, sliding window attention.
    Differs: by default the window looks back only; rotary positions; the age of an event is added in the first layer;
        the paper's global tokens, which CLS tokens resemble, are seen by all and have projections of their own.
    """

    def __init__(self, config: SlidingWindowConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.window, self.both_sides = config.window, config.both_sides

    def plan(self, lengths: np.ndarray) -> WindowPlan:
        """Chunks as wide as the window, or as the longest history if that is shorter."""
        chunks = local_plan(lengths, self.window)
        return WindowPlan(chunks, int(lengths.max(initial=0) > chunks.gather.shape[1]))

    def attend(self, qkv: Tensor, cls: Tensor, events: Events) -> tuple[Tensor, Tensor]:
        """Shape: (T, 3 D), cls (U, S, 3 D) -> (T, D), (U, S, D)."""
        plan, reach = events.layout.plan
        if has_kernels(qkv, self.num_heads):
            far = cls_attention_jagged(cls, qkv, events.offsets, self.num_heads)
            return self.attend_jagged(qkv, events), far
        chunks = to_chunks(qkv, plan)
        mixed = window_attention(chunks, plan, self.num_heads, self.window, reach, self.both_sides)
        return from_chunks(mixed, plan), cls_attention(cls, chunks, plan, self.num_heads)

    def attend_jagged(self, qkv: Tensor, events: Events) -> Tensor:
        """The events' part of `attend`, without chunks. Shape: (T, 3 D) -> (T, D)."""
        longest = events.layout.max_length
        return jagged_attention(
            qkv, events.offsets, longest, self.num_heads, window=self.window, both_sides=self.both_sides
        )
