"""The backward kernel of `jagged_pool`.

Weights are computed anew from the saved log-sum-exp, so rows get their gradients at once; those of queries are written
split by split, to be added in order.
"""

from __future__ import annotations

import triton
import triton.language as tl

from gemkit_kernels.tiles import LOG2E
from gemkit_kernels.triton_splits import split_of


@triton.jit
def pool_backward(
    dout,
    out,
    log_sums,
    queries,
    keys,
    values,
    offsets,
    owners,
    dqueries,
    query_parts,
    dkeys,
    dvalues,
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
    dmixed = tl.load(dout + place, mask=in_query, other=0.0)
    mixed = tl.load(out + place, mask=in_query, other=0.0)
    delta = tl.sum(dmixed.to(tl.float32) * mixed.to(tl.float32), 1)
    log_sum = tl.load(log_sums + (segment * H + head) * Q + slot, mask=there, other=0.0)
    key_rows = keys + first * KEY_STRIDE + head * E
    value_rows = values + first * VALUE_STRIDE + head * E
    gradient_rows = first * (H * E) + head * E
    dquery = tl.zeros((QUERIES, WIDTH), tl.float32)
    for begin in tl.range(0, length, ROWS, num_stages=STAGES):
        row = begin + tl.arange(0, ROWS)
        inside = (row < length)[:, None] & in_head[None, :]
        key = tl.load(key_rows + row[:, None] * KEY_STRIDE + column[None, :], mask=inside, other=0.0)
        if SAME:
            value = key
        else:
            value = tl.load(value_rows + row[:, None] * VALUE_STRIDE + column[None, :], mask=inside, other=0.0)
        # Rows first: a query is a column of these.
        scores = tl.dot(key, tl.trans(query), input_precision=PRECISION) * (scale * LOG2E)
        weights = tl.where((row < length)[:, None] & there[None, :], tl.exp2(scores - log_sum[None, :]), 0.0)
        dweights = tl.dot(value, tl.trans(dmixed), input_precision=PRECISION)
        dscores = (weights * (dweights - delta[None, :]) * scale).to(kind)
        dquery += tl.dot(tl.trans(dscores), key, input_precision=PRECISION)
        dvalue = tl.dot(weights.to(kind), dmixed, input_precision=PRECISION)
        gradient = gradient_rows + row[:, None] * (H * E) + column[None, :]
        if SAME:
            dkey = tl.dot(dscores, query, dvalue, input_precision=PRECISION)
        else:
            dkey = tl.dot(dscores, query, input_precision=PRECISION)
            tl.store(dvalues + gradient, dvalue.to(kind), mask=inside)
        tl.store(dkeys + gradient, dkey.to(kind), mask=inside)
    part = query_parts + split.to(tl.int64) * (Q * H * E) + within
    if SHARED:
        tl.store(part, dquery, mask=in_query)
    else:
        tl.store(part, dquery, mask=in_query & (whole > SPLIT) & (length > 0))
        tl.store(dqueries + place, dquery.to(kind), mask=in_query & (whole <= SPLIT) & (number == 0))
