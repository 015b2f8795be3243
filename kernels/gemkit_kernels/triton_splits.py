"""Splits of jagged segments (see `splits`) in Triton."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gemkit_kernels.splits import num_splits
from gemkit_kernels.tiles import Build

OWNERS_BLOCK, COLUMNS = 256, 256


@triton.jit
def _owners(offsets, out, segments, count, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    """Binary search for the last segment that begins at or before each split."""
    split = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    found = tl.zeros((BLOCK,), tl.int32)
    for i in range(31):
        candidate = found + (1 << (30 - i))
        inside = candidate < segments
        start = tl.load(offsets + candidate, mask=inside, other=0).to(tl.int64)
        found = tl.where(inside & (start // SIZE + candidate <= split), candidate, found)
    tl.store(out + split, found, mask=split < count)


@triton.jit
def split_of(offsets, owners, split, SIZE: tl.constexpr):
    """What a split is.

    Returns:
        Its segment, its number in the segment, its first row, how many rows it has (0 or less: none), and how many the
        segment has.
    """
    segment = tl.load(owners + split).to(tl.int64)
    start = tl.load(offsets + segment).to(tl.int64)
    whole = tl.load(offsets + segment + 1).to(tl.int64) - start
    number = split - (start // SIZE + segment)
    length = tl.minimum(whole - number * SIZE, SIZE).to(tl.int32)
    return segment, number, start + number * SIZE, length, whole


@triton.jit
def splits_of(offsets, segment, SIZE: tl.constexpr):
    """A segment's first split, and how many it fills."""
    start = tl.load(offsets + segment).to(tl.int64)
    whole = tl.load(offsets + segment + 1).to(tl.int64) - start
    return start // SIZE + segment, tl.cdiv(whole, SIZE).to(tl.int32)


@triton.jit
def _add(partial, offsets, out, columns, SIZE: tl.constexpr, BLOCK: tl.constexpr):
    segment = tl.program_id(0).to(tl.int64)
    first, count = splits_of(offsets, segment, SIZE)
    column = tl.program_id(1) * BLOCK + tl.arange(0, BLOCK)
    mask = (column < columns) & (count > 1)
    total = tl.zeros((BLOCK,), tl.float32)
    place = partial + first * columns + column
    for i in range(0, count):
        total += tl.load(place + tl.cast(i, tl.int64) * columns, mask=mask, other=0.0)
    tl.store(out + segment * columns + column, total.to(out.dtype.element_ty), mask=mask)


def owners(offsets: Tensor, size: int, total: int) -> Tensor:
    """Each split's segment. Shape: (U+1,) -> (T // size + U,) int32, with T = `total` and U > 0."""
    segments = offsets.shape[0] - 1
    count = num_splits(total, segments, size)
    out = torch.empty(count, dtype=torch.int32, device=offsets.device)
    _owners[(triton.cdiv(count, OWNERS_BLOCK),)](offsets, out, segments, count, SIZE=size, BLOCK=OWNERS_BLOCK)
    return out


def add_splits(partial: Tensor, offsets: Tensor, size: int, out: Tensor) -> None:
    """Writes the sums of all segments of more than one split, split by split in order; leaves the others.

    Shape: partial (K, ...) fp32, out (U, ...).
    """
    columns = out[0].numel()
    grid = (out.shape[0], triton.cdiv(columns, COLUMNS))
    _add[grid](partial, offsets, out, columns, SIZE=size, BLOCK=COLUMNS)


def split_builds(kind: str, size: int) -> list[Build]:
    """The kernels of this module."""
    search = {"offsets": "*i32", "out": "*i32", "segments": "i32", "count": "i32"}
    add = {"partial": "*fp32", "offsets": "*i32", "out": kind, "columns": "i32"}
    return [
        Build(f"owners of splits of {size}", _owners, search, {"SIZE": size, "BLOCK": OWNERS_BLOCK}, 4),
        Build(f"sums of splits of {size}", _add, add, {"SIZE": size, "BLOCK": COLUMNS}, 4),
    ]
