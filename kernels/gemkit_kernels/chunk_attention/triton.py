"""`chunk_attention` in Triton: which tiles, and how they are started."""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
from torch import Tensor

from gemkit_kernels.chunk_attention.reference import EPS
from gemkit_kernels.chunk_attention.triton_backward import chunk_backward
from gemkit_kernels.chunk_attention.triton_forward import chunk_forward
from gemkit_kernels.rotary import table
from gemkit_kernels.tiles import Build, pointer, power_of_two


def _constants(
    how: Tile,
    size: int,
    num_heads: int,
    head_dim: int,
    summaries: int,
    rotary: bool,
    norm: bool,
    ages: bool,
    dtype: torch.dtype,
) -> dict[str, Any]:
    return {
        "H": num_heads,
        "E": head_dim,
        "WIDTH": power_of_two(head_dim, 64 if dtype == torch.float32 else 32 if size > 64 else 16),
        "ROWS": power_of_two(size),
        "BLOCK": how.block,
        "GROUP": how.heads if num_heads % how.heads == 0 else 1,
        "M": summaries,
        "ROTARY": rotary,
        "NORM": norm,
        "AGES": ages,
        "EPS": EPS,
        # Two bf16 numbers fit a tf32 product and fp32 numbers do not: three tf32 products give fp32's precision.
        "PRECISION": "tf32x3" if dtype == torch.float32 else "tf32",
    }


class Tile(NamedTuple):
    """How a pass runs.

    Attributes:
        block: Queries that are worked on at once; all of the chunk's where the registers hold them.
        heads: That one program takes in turn, where they divide the number of heads.
        stages: 2: the next head is loaded ahead.
    """

    block: int
    num_warps: int
    heads: int = 1
    stages: int = 1


def tile(rows: int, width: int, backward: bool, full: bool, dtype: torch.dtype, capability: int) -> Tile:
    """What spills nothing, found by compiling ahead of time, and of that the fastest on an H200.

    Args:
        full: With some of what is optional.
        capability: 80 or 90; Hopper's matrix instructions read their operands from shared memory.
    """
    if dtype == torch.float32:
        return Tile(16, 8)  # three products for one take three times the registers
    big = rows * width > 64 * 64
    if capability < 90:
        if not backward:
            return Tile(min(rows, 32), 8 if big or full or rows == 128 else 4)
        if rows == 128 or width == 128:
            return Tile(16, 8)
        return Tile(32, 8) if rows == width == 64 else Tile(rows, 4)
    if not backward:
        if rows == 32 and width == 64 and not full:
            return Tile(32, 4, heads=4, stages=2)
        return Tile(rows, 8 if rows == 128 and width >= 64 else 4)
    if rows == 32:
        if width == 64 and not full:
            return Tile(32, 4, heads=4, stages=2)
        return Tile(16, 8) if width == 128 else Tile(32, 4)
    if rows == 64:
        return Tile(64, 8 if width == 128 or (width == 64 and full) else 4)
    if full:
        return Tile(32 if width == 64 else 16, 8)
    return Tile(128, 8)


@functools.cache
def _capability() -> int:
    """Of the GPU that is there: 80 for all before Hopper, 90 from there on, and in the interpreter."""
    if not torch.cuda.is_available():
        return 90
    return 90 if torch.cuda.get_device_capability()[0] >= 9 else 80


