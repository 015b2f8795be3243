"""`jagged_pool` in Triton: a split of a history and a head is a program, and a second kernel joins long histories.

Forward: a program goes over the rows of its split once, with online softmax. A history of one split is finished then;
a longer one leaves (peak, sum, mixed values) of each split, which are joined in order. Backward: weights are computed
anew from the saved log-sum-exp, so rows get their gradients at once; those of queries are added split by split.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gemkit_kernels.splits import num_splits
from gemkit_kernels.tiles import LOG2E, Build, pointer, power_of_two
from gemkit_kernels.triton_splits import add_splits, owners, split_builds, split_of, splits_of

SPLIT = 512


@triton.jit
def _forward(
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
def _join(
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


@triton.jit
def _backward(
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


def _constants(
    queries: Tensor, keys: Tensor, values: Tensor | None, num_heads: int, backward: bool
) -> dict[str, object]:
    head_dim = keys.shape[1] // num_heads
    queries_held, width, exact = power_of_two(queries.shape[-2]), power_of_two(head_dim), keys.dtype == torch.float32
    # What registers hold without spilling, found by compiling ahead of time.
    rows = 16 if exact and backward and max(width, 4 * queries_held) == 128 else 32 if exact or backward else 64
    return {
        "H": num_heads,
        "Q": queries.shape[-2],
        "E": head_dim,
        "KEY_STRIDE": keys.stride(0),
        "VALUE_STRIDE": keys.stride(0) if values is None else values.stride(0),
        "QUERIES": queries_held,
        "WIDTH": width,
        "ROWS": rows,
        "SPLIT": SPLIT,
        "STAGES": 1 if exact else 3,
        "SHARED": queries.dim() == 2,
        "SAME": values is None,
        # Two products of bf16 fit tf32 and fp32 does not: three tf32 products give fp32's precision.
        "PRECISION": "tf32x3" if exact else "tf32",
    }


def num_warps(num_queries: int, head_dim: int, dtype: torch.dtype) -> int:
    """Warps whose registers hold a tile without spilling, found by compiling ahead of time."""
    tile = power_of_two(num_queries) * power_of_two(head_dim)
    return 8 if tile >= (1024 if dtype == torch.float32 else 4096) else 4


def _rows(x: Tensor) -> Tensor:
    """Values of a row side by side; rows may be apart."""
    return x if x.stride(1) == 1 else x.contiguous()


def jagged_pool_forward(
    queries: Tensor, keys: Tensor, values: Tensor | None, offsets: Tensor, num_heads: int, scale: float
) -> tuple[Tensor, Tensor]:
    """Pooled values, and the log-sum-exp of the scores in units of log 2. Shape: (U, Q, D), (U, H, Q)."""
    segments, num_queries, (total, dim) = offsets.shape[0] - 1, queries.shape[-2], keys.shape
    out = keys.new_empty(segments, num_queries, dim)
    log_sums = out.new_empty(segments, num_heads, num_queries, dtype=torch.float32)
    if not segments or not num_queries:
        return out, log_sums
    keys, values = _rows(keys), None if values is None else _rows(values)
    splits = num_splits(total, segments, SPLIT)
    mixed_parts = out.new_empty(splits, num_queries, dim, dtype=torch.float32)
    sum_parts = out.new_empty(splits, num_heads, 2, num_queries, dtype=torch.float32)
    constants = _constants(queries, keys, values, num_heads, False)
    warps = num_warps(num_queries, dim // num_heads, keys.dtype)
    _forward[(splits * num_heads,)](
        queries.contiguous(),
        keys,
        keys if values is None else values,
        offsets,
        owners(offsets, SPLIT, total),
        out,
        log_sums,
        mixed_parts,
        sum_parts,
        scale,
        **constants,
        num_warps=warps,
    )
    shape = {name: constants[name] for name in ("H", "Q", "E", "QUERIES", "WIDTH", "SPLIT")}
    _join[(segments * num_heads,)](mixed_parts, sum_parts, offsets, out, log_sums, **shape, num_warps=4)
    return out, log_sums


def jagged_pool_backward(
    dout: Tensor,
    out: Tensor,
    log_sums: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor | None,
    offsets: Tensor,
    num_heads: int,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values; without values, keys have both and the last is empty."""
    segments, num_queries, (total, dim) = offsets.shape[0] - 1, queries.shape[-2], keys.shape
    shared = queries.dim() == 2
    dqueries = queries.new_empty(queries.shape)
    dkeys, dvalues = keys.new_empty(keys.shape), keys.new_empty(0 if values is None else keys.shape)
    if not segments or not num_queries:
        return dqueries.zero_(), dkeys.zero_(), dvalues.zero_()
    keys, values = _rows(keys), None if values is None else _rows(values)
    splits = num_splits(total, segments, SPLIT)
    parts = out.new_empty(splits, num_queries, dim, dtype=torch.float32)
    _backward[(splits * num_heads,)](
        dout.contiguous(),
        out,
        log_sums,
        queries.contiguous(),
        keys,
        keys if values is None else values,
        offsets,
        owners(offsets, SPLIT, total),
        dqueries,
        parts,
        dkeys,
        dvalues,
        scale,
        **_constants(queries, keys, values, num_heads, True),
        num_warps=num_warps(num_queries, dim // num_heads, keys.dtype),
    )
    if shared:
        return parts.sum(0).to(queries.dtype), dkeys, dvalues
    add_splits(parts, offsets, SPLIT, dqueries)
    return dqueries, dkeys, dvalues


def builds() -> list[Build]:
    """The shipped tiles: few queries and as many as a tile holds, for heads of 16 to 128."""
    found = split_builds("*bf16", SPLIT)
    for dtype, tiles in (
        (torch.bfloat16, ((16, 16, True), (16, 64, False), (64, 64, True), (16, 128, True), (64, 128, False))),
        (torch.float32, ((16, 64, False), (16, 128, True), (32, 64, True))),
    ):
        for queries, width, shared in tiles:
            found += _builds_of(dtype, queries, width, shared)
    return found


def _builds_of(dtype: torch.dtype, queries: int, width: int, shared: bool) -> list[Build]:
    """Shared queries come with values that are the keys, others with values of their own."""
    kind, dim = pointer(dtype), 4 * width
    inputs = dict.fromkeys(("queries", "keys", "values"), kind) | {"offsets": "*i32", "owners": "*i32"}
    parts = {"mixed_parts": "*fp32", "sum_parts": "*fp32"}
    forward = {**inputs, "out": kind, "log_sums": "*fp32", **parts, "scale": "fp32"}
    join = {**parts, "offsets": "*i32", "out": kind, "log_sums": "*fp32"}
    gradients = {"dqueries": kind, "query_parts": "*fp32", "dkeys": kind, "dvalues": kind, "scale": "fp32"}
    backward = {"dout": kind, "out": kind, "log_sums": "*fp32", **inputs, **gradients}
    name = f"{kind[1:]}, {queries} {'shared' if shared else 'own'} queries, head {width}"
    warps, pipelined = num_warps(queries, width, dtype), dtype != torch.float32
    rows = torch.empty(0, dim, dtype=dtype, device="meta")
    query = torch.empty((queries, dim) if shared else (0, queries, dim), dtype=dtype, device="meta")
    passes = [
        (title, kernel, arguments, _constants(query, rows, None if shared else rows, 4, title == "backward"))
        for title, kernel, arguments in (("forward", _forward, forward), ("backward", _backward, backward))
    ]
    found = [Build(f"{title}, {name}", *rest, warps, pipelined=pipelined) for title, *rest in passes]
    shape = {key: passes[0][3][key] for key in ("H", "Q", "E", "QUERIES", "WIDTH", "SPLIT")}
    return [*found, Build(f"join, {name}", _join, join, shape, 4)] if not shared else found
