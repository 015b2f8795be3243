"""The honest alternative to cheap attention: every event sees every other of its history."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from gemkit_kernels.jagged_attention import has_kernels, jagged_attention
from torch import Tensor
from torch.nn import functional as F

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.interfaces import BuildContext, Events
from gemkit.nn.attention import attention
from gemkit.nn.packed import pack, unpack
from gemkit_baselines.sequence.buckets import BucketPlan, bucket_plan, from_buckets, to_buckets, valid_slots
from gemkit_baselines.sequence.layer import AttentionConfig, AttentionEncoder


@dataclasses.dataclass(frozen=True, kw_only=True)
class TransformerConfig(AttentionConfig):
    """Options of one layer."""

    name: str = "transformer"
    causal: bool = option(False, "Events see themselves and older ones only; CLS tokens see all, and all see them.")


@component("sequence", TransformerConfig)
class Transformer(AttentionEncoder):
    """Full self-attention over the events and CLS tokens of each history, at cost O(L^2).

    Kernels for jagged histories compute it where there are some, elsewhere PyTorch does, in buckets of like lengths.

    Paper: Attention Is All You Need (arXiv 1706.03762), section 3.1, with the norms of arXiv 2002.04745 and the
        rotary positions of arXiv 2104.09864; the Sequence Arch of InterFormer (arXiv 2411.09852) without its PFFN.
    Differs: CLS tokens stand after the newest event; the age of an event is added in the first layer.
    """

    def __init__(self, config: TransformerConfig, context: BuildContext) -> None:
        super().__init__(config, context)
        self.causal = config.causal

    def plan(self, lengths: np.ndarray) -> BucketPlan:
        """Histories of about one length side by side."""
        return bucket_plan(lengths)

    def attend(self, qkv: Tensor, cls: Tensor, events: Events) -> tuple[Tensor, Tensor]:
        """Shape: (T, 3 D), cls (U, S, 3 D) -> (T, D), (U, S, D)."""
        if has_kernels(qkv, self.num_heads):
            return self.attend_jagged(qkv, cls, events)
        plan: BucketPlan = events.layout.plan
        buckets = zip(to_buckets(qkv, cls, plan), valid_slots(plan), strict=True)
        mixed = [attention(b, self._visible(valid, cls.shape[1]), self.num_heads) for b, valid in buckets]
        return from_buckets(mixed, plan)

    def attend_jagged(self, qkv: Tensor, cls: Tensor, events: Events) -> tuple[Tensor, Tensor]:
        """The same in one call, without buckets. Shape: as `attend`."""
        num_cls = cls.shape[1]
        rows, offsets = pack(qkv, cls, events.offsets) if num_cls else (qkv, events.offsets)
        longest = events.layout.max_length + num_cls
        mixed = jagged_attention(rows, offsets, longest, self.num_heads, causal=self.causal, num_global=num_cls)
        return unpack(mixed, events.offsets, num_cls)

    def _visible(self, valid: Tensor, num_cls: int) -> Tensor:
        """What the tokens of a bucket may see. Shape: (R, L) -> (R, L + S), or (R, L + S, L + S) if that differs."""
        valid = F.pad(valid, (0, num_cls), value=True)
        # Softmax needs a slot in every row: where there is none, padding sees padding.
        if not self.causal:
            return valid | ~valid.any(-1, keepdim=True)
        slot = torch.arange(valid.shape[1], device=valid.device)
        older = (slot <= slot.unsqueeze(1)) | (slot >= valid.shape[1] - num_cls)
        return (valid.unsqueeze(1) & older) | (slot == slot.unsqueeze(1))
