"""Rotary positions: pair i of a head, values 2i and 2i + 1, turns by `position * 10000^(-i / pairs)`.

Paper: RoFormer (arXiv 2104.09864), equation 34.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

BASE = 10000.0


def turns(length: int, pairs: int, device: torch.device, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Cosines and sines. Shape: (length, pairs) each."""
    frequency = BASE ** (-torch.arange(pairs, device=device, dtype=dtype) / pairs)
    angle = torch.arange(length, device=device, dtype=dtype).unsqueeze(-1) * frequency
    return angle.cos(), angle.sin()


@functools.lru_cache(maxsize=64)
def table(length: int, pairs: int, device: torch.device, dtype: torch.dtype = torch.float32) -> Tensor:
    """Cosines and sines for kernels on tensors of `dtype`, made once. Shape: (2, length, pairs), fp32 or fp16.

    For half precision in fp16, whose eleven bits are more than a bf16 query has: half the bytes to read.
    """
    kind = torch.float32 if dtype == torch.float32 else torch.float16
    with torch.inference_mode(False), torch.no_grad():
        return torch.stack(turns(length, pairs, device)).to(kind)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turns the pairs of each head, in fp32 at least.

    Shape: x (..., C, H, E), turn (C, 1, E / 2) complex -> (..., C, H, E).
    """
    exact = x if x.dtype == torch.float64 else x.float()
    pairs = torch.view_as_complex(torch.unflatten(exact, -1, (-1, 2)))
    return torch.view_as_real(pairs * turn).flatten(-2).to(x.dtype)


def complex_turns(length: int, pairs: int, device: torch.device, dtype: torch.dtype) -> Tensor:
    """The turns as complex numbers: one product is faster on CPUs than four. Shape: (length, 1, pairs)."""
    cos, sin = turns(length, pairs, device, torch.float64 if dtype == torch.float64 else torch.float32)
    return torch.complex(cos, sin).unsqueeze(1)
