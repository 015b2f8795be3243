"""`chunk_attention` in Triton: a chunk and head is one tile; nothing but the inputs and outputs touches memory.

A whole chunk fits the registers of one program, so there is no online softmax, and the backward pass computes the
softmax anew from q and k: it reads q, k, v and the gradient, and writes three gradients. Sums over chunks (gradients of
gains, slopes and summary queries) are written tile by tile and added up afterwards, in a fixed order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gemkit_kernels.chunk_attention.reference import EPS
from gemkit_kernels.rotary import table
from gemkit_kernels.tiles import LOG2E, Build, inverse_rms, pointer, power_of_two, rms_norm_backward, softmax_rows, turn

LARGEST = 128
"""Rows of the largest chunk, and values of the widest head, that a tile holds."""


@triton.jit
def _scores(q, k, ages, slope, valid, start, rows, scale, AGES: tl.constexpr, PRECISION: tl.constexpr):  # noqa: N803
    """Scores of a tile in units of log 2, and what the slope is multiplied by."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * 1.4426950408889634)
    distance = scores
    if AGES:
        age = tl.load(ages + start + rows, mask=valid, other=0.0)
        distance = tl.log2(1.0 + tl.abs(age[:, None] - age[None, :]))
        scores += slope * distance
    return tl.where(valid[None, :], scores, float("-inf")), distance


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
    H: tl.constexpr,  # noqa: N803
    E: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    M: tl.constexpr,  # noqa: N803
    ROTARY: tl.constexpr,  # noqa: N803
    NORM: tl.constexpr,  # noqa: N803
    AGES: tl.constexpr,  # noqa: N803
    EPS: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803
):
    chunk, head = tl.program_id(0) // H, tl.program_id(0) % H
    start = tl.load(starts + chunk).to(tl.int64)
    length = (tl.load(starts + chunk + 1) - start).to(tl.int32)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    valid, in_head = rows < length, columns < E
    mask = valid[:, None] & in_head[None, :]
    place = qkv + start * (3 * H * E) + head * E + rows[:, None] * (3 * H * E) + columns[None, :]
    q = tl.load(place, mask=mask, other=0.0)
    k = tl.load(place + H * E, mask=mask, other=0.0)
    v = tl.load(place + 2 * H * E, mask=mask, other=0.0)
    kind = v.dtype
    if NORM:
        wide_q, wide_k = q.to(tl.float32), k.to(tl.float32)
        gain_q = tl.load(gains + columns, mask=in_head, other=0.0).to(tl.float32)
        gain_k = tl.load(gains + E + columns, mask=in_head, other=0.0).to(tl.float32)
        q = (wide_q * inverse_rms(wide_q, E, EPS)[:, None] * gain_q[None, :]).to(kind)
        k = (wide_k * inverse_rms(wide_k, E, EPS)[:, None] * gain_k[None, :]).to(kind)
    flat_k = k
    if ROTARY:
        pair = rows[:, None] * (E // 2) + tl.arange(0, WIDTH // 2)[None, :]
        in_pairs = (tl.arange(0, WIDTH // 2) < E // 2)[None, :] & (rows < ROWS)[:, None]
        cos = tl.load(turns + pair, mask=in_pairs, other=0.0)
        sin = tl.load(turns + ROWS * (E // 2) + pair, mask=in_pairs, other=0.0)
        q = turn(q.to(tl.float32), cos, sin, ROWS, WIDTH).to(kind)
        k = turn(k.to(tl.float32), cos, sin, ROWS, WIDTH).to(kind)
    slope = tl.load(slopes + head).to(tl.float32) if AGES else 0.0
    scores, _ = _scores(q, k, ages, slope, valid, start, rows, scale, AGES, PRECISION)
    mixed = tl.dot(softmax_rows(scores).to(kind), v, input_precision=PRECISION)
    there = out + start * (H * E) + head * E + rows[:, None] * (H * E) + columns[None, :]
    tl.store(there, mixed.to(kind), mask=mask)
    if M > 0:
        slot = tl.arange(0, 16)
        some = (slot < M)[:, None] & in_head[None, :]
        query = tl.load(queries + slot[:, None] * (H * E) + head * E + columns[None, :], mask=some, other=0.0).to(kind)
        pooled = tl.dot(query, tl.trans(flat_k), input_precision=PRECISION) * (scale * 1.4426950408889634)
        weights = softmax_rows(tl.where(valid[None, :], pooled, float("-inf"))).to(kind)
        pooled = tl.dot(weights, v, input_precision=PRECISION)
        base = summaries + chunk.to(tl.int64) * (M * H * E) + head * E
        tl.store(base + slot[:, None] * (H * E) + columns[None, :], pooled.to(kind), mask=some)


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
    H: tl.constexpr,  # noqa: N803
    E: tl.constexpr,  # noqa: N803
    WIDTH: tl.constexpr,  # noqa: N803
    ROWS: tl.constexpr,  # noqa: N803
    M: tl.constexpr,  # noqa: N803
    ROTARY: tl.constexpr,  # noqa: N803
    NORM: tl.constexpr,  # noqa: N803
    AGES: tl.constexpr,  # noqa: N803
    EPS: tl.constexpr,  # noqa: N803
    PRECISION: tl.constexpr,  # noqa: N803
):
    tile = tl.program_id(0).to(tl.int64)
    chunk, head = tl.program_id(0) // H, tl.program_id(0) % H
    start = tl.load(starts + chunk).to(tl.int64)
    length = (tl.load(starts + chunk + 1) - start).to(tl.int32)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    valid, in_head = rows < length, columns < E
    mask = valid[:, None] & in_head[None, :]
    there = start * (3 * H * E) + head * E + rows[:, None] * (3 * H * E) + columns[None, :]
    q = tl.load(qkv + there, mask=mask, other=0.0)
    k = tl.load(qkv + there + H * E, mask=mask, other=0.0)
    v = tl.load(qkv + there + 2 * H * E, mask=mask, other=0.0)
    dmixed = tl.load(
        dout + start * (H * E) + head * E + rows[:, None] * (H * E) + columns[None, :], mask=mask, other=0.0
    )
    kind = v.dtype
    raw_q, raw_k = q, k
    if NORM:
        wide_q, wide_k = q.to(tl.float32), k.to(tl.float32)
        gain_q = tl.load(gains + columns, mask=in_head, other=0.0).to(tl.float32)
        gain_k = tl.load(gains + E + columns, mask=in_head, other=0.0).to(tl.float32)
        q = (wide_q * inverse_rms(wide_q, E, EPS)[:, None] * gain_q[None, :]).to(kind)
        k = (wide_k * inverse_rms(wide_k, E, EPS)[:, None] * gain_k[None, :]).to(kind)
    flat_k = k
    if ROTARY:
        pair = rows[:, None] * (E // 2) + tl.arange(0, WIDTH // 2)[None, :]
        in_pairs = (tl.arange(0, WIDTH // 2) < E // 2)[None, :] & (rows < ROWS)[:, None]
        cos = tl.load(turns + pair, mask=in_pairs, other=0.0)
        sin = tl.load(turns + ROWS * (E // 2) + pair, mask=in_pairs, other=0.0)
        q = turn(q.to(tl.float32), cos, sin, ROWS, WIDTH).to(kind)
        k = turn(k.to(tl.float32), cos, sin, ROWS, WIDTH).to(kind)
    slope = tl.load(slopes + head).to(tl.float32) if AGES else 0.0
    scores, distance = _scores(q, k, ages, slope, valid, start, rows, scale, AGES, PRECISION)
    weights = softmax_rows(scores)
    dweights = tl.dot(dmixed, tl.trans(v), input_precision=PRECISION)
    dscores = weights * (dweights - tl.sum(weights * dweights, 1)[:, None])
    dv = tl.dot(tl.trans(weights.to(kind)), dmixed, input_precision=PRECISION)
    if AGES:
        # `distance` is in units of log 2.
        tl.store(dslopes + tile, tl.sum(tl.sum(dscores * distance, 1), 0) / 1.4426950408889634)
    dscores = (dscores * scale).to(kind)
    dq = tl.dot(dscores, k, input_precision=PRECISION)
    dk = tl.dot(tl.trans(dscores), q, input_precision=PRECISION)
    if ROTARY:
        dq = turn(dq, cos, -sin, ROWS, WIDTH)
        dk = turn(dk, cos, -sin, ROWS, WIDTH)
    if M > 0:
        slot = tl.arange(0, 16)
        some = (slot < M)[:, None] & in_head[None, :]
        query = tl.load(queries + slot[:, None] * (H * E) + head * E + columns[None, :], mask=some, other=0.0).to(kind)
        base = dsummaries + chunk.to(tl.int64) * (M * H * E) + head * E
        dpooled = tl.load(base + slot[:, None] * (H * E) + columns[None, :], mask=some, other=0.0)
        pooled = tl.dot(query, tl.trans(flat_k), input_precision=PRECISION) * (scale * 1.4426950408889634)
        shares = softmax_rows(tl.where(valid[None, :], pooled, float("-inf")))
        dshares = tl.dot(dpooled, tl.trans(v), input_precision=PRECISION)
        dpools = (shares * (dshares - tl.sum(shares * dshares, 1)[:, None]) * scale).to(kind)
        dv += tl.dot(tl.trans(shares.to(kind)), dpooled, input_precision=PRECISION)
        dk += tl.dot(tl.trans(dpools), query, input_precision=PRECISION)
        dquery = tl.dot(dpools, flat_k, input_precision=PRECISION)
        tl.store(dqueries + tile * (M * E) + slot[:, None] * E + columns[None, :], dquery, mask=some)
    if NORM:
        raw_q, raw_k = raw_q.to(tl.float32), raw_k.to(tl.float32)
        dq, dgain_q = rms_norm_backward(dq, raw_q, inverse_rms(raw_q, E, EPS), gain_q, E)
        dk, dgain_k = rms_norm_backward(dk, raw_k, inverse_rms(raw_k, E, EPS), gain_k, E)
        tl.store(dgains + tile * (2 * E) + columns, dgain_q, mask=in_head)
        tl.store(dgains + tile * (2 * E) + E + columns, dgain_k, mask=in_head)
    tl.store(dqkv + there, dq.to(kind), mask=mask)
    tl.store(dqkv + there + H * E, dk.to(kind), mask=mask)
    tl.store(dqkv + there + 2 * H * E, dv.to(kind), mask=mask)


def _constants(
    size: int, num_heads: int, head_dim: int, summaries: int, rotary: bool, norm: bool, ages: bool, dtype: torch.dtype
) -> dict[str, object]:
    return {
        "H": num_heads,
        "E": head_dim,
        "WIDTH": power_of_two(head_dim),
        "ROWS": power_of_two(size),
        "M": summaries,
        "ROTARY": rotary,
        "NORM": norm,
        "AGES": ages,
        "EPS": EPS,
        # Two products of bf16 fit tf32 and fp32 does not: three tf32 products give fp32's precision.
        "PRECISION": "tf32x3" if dtype == torch.float32 else "tf32",
    }


def num_warps(rows: int, width: int, dtype: torch.dtype) -> int:
    """Warps whose registers hold a tile without spilling, found by compiling ahead of time."""
    wide = dtype == torch.float32
    return 8 if rows >= 128 or (wide and rows * width >= 64 * 128) else 4


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
    constants = _constants(
        size, num_heads, head_dim, summaries, rotary, norm_gains is not None, ages is not None, qkv.dtype
    )
    rows = power_of_two(size)
    if count:
        _forward[(count * num_heads,)](
            qkv,
            starts,
            table(rows, head_dim // 2, qkv.device) if rotary else None,
            norm_gains,
            ages,
            age_slopes,
            summary_queries,
            out,
            pooled,
            head_dim**-0.5,
            **constants,
            num_warps=num_warps(rows, power_of_two(head_dim), qkv.dtype),
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
    constants = _constants(
        size, num_heads, head_dim, summaries, rotary, norm_gains is not None, ages is not None, qkv.dtype
    )
    rows = power_of_two(size)
    if count:
        _backward[(tiles,)](
            qkv,
            starts,
            table(rows, head_dim // 2, qkv.device) if rotary else None,
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
            num_warps=num_warps(rows, power_of_two(head_dim), qkv.dtype),
        )
    return dqkv, dgains.sum(0), dslopes.sum(0), dqueries.sum(0).transpose(0, 1).flatten(1)


def builds() -> list[Build]:
    """The shipped tiles: chunks of 32, 64 and 128, heads of 16 to 128, plain and with everything that is optional."""
    found = []
    for dtype in (torch.bfloat16, torch.float32):
        for rows in (32, 64, 128):
            for width in (16, 32, 64, 128):
                for full in (False, True):
                    found += _builds_of(dtype, rows, width, full)
    return found


def _builds_of(dtype: torch.dtype, rows: int, width: int, full: bool) -> list[Build]:
    kind = pointer(dtype)
    constants = _constants(rows, 4, width, 2 if full else 0, True, full, full, dtype)
    optional = {"gains": "*fp32", "ages": "*fp32", "slopes": "*fp32", "queries": "*fp32"} if full else {}
    shared = {"qkv": kind, "starts": "*i32", "turns": "*fp32", **optional}
    absent = dict.fromkeys(() if full else ("gains", "ages", "slopes", "queries"))
    forward = {**shared, "out": kind, "summaries": kind, "scale": "fp32"}
    backward = {**shared, "dout": kind, "dsummaries": kind, "dqkv": kind}
    backward |= {"dgains": "*fp32", "dslopes": "*fp32", "dqueries": "*fp32", "scale": "fp32"}
    name = f"{kind[1:]}, chunk {rows}, head {width}{', all options' if full else ''}"
    warps = num_warps(rows, width, dtype)
    wgmma = rows >= 64 and dtype == torch.bfloat16
    return [
        Build(f"forward, {name}", _forward, forward, {**constants, **absent}, warps, wgmma=wgmma),
        Build(f"backward, {name}", _backward, backward, {**constants, **absent}, warps, wgmma=wgmma),
    ]


__all__ = ["LARGEST", "LOG2E", "builds", "chunk_attention_backward", "chunk_attention_forward"]
