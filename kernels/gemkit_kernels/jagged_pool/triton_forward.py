"""The forward kernels of `jagged_pool`.

A program goes over the rows of its split once, with online softmax. A history of one split is finished then; a longer
one leaves (peak, sum, mixed values) of each split, which a second kernel joins in order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gemkit_kernels.tiles import LOG2E
from gemkit_kernels.triton_splits import split_of, splits_of


@triton.jit
def pool_forward(
    queries,
    keys,
    values,
    offsets,
    owners,
    out,
    log_sums,
    mixed_parts,
    sum_parts,
    scale,
    H: tl.constexpr,
    Q: tl.constexpr,
    E: tl.constexpr,
    KEY_STRIDE: tl.constexpr,
    VALUE_STRIDE: tl.constexpr,
    QUERIES: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    SHARED: tl.constexpr,
    SAME: tl.constexpr,
    PRECISION: tl.constexpr,
):
    split, head = tl.program_id(0) // H, tl.program_id(0) % H
    segment, number, first, length, whole = split_of(offsets, owners, split, SPLIT)
    column, slot = tl.arange(0, WIDTH), tl.arange(0, QUERIES)
    in_head, there = column < E, slot < Q
    in_query = there[:, None] & in_head[None, :]
    within = slot[:, None] * (H * E) + head * E + column[None, :]
    place = segment * (Q * H * E) + within
    query = tl.load(queries + (within if SHARED else place), mask=in_query, other=0.0)
    kind = query.dtype
    key_rows = keys + first * KEY_STRIDE + head * E
    value_rows = values + first * VALUE_STRIDE + head * E
    peak, total = tl.full((QUERIES,), float("-inf"), tl.float32), tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, WIDTH), tl.float32)
    for begin in tl.range(0, length, ROWS, num_stages=STAGES):
        row = begin + tl.arange(0, ROWS)
        inside = (row < length)[:, None] & in_head[None, :]
        key = tl.load(key_rows + row[:, None] * KEY_STRIDE + column[None, :], mask=inside, other=0.0)
        if SAME:
            value = key
        else:
            value = tl.load(value_rows + row[:, None] * VALUE_STRIDE + column[None, :], mask=inside, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * (scale * LOG2E)
        scores = tl.where((row < length)[None, :], scores, float("-inf"))
        higher = tl.maximum(peak, tl.max(scores, 1))
        weights = tl.exp2(scores - higher[:, None])
        shrink = tl.exp2(peak - higher)
        total = total * shrink + tl.sum(weights, 1)
        mixed = tl.dot(weights.to(kind), value, mixed * shrink[:, None], input_precision=PRECISION)
        peak = higher
    alone = (whole <= SPLIT) & (number == 0)
    whole_sum = tl.where(total == 0.0, 1.0, total)
    tl.store(out + place, (mixed / whole_sum[:, None]).to(kind), mask=in_query & alone)
    tl.store(log_sums + (segment * H + head) * Q + slot, peak + tl.log2(whole_sum), mask=there & alone)
    several = (whole > SPLIT) & (length > 0)
    wide = split.to(tl.int64)
    tl.store(mixed_parts + wide * (Q * H * E) + within, mixed, mask=in_query & several)
    tl.store(sum_parts + (wide * H + head) * (2 * Q) + slot, peak, mask=there & several)
    tl.store(sum_parts + (wide * H + head) * (2 * Q) + Q + slot, total, mask=there & several)


@triton.jit
def pool_join(
    mixed_parts,
    sum_parts,
    offsets,
    out,
    log_sums,
    H: tl.constexpr,
    Q: tl.constexpr,
    E: tl.constexpr,
    QUERIES: tl.constexpr,
    WIDTH: tl.constexpr,
    SPLIT: tl.constexpr,
):
    segment, head = (tl.program_id(0) // H).to(tl.int64), tl.program_id(0) % H
    first, count = splits_of(offsets, segment, SPLIT)
    column, slot = tl.arange(0, WIDTH), tl.arange(0, QUERIES)
    there = (slot < Q) & (count > 1)
    in_query = there[:, None] & (column < E)[None, :]
    within = slot[:, None] * (H * E) + head * E + column[None, :]
    peak, total = tl.full((QUERIES,), float("-inf"), tl.float32), tl.zeros((QUERIES,), tl.float32)
    mixed = tl.zeros((QUERIES, WIDTH), tl.float32)
    for i in range(0, count):
        split = first + tl.cast(i, tl.int64)
        sums = sum_parts + (split * H + head) * (2 * Q) + slot
        part_peak = tl.load(sums, mask=there, other=0.0)
        higher = tl.maximum(peak, part_peak)
        shrink, part_shrink = tl.exp2(peak - higher), tl.exp2(part_peak - higher)
        total = total * shrink + tl.load(sums + Q, mask=there, other=0.0) * part_shrink
        part = tl.load(mixed_parts + split * (Q * H * E) + within, mask=in_query, other=0.0)
        mixed = mixed * shrink[:, None] + part * part_shrink[:, None]
        peak = higher
    total = tl.where(there, total, 1.0)
    mixed = mixed / total[:, None]
    tl.store(out + segment * (Q * H * E) + within, mixed.to(out.dtype.element_ty), mask=in_query)
    tl.store(log_sums + (segment * H + head) * Q + slot, peak + tl.log2(total), mask=there)
