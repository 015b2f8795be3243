"""`jagged_pool` in Triton: a split of a history and a head is a program; which tiles, and how they are started."""

from __future__ import annotations

import torch
from torch import Tensor

from gemkit_kernels.jagged_pool.triton_backward import pool_backward
from gemkit_kernels.jagged_pool.triton_forward import pool_forward, pool_join
from gemkit_kernels.splits import num_splits
from gemkit_kernels.tiles import Build, pointer, power_of_two
from gemkit_kernels.triton_splits import add_splits, owners, split_builds

SPLIT = 512


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
    pool_forward[(splits * num_heads,)](
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
    pool_join[(segments * num_heads,)](mixed_parts, sum_parts, offsets, out, log_sums, **shape, num_warps=4)
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
    pool_backward[(splits * num_heads,)](
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
    found = []
    for title, kernel, arguments in (("forward", pool_forward, forward), ("backward", pool_backward, backward)):
        constants = _constants(query, rows, None if shared else rows, 4, title == "backward")
        found.append(Build(f"{title}, {name}", kernel, arguments, constants, warps, pipelined=pipelined))
    shape = {key: found[0].constants[key] for key in ("H", "Q", "E", "QUERIES", "WIDTH", "SPLIT")}
    return [*found, Build(f"join, {name}", pool_join, join, shape, 4)] if not shared else found
