"""The backward kernels of `jagged_attention`: one has a tile of queries, the other a tile of keys."""

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
def _query_step(
    q, dmixed, sums, delta, dq, k_place, v_place, queries, first, end, length, back, ahead, scale,
    QK: tl.constexpr, V: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr,
    S: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds to the gradient of queries what comes from the keys and values from row `first` on."""
    wide = tl.cast(first, tl.int64)
    k = load_rows(k_place + wide * QK, end - first, QK, E, STEP, WIDTH, MASKED)
    v = load_rows(v_place + wide * V, end - first, V, E, STEP, WIDTH, MASKED)
    weights = tl.exp2(tl.dot(q, tl.trans(k), input_precision=PRECISION) * scale - sums[:, None])
    if MASKED:
        keys = (first + tl.arange(0, STEP))[None, :]
        seen = sees(queries[:, None], keys, length, back, ahead, S) & (keys < end)
        weights = tl.where(seen, weights, 0.0)
    dscores = weights * (tl.dot(dmixed, tl.trans(v), input_precision=PRECISION) - delta[:, None])
    return tl.dot(dscores.to(k.dtype), k, dq, input_precision=PRECISION)


@triton.jit
def backward_queries(
    qk, qkv, out, dout, lse, deltas, dqkv, offsets, tiles, ends, cos, sin,
    histories, longest, total, back, ahead, scale,
    H: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, QK: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr, S: tl.constexpr,
    ROTARY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0) // H, tl.program_id(0) % H
    start, length, first = locate(tiles, ends, offsets, histories, longest, tile, ROWS)
    low, inner, outer, high, far = span(first, length, back, ahead, ROWS, STEP, S)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    queries = first + rows
    count = length - first
    V: tl.constexpr = 3 * H * E
    q_place = qk + start * QK + head * E
    k_place, v_place = q_place + H * E, qkv + start * V + 2 * H * E + head * E
    q = load_rows(q_place + first.to(tl.int64) * QK, count, QK, E, ROWS, WIDTH, True)
    there = (start + first) * (H * E) + head * E
    dmixed = load_rows(dout + there, count, H * E, E, ROWS, WIDTH, True)
    mixed = load_rows(out + there, count, H * E, E, ROWS, WIDTH, True)
    delta = tl.sum(mixed.to(tl.float32) * dmixed.to(tl.float32), 1)
    place = head.to(tl.int64) * total + start + first
    tl.store(deltas + place + rows, delta, mask=rows < count)
    sums = tl.load(lse + place + rows, mask=rows < count, other=float("inf"))
    dq = tl.zeros((ROWS, WIDTH), tl.float32)
    for key in range(inner, outer, STEP):
        dq = _query_step(
            q, dmixed, sums, delta, dq, k_place, v_place, queries, key, length, length, back, ahead, scale,
            QK, V, E, WIDTH, STEP, S, PRECISION, False,
        )  # fmt: skip
    for n in range(masked_steps(low, inner, outer, high, far, length, STEP)):
        key, end = masked_step(n, low, inner, outer, high, far, length, STEP, S)
        dq = _query_step(
            q, dmixed, sums, delta, dq, k_place, v_place, queries, key, end, length, back, ahead, scale,
            QK, V, E, WIDTH, STEP, S, PRECISION, True,
        )  # fmt: skip
    dq *= scale * 0.6931471805599453  # `scale` is for powers of 2
    if ROTARY:
        dq = turn_rows(dq, cos, sin, first, count, -1.0, E, ROWS, WIDTH, True)
    to = dqkv + (start + first) * V + head * E + rows[:, None] * V + columns[None, :]
    tl.store(to, dq.to(dqkv.dtype.element_ty), mask=(rows < count)[:, None] & (columns < E)[None, :])


@triton.jit
def _key_step(
    k, v, dk, dv, q_place, d_place, lse, deltas, keys, first, end, length, back, ahead, scale,
    QK: tl.constexpr, OUT: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, STEP: tl.constexpr,
    S: tl.constexpr, PRECISION: tl.constexpr, MASKED: tl.constexpr,
):  # fmt: skip
    """Adds to the gradients of keys and values what comes from the queries from row `first` on."""
    wide, rows = tl.cast(first, tl.int64), tl.arange(0, STEP)
    q = load_rows(q_place + wide * QK, end - first, QK, E, STEP, WIDTH, MASKED)
    dmixed = load_rows(d_place + wide * OUT, end - first, OUT, E, STEP, WIDTH, MASKED)
    if MASKED:
        sums = tl.load(lse + wide + rows, mask=rows < end - first, other=float("inf"))
        delta = tl.load(deltas + wide + rows, mask=rows < end - first, other=0.0)
    else:
        sums, delta = tl.load(lse + wide + rows), tl.load(deltas + wide + rows)
    weights = tl.exp2(tl.dot(k, tl.trans(q), input_precision=PRECISION) * scale - sums[None, :])
    if MASKED:
        queries = (first + rows)[None, :]
        seen = sees(queries, keys[:, None], length, back, ahead, S) & (queries < end)
        weights = tl.where(seen, weights, 0.0)
    dv = tl.dot(weights.to(v.dtype), dmixed, dv, input_precision=PRECISION)
    dscores = weights * (tl.dot(v, tl.trans(dmixed), input_precision=PRECISION) - delta[None, :])
    dk = tl.dot(dscores.to(v.dtype), q, dk, input_precision=PRECISION)
    return dk, dv


@triton.jit
def backward_keys(
    qk, qkv, dout, lse, deltas, dqkv, offsets, tiles, ends, cos, sin,
    histories, longest, total, back, ahead, scale,
    H: tl.constexpr, E: tl.constexpr, WIDTH: tl.constexpr, QK: tl.constexpr,
    ROWS: tl.constexpr, STEP: tl.constexpr, S: tl.constexpr,
    ROTARY: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    tile, head = tl.program_id(0) // H, tl.program_id(0) % H
    start, length, first = locate(tiles, ends, offsets, histories, longest, tile, ROWS)
    # The queries that see a key: `ahead` and `back` change places.
    low, inner, outer, high, far = span(first, length, ahead, back, ROWS, STEP, S)
    rows, columns = tl.arange(0, ROWS), tl.arange(0, WIDTH)
    keys = first + rows
    count = length - first
    V: tl.constexpr = 3 * H * E
    q_place, d_place = qk + start * QK + head * E, dout + start * (H * E) + head * E
    k = load_rows(q_place + H * E + first.to(tl.int64) * QK, count, QK, E, ROWS, WIDTH, True)
    v = load_rows(qkv + (start + first) * V + 2 * H * E + head * E, count, V, E, ROWS, WIDTH, True)
    place = head.to(tl.int64) * total + start
    lse += place
    deltas += place
    dk, dv = tl.zeros((ROWS, WIDTH), tl.float32), tl.zeros((ROWS, WIDTH), tl.float32)
    for query in range(inner, outer, STEP):
        dk, dv = _key_step(
            k, v, dk, dv, q_place, d_place, lse, deltas, keys, query, length, length, back, ahead, scale,
            QK, H * E, E, WIDTH, STEP, S, PRECISION, False,
        )  # fmt: skip
    for n in range(masked_steps(low, inner, outer, high, far, length, STEP)):
        query, end = masked_step(n, low, inner, outer, high, far, length, STEP, S)
        dk, dv = _key_step(
            k, v, dk, dv, q_place, d_place, lse, deltas, keys, query, end, length, back, ahead, scale,
            QK, H * E, E, WIDTH, STEP, S, PRECISION, True,
        )  # fmt: skip
    dk *= scale * 0.6931471805599453
    if ROTARY:
        dk = turn_rows(dk, cos, sin, first, count, -1.0, E, ROWS, WIDTH, True)
    to = dqkv + (start + first) * V + H * E + head * E + rows[:, None] * V + columns[None, :]
    mask = (rows < count)[:, None] & (columns < E)[None, :]
    tl.store(to, dk.to(dqkv.dtype.element_ty), mask=mask)
    tl.store(to + H * E, dv.to(dqkv.dtype.element_ty), mask=mask)
