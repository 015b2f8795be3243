"""What `jagged_attention` is."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from gemkit_kernels.rotary import turns


def visible(length: int, causal: bool, window: int, both_sides: bool, num_global: int) -> Tensor:
    """Which rows of a history each of its rows sees. Shape: (L, L) bool, seeing rows first."""
    row = torch.arange(length)
    distance = row.unsqueeze(1) - row
    seen = torch.ones(length, length, dtype=torch.bool)
    if window:
        seen &= distance.abs() < window
    if causal or (window and not both_sides):
        seen &= distance >= 0
    is_global = row >= length - num_global
    return seen | is_global | is_global.unsqueeze(1)


def jagged_attention_reference(
    qkv: Tensor,
    offsets: Tensor,
    num_heads: int,
    causal: bool = False,
    window: int = 0,
    both_sides: bool = False,
    num_global: int = 0,
    rotary: bool = True,
) -> Tensor:
    """History by history and head by head. Shape: as `jagged_attention`."""
    dim = qkv.shape[1] // 3
    head_dim = dim // num_heads
    mixed = [qkv.new_empty(0, dim)]
    for start, end in zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True):
        seen = visible(end - start, causal, window, both_sides, num_global).to(qkv.device)
        for_heads = []
        for h in range(num_heads):
            q, k, v = qkv[start:end].view(-1, 3, num_heads, head_dim)[:, :, h].unbind(1)
            if rotary:
                q, k = _turned(q), _turned(k)
            scores = (q @ k.t() / math.sqrt(head_dim)).masked_fill(~seen, -torch.inf)
            for_heads.append(scores.softmax(-1) @ v)
        mixed.append(torch.cat(for_heads, dim=1))
    return torch.cat(mixed)


def _turned(x: Tensor) -> Tensor:
    """Rotary positions from the history's first row on. Shape: (L, E) -> (L, E)."""
    cos, sin = turns(x.shape[0], x.shape[1] // 2, x.device, x.dtype)
    a, b = x[:, 0::2], x[:, 1::2]
    return torch.stack([a * cos - b * sin, a * sin + b * cos], dim=-1).flatten(-2)
