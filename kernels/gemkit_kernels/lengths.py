"""Lengths of histories for checks and benchmarks."""

from __future__ import annotations

import math

import torch
from torch import Tensor

ODD = (0, 1, 2, 31, 32, 33, 63, 64, 65, 0, 127, 128, 129, 700, 3, 0)
"""Empty, one event, around the borders of tiles, one long among many short."""


def offsets_of(lengths: list[int] | Tensor) -> Tensor:
    """Shape: (K,) -> (K+1,) int32, from 0 on."""
    counted = torch.as_tensor(lengths, dtype=torch.int64)
    return torch.cat([counted.new_zeros(1), counted.cumsum(0)]).to(torch.int32)


def log_normal(total: int, longest: int, seed: int) -> Tensor:
    """Lengths with mean about `longest` / 4, at most `longest`, that add up to `total`. Shape: (U,)."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.exp(torch.randn(16 * total // longest + 16, generator=generator) + math.log(longest / 4) - 0.5)
    lengths = drawn.round().clamp(1, longest).long()
    ends = lengths.cumsum(0)
    count = int((ends < total).sum()) + 1
    lengths = lengths[:count].clone()
    lengths[-1] -= lengths.sum() - total
    return lengths


def chunk_starts(lengths: Tensor, size: int) -> Tensor:
    """Starts of chunks of `size` rows, the oldest of each history with what is left. Shape: (U,) -> (K+1,)."""
    parts: list[int] = []
    for length in lengths.tolist():
        first = length % size
        parts += [first] * bool(first) + [size] * (length // size)
    return offsets_of(parts)
