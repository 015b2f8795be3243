"""`chunk_attention` in PyTorch: chunks side by side, one call of PyTorch's own attention."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional as F

from gemkit_kernels.chunk_attention.reference import rms_norm
from gemkit_kernels.packing import pad, slots, unpad
from gemkit_kernels.rotary import complex_turns, rotate


def chunk_attention_pytorch(
    qkv: Tensor,
    starts: Tensor,
    size: int,
    num_heads: int,
    rotary: bool = True,
    norm_gains: Tensor | None = None,
    ages: Tensor | None = None,
    age_slopes: Tensor | None = None,
    summary_queries: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Shape: as `chunk_attention`; summaries (K, 0, D) without summary queries."""
    total, dim = qkv.shape[0], qkv.shape[1] // 3
    head_dim = dim // num_heads
    where = slots(starts, size, total)
    count = where.valid.shape[0]
    if total == 0:
        num_summaries = 0 if summary_queries is None else summary_queries.shape[0]
        return qkv[:, :dim], qkv.new_zeros(count, num_summaries, dim)
    # Softmax needs a slot in every row: an empty chunk sees what stands in its slots.
    seen = where.valid | ~where.valid.any(-1, keepdim=True)
    qk, v = pad(qkv, where).split([2 * dim, dim], dim=-1)
    qk = qk.reshape(count, size, 2 * num_heads, head_dim)
    v = v.view(count, size, num_heads, head_dim).transpose(1, 2)
    if norm_gains is not None:
        gains = norm_gains.repeat_interleave(num_heads, dim=0)
        qk = rms_norm(qk, gains).to(v.dtype)
    flat_keys = qk[:, :, num_heads:]
    if rotary:
        qk = rotate(qk, complex_turns(size, head_dim // 2, qk.device, qk.dtype))
    q, k = qk.view(count, size, 2, num_heads, head_dim).permute(2, 0, 3, 1, 4)
    mask = seen.view(count, 1, 1, size)
    if ages is not None and age_slopes is not None:
        age = pad(ages, where)
        distance = torch.log1p((age.unsqueeze(2) - age.unsqueeze(1)).abs()).unsqueeze(1)
        mask = (age_slopes.view(-1, 1, 1) * distance).masked_fill(~mask, -torch.inf).to(q.dtype)
    out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    rows = unpad(out.transpose(1, 2).reshape(count, size, dim), where)
    if summary_queries is None:
        return rows, qkv.new_zeros(count, 0, dim)
    query = summary_queries.view(-1, num_heads, head_dim).to(v.dtype)
    scores = torch.einsum("mhe,kche->khmc", query, flat_keys) / math.sqrt(head_dim)
    weights = scores.masked_fill(~seen.view(count, 1, 1, size), -torch.inf).softmax(-1)
    pooled = (weights @ v).masked_fill(~where.valid.any(-1).view(count, 1, 1, 1), 0.0)
    return rows, pooled.transpose(1, 2).flatten(2)
