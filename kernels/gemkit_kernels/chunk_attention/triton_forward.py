"""`chunk_attention`, forward: a chunk and head is one tile; nothing but inputs and outputs touches memory.

A whole chunk of keys and values fits one program, so there is no online softmax. Queries go through in blocks where all
at once would not fit the registers.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gemkit_kernels.tiles import LOG2E, inverse_rms, softmax_rows, turn


@triton.jit
def turns_of(turns, rows, E: tl.constexpr, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Cosines and sines of some rows of a chunk. Shape: rows (L,) -> (L, WIDTH / 2)."""
    pairs = tl.arange(0, WIDTH // 2)
    place = rows[:, None] * (E // 2) + pairs[None, :]
    there = (rows < ROWS)[:, None] & (pairs < E // 2)[None, :]
    # All programs read the same table: it should stay in the caches that heads stream through.
    cos = tl.load(turns + place, mask=there, other=0.0, eviction_policy="evict_last")
    return cos, tl.load(turns + ROWS * (E // 2) + place, mask=there, other=0.0, eviction_policy="evict_last")


@triton.jit
def normed(x, gain, E: tl.constexpr, NORM: tl.constexpr, EPS: tl.constexpr):
    """Queries or keys after QK-norm."""
    if NORM:
        wide = x.to(tl.float32)
        x = (wide * inverse_rms(wide, E, EPS)[:, None] * gain[None, :]).to(x.dtype)
    return x


@triton.jit
def turned(
    x, turns, rows, E: tl.constexpr, ROWS: tl.constexpr, L: tl.constexpr, WIDTH: tl.constexpr, ROTARY: tl.constexpr
):
    """L queries or keys with rotary positions."""
    if ROTARY:
        cos, sin = turns_of(turns, rows, E, ROWS, WIDTH)
        x = turn(x.to(tl.float32), cos, sin, L, WIDTH).to(x.dtype)
    return x


@triton.jit
def gain_of(gains, columns, E: tl.constexpr, NORM: tl.constexpr):
    gain = tl.zeros_like(columns).to(tl.float32)
    if NORM:
        gain = tl.load(gains + columns, mask=columns < E, other=0.0).to(tl.float32)
    return gain


@triton.jit
def scores_of(q, k, ages, slope, q_rows, k_rows, start, length, scale, AGES: tl.constexpr, PRECISION: tl.constexpr):
    """Scores in units of log 2, and what the slope is multiplied by."""
    scores = tl.dot(q, tl.trans(k), input_precision=PRECISION) * (scale * LOG2E)
    distance = scores
    if AGES:
        q_age = tl.load(ages + start + q_rows, mask=q_rows < length, other=0.0)
        k_age = tl.load(ages + start + k_rows, mask=k_rows < length, other=0.0)
        distance = tl.log2(1.0 + tl.abs(q_age[:, None] - k_age[None, :]))
        scores += slope * distance
    return tl.where((k_rows < length)[None, :], scores, float("-inf")), distance


@triton.jit
def chunk_forward(
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
        flat_k = normed(k, gain_of(gains + E, columns, E, NORM) if NORM else 0.0, E, NORM, EPS)
        k = turned(flat_k, turns, rows, E, ROWS, ROWS, WIDTH, ROTARY)
        gain = gain_of(gains, columns, E, NORM) if NORM else 0.0
        slope = tl.load(slopes + head).to(tl.float32) if AGES else 0.0
        for first in range(0, ROWS, BLOCK):
            own = first + tl.arange(0, BLOCK)
            own_mask = (own < length)[:, None] & in_head
            q = tl.load(base + own[:, None] * (3 * H * E) + columns[None, :], mask=own_mask, other=0.0)
            q = turned(normed(q, gain, E, NORM, EPS), turns, own, E, ROWS, BLOCK, WIDTH, ROTARY)
            scores, _ = scores_of(q, k, ages, slope, own, rows, start, length, scale, AGES, PRECISION)
            mixed = tl.dot(softmax_rows(scores).to(kind), v, input_precision=PRECISION)
            there = out + start * (H * E) + head * E + own[:, None] * (H * E) + columns[None, :]
            tl.store(there, mixed.to(kind), mask=own_mask)
        if M > 0:
            slot = tl.arange(0, 16)
            some = (slot < M)[:, None] & in_head
            learned = queries + slot[:, None] * (H * E) + head * E + columns[None, :]
            query = tl.load(learned, mask=some, other=0.0).to(kind)
            pooled = tl.dot(query, tl.trans(flat_k), input_precision=PRECISION) * (scale * LOG2E)
            weights = softmax_rows(tl.where((rows < length)[None, :], pooled, float("-inf"))).to(kind)
            pooled = tl.dot(weights, v, input_precision=PRECISION)
            there = summaries + chunk.to(tl.int64) * (M * H * E) + head * E
            tl.store(there + slot[:, None] * (H * E) + columns[None, :], pooled.to(kind), mask=some)
