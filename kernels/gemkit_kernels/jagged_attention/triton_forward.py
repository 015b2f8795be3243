"""The forward kernel of `jagged_attention`, and the one that turns rows beforehand."""

from __future__ import annotations

import triton
import triton.language as tl

from gemkit_kernels.jagged_attention.triton_spans import (
    load_rows,
    locate,
    masked_step,
    masked_steps,
    sees,
    span,
    turn_rows,
)


@triton.jit
def turn_beforehand(
    qkv,
    turned,
    offsets,
    tiles,
    ends,
    cos,
    sin,
    histories,
    longest,
    H: tl.constexpr,
    E: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
):
    """Queries and keys, turned, of all heads of a tile."""
    start, length, first = locate(tiles, ends, offsets, histories, longest, tl.program_id(0), ROWS)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    mask = (rows < length - first)[:, None] & (columns < E)[None, :]
    source, target = qkv + (start + first) * (3 * H * E), turned + (start + first) * (2 * H * E)
    for part in range(2 * H):
        x = load_rows(source + part * E, length - first, 3 * H * E, E, ROWS, WIDTH, True)
        x = turn_rows(x, cos, sin, first, length - first, 1.0, E, ROWS, WIDTH, True).to(x.dtype)
        tl.store(target + part * E + rows[:, None] * (2 * H * E) + columns[None, :], x, mask=mask)


@triton.jit
def _forward_step(
    q, summed, peak, mixed, k_place, v_place, cos, sin, queries, first, end, length, back, ahead, scale,
    QK: tl.constexpr, V: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr,
    S: tl.constexpr, FUSED: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds the keys and values from row `first` on to the softmax."""
    wide = tl.cast(first, tl.int64)
    k = load_rows(k_place + wide * QK, end - first, QK, E, STEP, WIDTH, MASKED)
    v = load_rows(v_place + wide * V, end - first, V, E, STEP, WIDTH, MASKED)
    if FUSED:
        k = turn_rows(k, cos, sin, first, length - first, 1.0, E, STEP, WIDTH, MASKED).to(v.dtype)
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)
    if MASKED:
        keys = (first + tl.arange(0, STEP))[None, :]
        seen = sees(queries[:, None], keys, length, back, ahead, S) & (keys < end)
        scores = tl.where(seen, scores, float("-inf"))
    higher = tl.maximum(peak, tl.max(scores, 1) * scale)
    weights = tl.exp2(scores * scale - higher[:, None])
    shrink = tl.exp2(peak - higher)
    summed = summed * shrink + tl.sum(weights, 1)
    mixed = tl.dot(weights.to(v.dtype), v, mixed * shrink[:, None], input_precision=PRECISION)
    return summed, higher, mixed


@triton.jit
def forward(
    qk, qkv, out, lse, offsets, tiles, ends, cos, sin, histories, longest, total, back, ahead, scale,
    H: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, QK: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr, S: tl.constexpr, FUSED: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0) // H, tl.program_id(0) % H
    start, length, first = locate(tiles, ends, offsets, histories, longest, tile, ROWS)
    low, inner, outer, high, far = span(first, length, back, ahead, ROWS, STEP, S)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    queries = first + rows
    V: tl.constexpr = 3 * H * E
    q_place = qk + start * QK + head * E
    k_place, v_place = q_place + H * E, qkv + start * V + 2 * H * E + head * E
    q = load_rows(q_place + first.to(tl.int64) * QK, length - first, QK, E, ROWS, WIDTH, True)
    if FUSED:
        q = turn_rows(q, cos, sin, first, length - first, 1.0, E, ROWS, WIDTH, True).to(q.dtype)
    # A finite peak, so that a row that sees nothing of a tile computes exp2(-inf - peak) = 0.
    peak = tl.full((ROWS,), -1e30, tl.float32)
    summed, mixed = tl.zeros((ROWS,), tl.float32), tl.zeros((ROWS, WIDTH), tl.float32)
    for key in range(inner, outer, STEP):
        summed, peak, mixed = _forward_step(
            q, summed, peak, mixed, k_place, v_place, cos, sin, queries, key, length, length, back, ahead, scale,
            QK, V, E, WIDTH, STEP, S, FUSED, PRECISION, False,
        )  # fmt: skip
    for n in range(masked_steps(low, inner, outer, high, far, length, STEP)):
        key, end = masked_step(n, low, inner, outer, high, far, length, STEP, S)
        summed, peak, mixed = _forward_step(
            q, summed, peak, mixed, k_place, v_place, cos, sin, queries, key, end, length, back, ahead, scale,
            QK, V, E, WIDTH, STEP, S, FUSED, PRECISION, True,
        )  # fmt: skip
    valid = queries < length
    summed = tl.where(valid, summed, 1.0)
    mixed = mixed / summed[:, None]
    there = out + (start + first) * (H * E) + head * E + rows[:, None] * (H * E) + columns[None, :]
    tl.store(there, mixed.to(out.dtype.element_ty), mask=valid[:, None] & (columns < E)[None, :])
    place = head.to(tl.int64) * total + start + first
    tl.store(lse + place + rows, peak + tl.log2(summed), mask=valid)
