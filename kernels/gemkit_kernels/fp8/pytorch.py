"""`fp8_quantise` and `fp8_dequantise` in PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gemkit_kernels.fp8.reference import KIND, SIDE


def power_of_two_scale(largest: Tensor) -> Tensor:
    """The least power of two with `largest <= 448 * scale`; at least 2^-126. `largest` is fp32, finite, not negative.

    In the bits of a float: 448 is 1.75 * 2^8, so the exponent goes down by 8, and up again above a fraction of 1.75.
    """
    exponent = ((largest.view(torch.int32) + 0x1FFFFF) >> 23) - 8
    return (exponent.clamp(min=1) << 23).view(torch.float32)


def fp8_quantise_pytorch(x: Tensor, tiled: bool = False) -> tuple[Tensor, Tensor]:
    """Shape: as `fp8_quantise`."""
    wide = x.float()
    size = wide.abs().masked_fill(~wide.isfinite(), 0.0)
    if not tiled:
        scales = power_of_two_scale(size.amax(1) if x.shape[1] else size.new_zeros(x.shape[0]))
        return _cast(wide / scales.unsqueeze(1)), scales
    rows, width = x.shape
    blocks = F.pad(size, (0, -width % SIDE, 0, -rows % SIDE))
    blocks = blocks.view(blocks.shape[0] // SIDE, SIDE, blocks.shape[1] // SIDE, SIDE)
    scales = power_of_two_scale(blocks.amax((1, 3)))
    return _cast(wide / _spread(scales, rows, width)), scales


def fp8_dequantise_pytorch(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Shape: as `fp8_dequantise`."""
    wide = values.float() * (scales.unsqueeze(1) if scales.dim() == 1 else _spread(scales, *values.shape))
    most = torch.finfo(dtype).max
    return wide.clamp(-most, most).to(dtype)


def _cast(scaled: Tensor) -> Tensor:
    # What is finite fits. PyTorch casts infinity to NaN or to the largest number, depending on its version.
    return scaled.masked_fill(scaled.isinf(), torch.nan).to(KIND)


def _spread(scales: Tensor, rows: int, width: int) -> Tensor:
    return scales.repeat_interleave(SIDE, 0)[:rows].repeat_interleave(SIDE, 1)[:, :width]
