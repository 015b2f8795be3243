"""`chunk_attention` in Triton: a chunk and head is one program; nothing but inputs and outputs touches memory.

A whole chunk of keys and values fits one program, so there is no online softmax, and the backward pass computes the
softmax anew from q and k: it reads q, k, v and the gradient, and writes three gradients. Queries go through in blocks
where all at once would not fit the registers. Sums over chunks (gradients of gains, slopes and summary queries) are
written tile by tile and added up afterwards, in a fixed order.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gemkit_kernels.chunk_attention.reference import EPS
from gemkit_kernels.rotary import table
from gemkit_kernels.tiles import Build, inverse_rms, pointer, power_of_two, rms_norm_backward, softmax_rows, turn


@triton.jit
def _turns(turns, rows, E: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Cosines and sines of some rows of a chunk. Shape: rows (L,) -> (L, WIDTH / 2)."""
    pairs = tl.arange(0, WIDTH // 2)
    place = rows[:, None] * (E // 2) + pairs[None, :]
    there = (rows < ROWS)[:, None] & (pairs < E // 2)[None, :]
    # All programs read the same table: it should stay in the caches that heads stream through.
    cos = tl.load(turns + place, mask=there, other=0.0, eviction_policy="evict_last")
    return cos, tl.load(turns + ROWS * (E // 2) + place, mask=there, other=0.0, eviction_policy="evict_last")


@triton.jit
def _normed(x, gain, E: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr):
    """Queries or keys after QK-norm."""
    if NORM:
        wide = x.to(tl.float32)
        x = (wide * inverse_rms(wide, E, EPS)[:, None] * gain[None, :]).to(x.dtype)
    return x


@triton.jit
def _turned(
    x, turns, rows, E: tl.constexpr, ROWS: tl.constexpr, L: tl.constexpr, WIDTH: tl.constexpr, ROTARY: tl.constexpr
):
    """L queries or keys with rotary positions."""
    if ROTARY:
        cos, sin = _turns(turns, rows, E, ROWS, WIDTH)
        x = turn(x.to(tl.float32), cos, sin, L, WIDTH).to(x.dtype)
    return x


@triton.jit
def _turned_back(
    dx, turns, rows, E: tl.constexpr, ROWS: tl.constexpr, L: tl.constexpr, WIDTH: tl.constexpr, ROTARY: tl.constexpr
):
    """The gradient of what `_turned` was given."""
    if ROTARY:
        cos, sin = _turns(turns, rows, E, ROWS, WIDTH)
        dx = turn(dx, cos, -sin, L, WIDTH)
    return dx


@triton.jit
def _gain(gains, columns, E: tl.constexpr, NORM: tl.constexpr):
    gain = tl.zeros_like(columns).to(tl.float32)
    if NORM:
        gain = tl.load(gains + columns, mask=columns < E, other=0.0).to(tl.float32)
    return gain


@triton.jit
def _scores(q, k, ages, slope, q_rows, k_rows, start, length, scale, AGES: tl.constexpr, PRECISION: tl.constexpr):
    """Scores in units of log 2, and what the slope is multiplied by."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * 1.4426950408889634)
    distance = scores
    if AGES:
        q_age = tl.load(ages + start + q_rows, mask=q_rows < length, other=0.0)
        k_age = tl.load(ages + start + k_rows, mask=k_rows < length, other=0.0)
        distance = tl.log2(1.0 + tl.abs(q_age[:, None] - k_age[None, :]))
        scores += slope * distance
    return tl.where((k_rows < length)[None, :], scores, float("-inf")), distance


@triton.jit
def _forward(
    qkv,
    starts,
    turns,
    gains,
    ages,
    slopes,
    queries,
    out,
    summaries,
    scale,
    H: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    M: tl.constexpr,
    ROTARY: tl.constexpr,
    NORM: tl.constexpr,
    AGES: tl.constexpr,
    EPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    chunk = tl.program_id(0) // (H // GROUP)
    start = tl.load(starts + chunk).to(tl.int64)
    length = (tl.load(starts + chunk + 1) - start).to(tl.int32)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    in_head = (columns < E)[None, :]
    mask = (rows < length)[:, None] & in_head
    for head in range(tl.program_id(0) % (H // GROUP) * GROUP, tl.program_id(0) % (H // GROUP) * GROUP + GROUP):
        base = qkv + start * (3 * H * E) + head * E
        place = base + rows[:, None] * (3 * H * E) + columns[None, :]
        k = tl.load(place + H * E, mask=mask, other=0.0)
        v = tl.load(place + 2 * H * E, mask=mask, other=0.0)
        kind = v.dtype
        flat_k = _normed(k, _gain(gains + E, columns, E, NORM) if NORM else 0.0, E, NORM, EPS)
        k = _turned(flat_k, turns, rows, E, ROWS, ROWS, WIDTH, ROTARY)
        gain = _gain(gains, columns, E, NORM) if NORM else 0.0
        slope = tl.load(slopes + head).to(tl.float32) if AGES else 0.0
        for first in range(0, ROWS, BLOCK):
            own = first + tl.arange(0, BLOCK)
            own_mask = (own < length)[:, None] & in_head
            q = tl.load(base + own[:, None] * (3 * H * E) + columns[None, :], mask=own_mask, other=0.0)
            q = _turned(_normed(q, gain, E, NORM, EPS), turns, own, E, ROWS, BLOCK, WIDTH, ROTARY)
            scores, _ = _scores(q, k, ages, slope, own, rows, start, length, scale, AGES, PRECISION)
            mixed = tl.dot(softmax_rows(scores).to(kind), v, input_precision=PRECISION)
            there = out + start * (H * E) + head * E + own[:, None] * (H * E) + columns[None, :]
            tl.store(there, mixed.to(kind), mask=own_mask)
        if M > 0:
            slot = tl.arange(0, 16)
            some = (slot < M)[:, None] & in_head
            learned = queries + slot[:, None] * (H * E) + head * E + columns[None, :]
            query = tl.load(learned, mask=some, other=0.0).to(kind)
            pooled = tl.dot(query, tl.trans(flat_k), input_precision=PRECISION) * (scale * 1.4426950408889634)
            weights = softmax_rows(tl.where((rows < length)[None, :], pooled, float("-inf"))).to(kind)
            pooled = tl.dot(weights, v, input_precision=PRECISION)
            there = summaries + chunk.to(tl.int64) * (M * H * E) + head * E
            tl.store(there + slot[:, None] * (H * E) + columns[None, :], pooled.to(kind), mask=some)


@triton.jit
def _gradients(
    q, dmixed, k, v, ages, slope, q_rows, k_rows, start, length, scale, AGES: tl.constexpr, PRECISION: tl.constexpr
):
    """Weights, and gradients of scores times `scale`, of a block of queries; the gradient of the slope, row by row."""
    scores, distance = _scores(q, k, ages, slope, q_rows, k_rows, start, length, scale, AGES, PRECISION)
    weights = softmax_rows(scores)
    dweights = tl.dot(dmixed, tl.trans(v), input_precision=PRECISION)
    dscores = weights * (dweights - tl.sum(weights * dweights, 1)[:, None])
    # `distance` is in units of log 2.
    dslope = tl.sum(dscores * distance, 1) / 1.4426950408889634 if AGES else tl.sum(dscores, 1)
    return weights.to(q.dtype), (dscores * scale).to(q.dtype), dslope


@triton.jit
def _store_query_gradient(
    dq,
    raw_q,
    gain,
    turns,
    place,
    mask,
    rows,
    E: tl.constexpr,
    ROWS: tl.constexpr,
    L: tl.constexpr,
    WIDTH: tl.constexpr,
    ROTARY: tl.constexpr,
    NORM: tl.constexpr,
    EPS: tl.constexpr,
):
    """Back through rotary positions and QK-norm; returns the gradient of the gain."""
    dq = _turned_back(dq, turns, rows, E, ROWS, L, WIDTH, ROTARY)
    dgain = tl.zeros((WIDTH,), tl.float32)
    if NORM:
        wide = raw_q.to(tl.float32)
        dq, dgain = rms_norm_backward(dq, wide, inverse_rms(wide, E, EPS), gain, E)
    tl.store(place, dq.to(raw_q.dtype), mask=mask)
    return dgain


@triton.jit
def _backward(
    qkv,
    starts,
    turns,
    gains,
    ages,
    slopes,
    queries,
    dout,
    dsummaries,
    dqkv,
    dgains,
    dslopes,
    dqueries,
    scale,
    H: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    BLOCK: tl.constexpr,
    GROUP: tl.constexpr,
    M: tl.constexpr,
    ROTARY: tl.constexpr,
    NORM: tl.constexpr,
    AGES: tl.constexpr,
    EPS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    chunk = tl.program_id(0) // (H // GROUP)
    start = tl.load(starts + chunk).to(tl.int64)
    length = (tl.load(starts + chunk + 1) - start).to(tl.int32)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    in_head = (columns < E)[None, :]
    mask = (rows < length)[:, None] & in_head
    for head in range(tl.program_id(0) % (H // GROUP) * GROUP, tl.program_id(0) % (H // GROUP) * GROUP + GROUP):
        tile = chunk.to(tl.int64) * H + head
        base = start * (3 * H * E) + head * E
        place = base + rows[:, None] * (3 * H * E) + columns[None, :]
        k = tl.load(qkv + place + H * E, mask=mask, other=0.0)
        v = tl.load(qkv + place + 2 * H * E, mask=mask, other=0.0)
        kind = v.dtype
        gain_q = _gain(gains, columns, E, NORM) if NORM else 0.0
        gain_k = _gain(gains + E, columns, E, NORM) if NORM else 0.0
        slope = tl.load(slopes + head).to(tl.float32) if AGES else 0.0
        k = _turned(_normed(k, gain_k, E, NORM, EPS), turns, rows, E, ROWS, ROWS, WIDTH, ROTARY)
        dk, dv = tl.zeros((ROWS, WIDTH), tl.float32), tl.zeros((ROWS, WIDTH), tl.float32)
        if BLOCK == ROWS:
            # One gradient after the other, each stored before the next is made: fewer registers, more programs at once.
            raw_q = tl.load(qkv + place, mask=mask, other=0.0)
            dmixed = tl.load(
                dout + start * (H * E) + head * E + rows[:, None] * (H * E) + columns[None, :], mask=mask, other=0.0
            )
            q = _turned(_normed(raw_q, gain_q, E, NORM, EPS), turns, rows, E, ROWS, ROWS, WIDTH, ROTARY)
            weights, dscores, dslope = _gradients(
                q, dmixed, k, v, ages, slope, rows, rows, start, length, scale, AGES, PRECISION
            )
            dq = tl.dot(dscores, k, input_precision=PRECISION)
            dgain_q = _store_query_gradient(
                dq, raw_q, gain_q, turns, dqkv + place, mask, rows, E, ROWS, ROWS, WIDTH, ROTARY, NORM, EPS
            )
            dk = tl.dot(tl.trans(dscores), q, input_precision=PRECISION)
        else:
            dgain_q, dslope = tl.zeros((WIDTH,), tl.float32), tl.zeros((BLOCK,), tl.float32)
            for first in range(0, ROWS, BLOCK):
                own = first + tl.arange(0, BLOCK)
                own_mask = (own < length)[:, None] & in_head
                own_place = base + own[:, None] * (3 * H * E) + columns[None, :]
                raw_q = tl.load(qkv + own_place, mask=own_mask, other=0.0)
                dmixed = tl.load(
                    dout + start * (H * E) + head * E + own[:, None] * (H * E) + columns[None, :],
                    mask=own_mask,
                    other=0.0,
                )
                q = _turned(_normed(raw_q, gain_q, E, NORM, EPS), turns, own, E, ROWS, BLOCK, WIDTH, ROTARY)
                weights, dscores, dslopes_own = _gradients(
                    q, dmixed, k, v, ages, slope, own, rows, start, length, scale, AGES, PRECISION
                )
                dslope += dslopes_own
                dv += tl.dot(tl.trans(weights), dmixed, input_precision=PRECISION)
                dk += tl.dot(tl.trans(dscores), q, input_precision=PRECISION)
                dq = tl.dot(dscores, k, input_precision=PRECISION)
                dgain_q += _store_query_gradient(
                    dq, raw_q, gain_q, turns, dqkv + own_place, own_mask, own, E, ROWS, BLOCK, WIDTH, ROTARY, NORM, EPS
                )
        if AGES:
            tl.store(dslopes + tile, tl.sum(dslope, 0))
        dk = _turned_back(dk, turns, rows, E, ROWS, ROWS, WIDTH, ROTARY)
        # Read again, so that no register held it all along.
        raw_k = tl.load(qkv + place + H * E, mask=mask, other=0.0) if NORM or M > 0 else k
        if M > 0:
            flat_k = _normed(raw_k, gain_k, E, NORM, EPS)
            slot = tl.arange(0, 16)
            some = (slot < M)[:, None] & in_head
            learned = queries + slot[:, None] * (H * E) + head * E + columns[None, :]
            query = tl.load(learned, mask=some, other=0.0).to(kind)
            there = dsummaries + chunk.to(tl.int64) * (M * H * E) + head * E
            dpooled = tl.load(there + slot[:, None] * (H * E) + columns[None, :], mask=some, other=0.0)
            pooled = tl.dot(query, tl.trans(flat_k), input_precision=PRECISION) * (scale * 1.4426950408889634)
            shares = softmax_rows(tl.where((rows < length)[None, :], pooled, float("-inf")))
            dshares = tl.dot(dpooled, tl.trans(v), input_precision=PRECISION)
            dpools = (shares * (dshares - tl.sum(shares * dshares, 1)[:, None]) * scale).to(kind)
            dv += tl.dot(tl.trans(shares.to(kind)), dpooled, input_precision=PRECISION)
            dk += tl.dot(tl.trans(dpools), query, input_precision=PRECISION)
            dquery = tl.dot(dpools, flat_k, input_precision=PRECISION)
            tl.store(dqueries + tile * (M * E) + slot[:, None] * E + columns[None, :], dquery, mask=some)
        if NORM:
            wide = raw_k.to(tl.float32)
            dk, dgain_k = rms_norm_backward(dk, wide, inverse_rms(wide, E, EPS), gain_k, E)
            tl.store(dgains + tile * (2 * E) + columns, dgain_q, mask=columns < E)
            tl.store(dgains + tile * (2 * E) + E + columns, dgain_k, mask=columns < E)
        tl.store(dqkv + place + H * E, dk.to(kind), mask=mask)
        if BLOCK == ROWS:
            dv += tl.dot(tl.trans(weights), dmixed, input_precision=PRECISION)
        tl.store(dqkv + place + 2 * H * E, dv.to(kind), mask=mask)


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
        _forward[(count * (num_heads // constants["GROUP"]),)](
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
        _backward[(tiles // constants["GROUP"],)](
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


def fits(rows: int, width: int, full: bool, wide: bool) -> bool:
    """Whether the registers hold a tile without spilling."""
    return rows <= 64 and width <= 64 if wide else rows * width < 128 * 128


def builds() -> list[Build]:
    """The shipped tiles, plain and with everything that is optional."""
    sizes = {
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
    for name, kernel, arguments in (("forward", _forward, forward), ("backward", _backward, backward)):
        how = tile(rows, width, name == "backward", full, dtype, architecture)
        summaries = 2 if full and max(rows, width) <= 64 and dtype == torch.bfloat16 else 0
        constants = {**_constants(how, rows, 4, width, summaries, True, full, full, dtype), **absent}
        words = f"{name}, {kind[1:]}, chunk {rows}, head {width}{', all options' if full else ''}"
        wgmma = how.block >= 64 and dtype == torch.bfloat16
        found.append(
            Build(words, kernel, arguments, constants, how.num_warps, how.stages, wgmma, architectures=(architecture,))
        )
    return found
