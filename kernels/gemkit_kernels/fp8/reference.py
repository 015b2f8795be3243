"""What `fp8_quantise` and `fp8_dequantise` are."""

from __future__ import annotations

import math

import torch
from torch import Tensor

SIDE = 32
"""Rows and columns of a tile with one scale."""
LARGEST = 448.0
"""The largest number of `float8_e4m3fn`."""
KIND = torch.float8_e4m3fn


def scale_of(values: list[float]) -> float:
    """The least power of two, and at least 2^-126, that brings the finite `values` into the range of FP8."""
    largest = max([abs(v) for v in values if math.isfinite(v)], default=0.0)
    exponent = -126
    while LARGEST * 2.0**exponent < largest:
        exponent += 1
    return 2.0**exponent


def fp8_quantise_reference(x: Tensor, tiled: bool = False) -> tuple[Tensor, Tensor]:
    """Block by block, as `fp8_quantise` describes it. Shape: (R, W) -> (R, W), (R,) or the tiles' (R', W')."""
    rows, width = x.shape
    height, across = (SIDE, SIDE) if tiled else (1, max(width, 1))
    scales = x.new_zeros(-(-rows // height), -(-width // across) if tiled else 1, dtype=torch.float32)
    values = torch.empty(rows, width, dtype=KIND)
    for i, j in ((i, j) for i in range(scales.shape[0]) for j in range(scales.shape[1])):
        block = slice(i * height, (i + 1) * height), slice(j * across, (j + 1) * across)
        scales[i, j] = scale_of(x[block].flatten().tolist())
        scaled = x[block].double() / scales[i, j].double()
        values[block] = scaled.masked_fill(scaled.isinf(), torch.nan).float().to(KIND)
    return values, scales if tiled else scales.squeeze(1)


def fp8_dequantise_reference(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Shape: as `fp8_dequantise`."""
    rows, width = values.shape
    if scales.dim() == 2:
        scales = scales.repeat_interleave(SIDE, 0)[:rows].repeat_interleave(SIDE, 1)[:, :width]
    else:
        scales = scales.unsqueeze(1)
    most = torch.finfo(dtype).max
    return (values.double() * scales.double()).clamp(-most, most).to(dtype)