def chunk_attention_forward(
    qkv: Tensor,
    starts: Tensor,
    size: int,
    num_heads: int,
    rotary: bool,
    norm_gains: Tensor | None,
    ages: Tensor | None,
    age_slopes: Tensor | None,
    summary_queries: Tensor | None,
) -> tuple[Tensor, Tensor]:
    """Shape: as `chunk_attention`; summaries (K, 0, D) without summary queries."""
    dim = qkv.shape[1] // 3
    head_dim, count = dim // num_heads, starts.shape[0] - 1
    summaries = 0 if summary_queries is None else summary_queries.shape[0]
    out = qkv.new_empty(qkv.shape[0], dim)
    pooled = qkv.new_empty(count, summaries, dim)
    rows = power_of_two(size)
    full = any(x is not None for x in (norm_gains, ages, summary_queries))
    how = tile(rows, power_of_two(head_dim), False, full, qkv.dtype, _capability())
    constants = _constants(
        how, size, num_heads, head_dim, summaries, rotary, norm_gains is not None, ages is not None, qkv.dtype
    )
    if count:
        chunk_forward[(count * (num_heads // constants["GROUP"]),)](
            qkv,
            starts,
            table(rows, head_dim // 2, qkv.device, qkv.dtype) if rotary else None,
            norm_gains,
            ages,
            age_slopes,
            summary_queries,
            out,
            pooled,
            head_dim**-0.5,
            **constants,
            num_warps=how.num_warps,
            num_stages=how.stages,
        )
    return out, pooled


def chunk_attention_backward(
    dout: Tensor,
    dsummaries: Tensor,
    qkv: Tensor,
    starts: Tensor,
    size: int,
    num_heads: int,
    rotary: bool,
    norm_gains: Tensor | None,
    ages: Tensor | None,
    age_slopes: Tensor | None,
    summary_queries: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of qkv, norm gains, age slopes and summary queries; empty for what is not there."""
    dim = qkv.shape[1] // 3
    head_dim, count = dim // num_heads, starts.shape[0] - 1
    summaries = 0 if summary_queries is None else summary_queries.shape[0]
    tiles = count * num_heads
    dqkv = torch.empty_like(qkv)
    partial = qkv.new_empty
    dgains = partial(tiles if norm_gains is not None else 0, 2, head_dim, dtype=torch.float32)
    dslopes = partial(count if ages is not None else 0, num_heads, dtype=torch.float32)
    dqueries = partial(count if summaries else 0, num_heads, summaries, head_dim, dtype=torch.float32)
    rows = power_of_two(size)
    full = any(x is not None for x in (norm_gains, ages, summary_queries))
    how = tile(rows, power_of_two(head_dim), True, full, qkv.dtype, _capability())
    constants = _constants(
        how, size, num_heads, head_dim, summaries, rotary, norm_gains is not None, ages is not None, qkv.dtype
    )
    if count:
        chunk_backward[(tiles // constants["GROUP"],)](
            qkv,
            starts,
            table(rows, head_dim // 2, qkv.device, qkv.dtype) if rotary else None,
            norm_gains,
            ages,
            age_slopes,
            summary_queries,
            dout.contiguous(),
            dsummaries.contiguous(),
            dqkv,
            dgains,
            dslopes,
            dqueries,
            head_dim**-0.5,
            **constants,
            num_warps=how.num_warps,
            num_stages=how.stages,
        )
    return dqkv, dgains.sum(0), dslopes.sum(0), dqueries.sum(0).transpose(0, 1).flatten(1)


def builds() -> list[Build]:
    """The shipped tiles, plain and with everything that is optional."""
    sizes: dict[torch.dtype, dict[int, tuple[int, ...]]] = {
        torch.bfloat16: {32: (16, 32, 64, 128), 64: (16, 32, 64, 128), 128: (32, 64)},
        torch.float32: {32: (64,), 64: (64,)},  # narrower heads are padded
    }
    return [
        build
        for dtype, widths in sizes.items()
        for rows in widths
        for width in widths[rows]
        for full in (False, True)
        for architecture in (80, 90)
        for build in _builds_of(dtype, rows, width, full, architecture)
    ]


def _builds_of(dtype: torch.dtype, rows: int, width: int, full: bool, architecture: int) -> list[Build]:
    kind = pointer(dtype)
    optional = {"gains": "*fp32", "ages": "*fp32", "slopes": "*fp32", "queries": "*fp32"} if full else {}
    shared = {"qkv": kind, "starts": "*i32", "turns": "*fp32", **optional}
    absent = dict.fromkeys(() if full else ("gains", "ages", "slopes", "queries"))
    forward = {**shared, "out": kind, "summaries": kind, "scale": "fp32"}
    backward = {**shared, "dout": kind, "dsummaries": kind, "dqkv": kind}
    backward |= {"dgains": "*fp32", "dslopes": "*fp32", "dqueries": "*fp32", "scale": "fp32"}
    found = []
    for name, kernel, arguments in (("forward", chunk_forward, forward), ("backward", chunk_backward, backward)):
        how = tile(rows, width, name == "backward", full, dtype, architecture)
        summaries = 2 if full and max(rows, width) <= 64 and dtype == torch.bfloat16 else 0
        constants = {**_constants(how, rows, 4, width, summaries, True, full, full, dtype), **absent}
        words = f"{name}, {kind[1:]}, chunk {rows}, head {width}{', all options' if full else ''}"
        wgmma = how.block >= 64 and dtype == torch.bfloat16
        found.append(
            Build(words, kernel, arguments, constants, how.num_warps, how.stages, wgmma, architectures=(architecture,))
        )
    return found
