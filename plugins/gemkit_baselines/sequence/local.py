"""Attention to a neighbourhood, chunk by chunk, and CLS tokens that see the whole history."""

from __future__ import annotations

import math

import numpy as np
import torch
from gemkit_kernels.jagged_pool import jagged_pool
from torch import Tensor
from torch.nn import functional as F

from gemkit.nn.attention import rotate, turns
from gemkit.nn.jagged import ChunkPlan, chunk_plan, segment_sum
from gemkit.nn.packed import pack


def local_plan(lengths: np.ndarray, size: int, align: str = "newest") -> ChunkPlan:
    """Chunks of `size` slots, or of fewer where no history of the batch fills them; whole 16s keep shapes few."""
    longest = -(-int(lengths.max(initial=0)) // 16) * 16
    return chunk_plan(lengths, min(size, max(longest, 16)), align)


def window_attention(
    chunks: Tensor, plan: ChunkPlan, num_heads: int, window: int, reach: int, both_sides: bool
) -> Tensor:
    """Attention with rotary positions to the events that are less than `window` away, older or (`both_sides`) newer.

        chunks of a history       [ . . a b ] [ c d e f ] [ g h i j ]
        what the last one sees                [ c d e f ] [ g h i j ]       reach = 1, window <= 4

    Args:
        chunks: Queries, keys and values side by side.
        reach: Neighbouring chunks, 0 or 1, into which windows reach.

    Shape: (K, C, 3 D) -> (K, C, D).
    """
    count, size, width = chunks.shape
    dim, head_dim = width // 3, width // 3 // num_heads
    near = range(-reach, reach + 1 if both_sides else 1)
    q, kv = chunks.split([dim, 2 * dim], dim=-1)
    kv = torch.cat([torch.roll(kv, -by, 0) for by in near], dim=1)
    k, v = kv.view(count, kv.shape[1], 2, num_heads, head_dim).unbind(2)
    turn = turns(kv.shape[1], head_dim // 2, chunks.device)
    own = slice(reach * size, (reach + 1) * size)
    q, k = rotate(q.reshape(count, size, num_heads, head_dim), turn[own]), rotate(k, turn)

    slot = torch.arange(kv.shape[1], device=chunks.device)
    distance = slot[own, None] - slot
    inside = (distance < window) & (distance > (-window if both_sides else -1))
    # Padding sees itself, for softmax needs a slot in every row.
    valid = torch.cat([_valid(plan, by) for by in near], dim=1).unsqueeze(1)
    visible = (valid & inside) | (distance == 0)
    q, k, v = (x.transpose(1, 2) for x in (q, k, v))
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=visible.unsqueeze(1))
    return mixed.transpose(1, 2).reshape(count, size, dim)


def _valid(plan: ChunkPlan, by: int) -> Tensor:
    """Which slots of the chunk `by` places further hold an event of the same history. Shape: (K, C) bool."""
    if by == 0:
        return plan.valid
    count = plan.owner.shape[0]
    place = torch.arange(count, device=plan.owner.device) + by
    same = (torch.roll(plan.owner, -by, 0) == plan.owner) & (place >= 0) & (place < count)
    return torch.roll(plan.valid, -by, 0) & same.unsqueeze(1)


def cls_attention(cls: Tensor, chunks: Tensor, plan: ChunkPlan, num_heads: int) -> Tensor:
    """CLS tokens attend to all events of their history and to each other, without positions: they stand nowhere.

    Costs O(T * S): softmax over a history in two steps, chunk by chunk and then over its chunks.

    Args:
        cls: Queries, keys and values of the CLS tokens, side by side.
        chunks: Those of the events.

    Shape: (U, S, 3 D), (K, C, 3 D) -> (U, S, D).
    """
    histories, num_cls, width = cls.shape
    if num_cls == 0:
        return cls.new_zeros(histories, 0, width // 3)
    invalid = ~plan.valid.unsqueeze(1)
    owner = plan.owner.unsqueeze(1).expand(-1, num_cls)
    mixed = []
    for (q, k, v), (_, far_k, far_v) in zip(_heads(cls, num_heads), _heads(chunks, num_heads), strict=True):
        q = q / math.sqrt(q.shape[-1])
        near = q @ k.transpose(1, 2)
        far = (q.index_select(0, plan.owner) @ far_k.transpose(1, 2)).masked_fill(invalid, -torch.inf)
        peak = near.detach().amax(-1).scatter_reduce(0, owner, far.detach().amax(-1), "amax").unsqueeze(-1)
        near, far = (near - peak).exp(), (far - peak.index_select(0, plan.owner)).exp()
        total = near.sum(-1, keepdim=True) + segment_sum(far.sum(-1, keepdim=True), plan.owner, histories)
        mixed.append((near @ v + segment_sum(far @ far_v, plan.owner, histories)) / total)
    return torch.cat(mixed, dim=-1)


def cls_attention_jagged(cls: Tensor, qkv: Tensor, offsets: Tensor, num_heads: int) -> Tensor:
    """`cls_attention` without chunks, for GPUs: the CLS tokens pool the rows of their history, themselves among these.

    Shape: (U, S, 3 D), (T, 3 D), (U+1,) -> (U, S, D).
    """
    num_cls, dim = cls.shape[1], cls.shape[2] // 3
    if num_cls == 0:
        return cls.new_zeros(cls.shape[0], 0, dim)
    rows, offsets = pack(qkv[:, dim:], cls[..., dim:], offsets)
    return jagged_pool(cls[..., :dim], rows[:, :dim], rows[:, dim:], offsets, num_heads)


def _heads(qkv: Tensor, num_heads: int) -> list[tuple[Tensor, ...]]:
    """Queries, keys and values of each head. Shape: (n, tokens, 3 D) -> (n, tokens, E) each."""
    q, k, v = (part.chunk(num_heads, dim=-1) for part in qkv.chunk(3, dim=-1))
    return list(zip(q, k, v, strict=True))
