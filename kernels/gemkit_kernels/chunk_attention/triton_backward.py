"""`chunk_attention`, backward: the softmax is computed anew from queries and keys.

Reads queries, keys, values and the gradient, writes three gradients. Sums over chunks (gradients of gains, slopes and
summary queries) are written tile by tile, to be added up afterwards in a fixed order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gemkit_kernels.chunk_attention.triton_forward import gain_of, normed, scores_of, turned, turns_of
from gemkit_kernels.tiles import LOG2E, inverse_rms, rms_norm_backward, softmax_rows, turn


@triton.jit
def _turned_back(
    dx, turns, rows, E: tl.constexpr, ROWS: tl.constexpr, L: tl.constexpr, WIDTH: tl.constexpr, ROTARY: tl.constexpr
):
    """The gradient of what `turned` was given."""
    if ROTARY:
        cos, sin = turns_of(turns, rows, E, ROWS, WIDTH)
        dx = turn(dx, cos, -sin, L, WIDTH)
    return dx


@triton.jit
def _gradients(
    q, dmixed, k, v, ages, slope, q_rows, k_rows, start, length, scale, AGES: tl.constexpr, PRECISION: tl.constexpr
):
    """Weights, and gradients of scores times `scale`, of a block of queries; the gradient of the slope, row by row."""
    scores, distance = scores_of(q, k, ages, slope, q_rows, k_rows, start, length, scale, AGES, PRECISION)
    weights = softmax_rows(scores)
    dweights = tl.dot(dmixed, tl.trans(v), input_precision=PRECISION)
    dscores = weights * (dweights - tl.sum(weights * dweights, 1)[:, None])
    # `distance` is in units of log 2.
    dslope = tl.sum(dscores * distance, 1) / LOG2E if AGES else tl.sum(dscores, 1)
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
def chunk_backward(
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
        gain_q = gain_of(gains, columns, E, NORM) if NORM else 0.0
        gain_k = gain_of(gains + E, columns, E, NORM) if NORM else 0.0
        slope = tl.load(slopes + head).to(tl.float32) if AGES else 0.0
        k = turned(normed(k, gain_k, E, NORM, EPS), turns, rows, E, ROWS, ROWS, WIDTH, ROTARY)
        dk, dv = tl.zeros((ROWS, WIDTH), tl.float32), tl.zeros((ROWS, WIDTH), tl.float32)
        if BLOCK == ROWS:
            # One gradient after the other, each stored before the next is made: fewer registers, more programs at once.
            raw_q = tl.load(qkv + place, mask=mask, other=0.0)
            dmixed = tl.load(
                dout + start * (H * E) + head * E + rows[:, None] * (H * E) + columns[None, :], mask=mask, other=0.0
            )
            q = turned(normed(raw_q, gain_q, E, NORM, EPS), turns, rows, E, ROWS, ROWS, WIDTH, ROTARY)
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
                q = turned(normed(raw_q, gain_q, E, NORM, EPS), turns, own, E, ROWS, BLOCK, WIDTH, ROTARY)
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
            flat_k = normed(raw_k, gain_k, E, NORM, EPS)
            slot = tl.arange(0, 16)
            some = (slot < M)[:, None] & in_head
            learned = queries + slot[:, None] * (H * E) + head * E + columns[None, :]
            query = tl.load(learned, mask=some, other=0.0).to(kind)
            there = dsummaries + chunk.to(tl.int64) * (M * H * E) + head * E
            dpooled = tl.load(there + slot[:, None] * (H * E) + columns[None, :], mask=some, other=0.0)
            pooled = tl.dot(query, tl.trans(flat_k), input_precision=PRECISION) * (scale * LOG2E)
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
