"""What `chunk_attention` is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gemkit_kernels.rotary import turns

EPS = 1e-6
"""Added to the mean square in QK-norm."""


def rms_norm(x: Tensor, gain: Tensor) -> Tensor:
    """Shape: (..., E), gain (E,) -> (..., E)."""
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + EPS) * gain


def turned(x: Tensor) -> Tensor:
    """Rotary positions from the chunk's first row on. Shape: (L, E) -> (L, E)."""
    cos, sin = turns(x.shape[0], x.shape[1] // 2, x.device, x.dtype)
    a, b = x[:, 0::2], x[:, 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)


def chunk_attention_reference(
    qkv: Tensor,
    starts: Tensor,
    num_heads: int,
    rotary: bool = True,
    norm_gains: Tensor | None = None,
    ages: Tensor | None = None,
    age_slopes: Tensor | None = None,
    summary_queries: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Chunk by chunk and head by head, as `chunk_attention` describes it.

    Shape: as `chunk_attention`; summaries (K, 0, D) without summary queries.
    """
    dim = qkv.shape[1] // 3
    head_dim = dim // num_heads
    scale = 1 / math.sqrt(head_dim)
    num_summaries = 0 if summary_queries is None else summary_queries.shape[0]
    out = qkv.new_empty(qkv.shape[0], num_heads, head_dim)
    summaries = qkv.new_zeros(starts.shape[0] - 1, num_summaries, num_heads, head_dim)
    rows_out, rows_summary = [], []
    for start, end in zip(starts[:-1].tolist(), starts[1:].tolist(), strict=True):
        heads, pooled = [], []
        for h in range(num_heads):
            q, k, v = qkv[start:end].view(-1, 3, num_heads, head_dim)[:, :, h].unbind(1)
            if norm_gains is not None:
                q, k = rms_norm(q, norm_gains[0]), rms_norm(k, norm_gains[1])
            scores = (turned(q) @ turned(k).t() if rotary else q @ k.t()) * scale
            if ages is not None and age_slopes is not None:
                between = (ages[start:end].unsqueeze(1) - ages[start:end]).abs()
                scores = scores + age_slopes[h] * torch.log1p(between)
            heads.append(scores.softmax(-1) @ v)
            if summary_queries is not None and end > start:
                query = summary_queries.view(-1, num_heads, head_dim)[:, h]
                pooled.append((query @ k.t() * scale).softmax(-1) @ v)
        rows_out.append(torch.stack(heads, dim=1))
        rows_summary.append(torch.stack(pooled, dim=1) if pooled else summaries[0])
    if rows_out:
        out, summaries = torch.cat(rows_out), torch.stack(rows_summary)
    return out.flatten(1), summaries.flatten(2)
