"""FP8 casts in Triton: one read, one write, and the scales."""

from __future__ import annotations

from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from gemkit_kernels.fp8.reference import KIND, SIDE
from gemkit_kernels.tiles import Build, pointer, power_of_two

AT_ONCE, AT_ONCE_ODD = 8192, 2048
"""Numbers in one program: with 4 warps eight loads of 16 bytes under way in each thread. Rows of odd width are loaded
number by number, with a mask for each of them.
"""


@triton.jit
def _power_of_two_scale(largest):
    """As `pytorch.power_of_two_scale`; and one over it."""
    exponent = tl.maximum(((largest.to(tl.int32, bitcast=True) + 0x1FFFFF) >> 23) - 8, 1)
    return (exponent << 23).to(tl.float32, bitcast=True), ((254 - exponent) << 23).to(tl.float32, bitcast=True)


@triton.jit(do_not_specialize=["count"])
def _quantise(
    x,
    values,
    scales,
    count,
    width: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILED: tl.constexpr,
    SIDE: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    place = rows[:, None] * width + columns[None, :]
    wide = tl.load(x + place, mask=mask, other=0.0).to(tl.float32)
    size = tl.abs(wide)
    # Neither infinity nor NaN is below infinity.
    finite = size < float("inf")
    size = tl.where(finite, size, 0.0)
    if TILED:
        across: tl.constexpr = COLUMNS // SIDE
        scale, inverse = _power_of_two_scale(tl.max(tl.max(tl.reshape(size, (SIDE, across, SIDE)), 2), 0))
        tiles = tl.program_id(1) * across + tl.arange(0, across)
        in_width: tl.constexpr = (width + SIDE - 1) // SIDE
        tl.store(scales + tl.program_id(0).to(tl.int64) * in_width + tiles, scale, mask=tiles < in_width)
        spread = tl.broadcast_to(inverse[None, :, None], (SIDE, across, SIDE))
        inverse = tl.reshape(spread, (ROWS, COLUMNS))
    else:
        scale, inverse = _power_of_two_scale(tl.max(size, 1))
        tl.store(scales + rows, scale, mask=rows < count)
        inverse = inverse[:, None]
    scaled = tl.where(finite, wide * inverse, float("nan"))
    tl.store(values + place, scaled.to(values.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["count"])
def _dequantise(
    values,
    scales,
    out,
    count,
    width: tl.constexpr,
    most: tl.constexpr,
    ROWS: tl.constexpr,
    COLUMNS: tl.constexpr,
    TILED: tl.constexpr,
    SIDE: tl.constexpr,
):
    rows = tl.program_id(0).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    columns = tl.program_id(1) * COLUMNS + tl.arange(0, COLUMNS)
    mask = (rows < count)[:, None] & (columns < width)[None, :]
    place = rows[:, None] * width + columns[None, :]
    wide = tl.load(values + place, mask=mask, other=0.0).to(tl.float32)
    if TILED:
        across: tl.constexpr = COLUMNS // SIDE
        tiles = tl.program_id(1) * across + tl.arange(0, across)
        in_width: tl.constexpr = (width + SIDE - 1) // SIDE
        scale = tl.load(scales + tl.program_id(0).to(tl.int64) * in_width + tiles, mask=tiles < in_width, other=1.0)
        scale = tl.reshape(tl.broadcast_to(scale[None, :, None], (SIDE, across, SIDE)), (ROWS, COLUMNS))
    else:
        scale = tl.load(scales + rows, mask=rows < count, other=1.0)[:, None]
    wide = tl.clamp(wide * scale, -most, most, propagate_nan=tl.PropagateNan.ALL)
    tl.store(out + place, wide.to(out.dtype.element_ty), mask=mask)


def _block(width: int, tiled: bool, whole_rows: bool) -> tuple[int, int]:
    """Rows and columns of one program."""
    at_once = AT_ONCE_ODD if width % 8 else AT_ONCE
    if tiled:
        return SIDE, min(power_of_two(width, SIDE), at_once // SIDE)
    columns = power_of_two(width)
    columns = columns if whole_rows else min(columns, at_once)
    return max(1, at_once // columns), columns


def _warps(block: tuple[int, int]) -> int:
    return max(1, min(16, block[0] * block[1] // 2048)) if block[0] * block[1] > AT_ONCE_ODD else 4


def fp8_quantise_triton(x: Tensor, tiled: bool) -> tuple[Tensor, Tensor]:
    """Shape: as `fp8_quantise`."""
    rows, width = x.shape
    values = torch.empty_like(x, dtype=KIND)
    shape = (-(-rows // SIDE), -(-width // SIDE)) if tiled else (rows,)
    scales = x.new_empty(shape, dtype=torch.float32)
    if x.numel():
        block = _block(width, tiled, whole_rows=True)
        grid = (triton.cdiv(rows, block[0]), triton.cdiv(width, block[1]))
        _quantise[grid](x, values, scales, rows, width, *block, tiled, SIDE, num_warps=_warps(block))
    else:
        scales.fill_(2.0**-126)
    return values, scales


def fp8_dequantise_triton(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Shape: as `fp8_dequantise`."""
    rows, width = values.shape
    tiled = scales.dim() == 2
    out = torch.empty_like(values, dtype=dtype)
    if values.numel():
        block = _block(width, tiled, whole_rows=False)
        grid = (triton.cdiv(rows, block[0]), triton.cdiv(width, block[1]))
        most = torch.finfo(dtype).max
        _dequantise[grid](values, scales, out, rows, width, most, *block, tiled, SIDE, num_warps=_warps(block))
    return out


def builds() -> list[Build]:
    """The shipped blocks: narrow, common and wide rows, and tiles."""
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        for width, tiled in ((17, False), (1024, False), (16384, False), (16383, False), (1024, True)):
            kind, name = pointer(dtype), f"{pointer(dtype)[1:]}, rows of {width}{', tiles' if tiled else ''}"
            constants: dict[str, Any] = {"width": width, "TILED": tiled, "SIDE": SIDE}
            block = _block(width, tiled, whole_rows=True)
            arguments = {"x": kind, "values": "*fp8e4nv", "scales": "*fp32", "count": "i32"}
            constants |= {"ROWS": block[0], "COLUMNS": block[1]}
            found.append(_build(f"quantise, {name}", _quantise, arguments, constants, block))
            block = _block(width, tiled, whole_rows=False)
            arguments = {"values": "*fp8e4nv", "scales": "*fp32", "out": kind, "count": "i32"}
            constants = constants | {"ROWS": block[0], "COLUMNS": block[1], "most": torch.finfo(dtype).max}
            found.append(_build(f"dequantise, {name}", _dequantise, arguments, constants, block))
    return found


def _build(
    name: str, kernel: Any, arguments: dict[str, str], constants: dict[str, Any], block: tuple[int, int]
) -> Build:
    # FP8 in the form of e4m3fn is known from compute capability 8.9 on; the kernels are for 9.0 and later.
    return Build(name, kernel, arguments, constants, _warps(block), architectures=(90,))
