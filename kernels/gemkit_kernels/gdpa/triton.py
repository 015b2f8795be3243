"""`gdpa` in Triton: a split of a history and a head is a program, which holds the keys and goes over the rows.

Nothing but queries and outputs is as long as the histories, in both passes: scores are computed anew in the backward
pass. Gradients of keys and values are sums over a history. A history of one split writes them at once; a longer one
writes them split by split, and a second kernel adds these in order.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from gemkit_kernels.splits import num_splits
from gemkit_kernels.tiles import Build, pointer, power_of_two
from gemkit_kernels.triton_splits import add_splits, owners, split_builds, split_of

FORWARD_SPLIT = 512


@triton.jit
def _activation(x, GELU: tl.constexpr):
    """The activation and its derivative."""
    if GELU:
        share = 0.5 + 0.5 * tl.erf(x * 0.7071067811865476)
        slope = share + x * tl.exp2(x * x * -0.7213475204444817) * 0.3989422804014327
    else:
        share = tl.sigmoid(x)
        slope = share * (1.0 + x * (1.0 - share))
    return x * share, slope


@triton.jit
def _forward(
    queries,
    keys,
    values,
    offsets,
    owners,
    out,
    scale,
    H: tl.constexpr,
    M: tl.constexpr,
    E: tl.constexpr,
    STRIDE: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    GELU: tl.constexpr,
    PRECISION: tl.constexpr,
):
    split, head = tl.program_id(0) // H, tl.program_id(0) % H
    segment, _, first, length, _ = split_of(offsets, owners, split, SPLIT)
    column, slot = tl.arange(0, WIDTH), tl.arange(0, KEYS)
    in_head = column < E
    place = segment * (M * H * E) + slot[:, None] * (H * E) + head * E + column[None, :]
    mask = (slot < M)[:, None] & in_head[None, :] & (length > 0)
    # Keys that are not there are 0, and so is the activation of 0.
    key, value = tl.load(keys + place, mask=mask, other=0.0), tl.load(values + place, mask=mask, other=0.0)
    query_rows = queries + first * STRIDE + head * E
    out_rows = out + first * (H * E) + head * E
    for begin in tl.range(0, length, ROWS, num_stages=STAGES):
        row = begin + tl.arange(0, ROWS)
        inside = (row < length)[:, None] & in_head[None, :]
        query = tl.load(query_rows + row[:, None] * STRIDE + column[None, :], mask=inside, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        weights = _activation(scores, GELU)[0]
        mixed = tl.dot(weights.to(key.dtype), value, input_precision=PRECISION)
        tl.store(out_rows + row[:, None] * (H * E) + column[None, :], mixed.to(key.dtype), mask=inside)


@triton.jit
def _backward(
    dout,
    queries,
    keys,
    values,
    offsets,
    owners,
    dqueries,
    dkeys,
    dvalues,
    key_parts,
    value_parts,
    scale,
    H: tl.constexpr,
    M: tl.constexpr,
    E: tl.constexpr,
    STRIDE: tl.constexpr,
    KEYS: tl.constexpr,
    WIDTH: tl.constexpr,
    ROWS: tl.constexpr,
    SPLIT: tl.constexpr,
    STAGES: tl.constexpr,
    GELU: tl.constexpr,
    PRECISION: tl.constexpr,
):
    split, head = tl.program_id(0) // H, tl.program_id(0) % H
    segment, number, first, length, whole = split_of(offsets, owners, split, SPLIT)
    column, slot = tl.arange(0, WIDTH), tl.arange(0, KEYS)
    in_head = column < E
    in_key = (slot < M)[:, None] & in_head[None, :]
    within = slot[:, None] * (H * E) + head * E + column[None, :]
    place = segment * (M * H * E) + within
    key = tl.load(keys + place, mask=in_key, other=0.0)
    value = tl.load(values + place, mask=in_key, other=0.0)
    kind = key.dtype
    dkey, dvalue = tl.zeros((KEYS, WIDTH), tl.float32), tl.zeros((KEYS, WIDTH), tl.float32)
    query_rows = queries + first * STRIDE + head * E
    out_rows = first * (H * E) + head * E
    for begin in tl.range(0, length, ROWS, num_stages=STAGES):
        row = begin + tl.arange(0, ROWS)
        inside = (row < length)[:, None] & in_head[None, :]
        there = out_rows + row[:, None] * (H * E) + column[None, :]
        query = tl.load(query_rows + row[:, None] * STRIDE + column[None, :], mask=inside, other=0.0)
        dmixed = tl.load(dout + there, mask=inside, other=0.0)
        scores = tl.dot(query, tl.trans(key), input_precision=PRECISION) * scale
        weights, slope = _activation(scores, GELU)
        dvalue += tl.dot(tl.trans(weights.to(kind)), dmixed, input_precision=PRECISION)
        dscores = tl.dot(dmixed, tl.trans(value), input_precision=PRECISION) * slope * scale
        dscores = dscores.to(kind)
        dkey += tl.dot(tl.trans(dscores), query, input_precision=PRECISION)
        dquery = tl.dot(dscores, key, input_precision=PRECISION)
        tl.store(dqueries + there, dquery.to(kind), mask=inside)
    alone = whole <= SPLIT
    mask = in_key & alone & (number == 0)
    tl.store(dkeys + place, dkey.to(kind), mask=mask)
    tl.store(dvalues + place, dvalue.to(kind), mask=mask)
    part = split.to(tl.int64) * (M * H * E) + within
    mask = in_key & (whole > SPLIT) & (length > 0)
    tl.store(key_parts + part, dkey, mask=mask)
    tl.store(value_parts + part, dvalue, mask=mask)


def _constants(
    queries: Tensor, num_heads: int, num_keys: int, activation: str, split: int, backward: bool
) -> dict[str, object]:
    head_dim = queries.shape[1] // num_heads
    keys, width, exact = power_of_two(num_keys), power_of_two(head_dim), queries.dtype == torch.float32
    # What registers hold without spilling, found by compiling ahead of time.
    rows = 16 if exact and backward and width == 128 else 32 if exact or backward or keys * width > 4096 else 64
    return {
        "H": num_heads,
        "M": num_keys,
        "E": head_dim,
        "STRIDE": queries.stride(0),
        "KEYS": keys,
        "WIDTH": width,
        "ROWS": rows,
        "SPLIT": split,
        "STAGES": 1 if exact else 3,
        "GELU": activation == "gelu",
        # Two products of bf16 fit tf32 and fp32 does not: three tf32 products give fp32's precision.
        "PRECISION": "tf32x3" if exact else "tf32",
    }


def backward_split(num_keys: int) -> int:
    """Rows of a split, in proportion to what it leaves to be added: gradients of all keys and values, in fp32."""
    return max(512, 32 * power_of_two(num_keys))


def num_warps(num_keys: int, head_dim: int, dtype: torch.dtype) -> int:
    """Warps whose registers hold the keys' gradients without spilling, found by compiling ahead of time."""
    tile = power_of_two(num_keys) * power_of_two(head_dim)
    return 8 if tile >= (1024 if dtype == torch.float32 else 4096) else 4


def _rows(x: Tensor) -> Tensor:
    """Values of a row side by side; rows may be apart."""
    return x if x.stride(1) == 1 else x.contiguous()


def gdpa_forward(
    queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, num_heads: int, scale: float, activation: str
) -> Tensor:
    """Shape: as `gdpa`."""
    total, segments, num_keys = queries.shape[0], keys.shape[0], keys.shape[1]
    head_dim = queries.shape[1] // num_heads
    out, queries = queries.new_empty(queries.shape), _rows(queries)
    if total and num_keys:
        _forward[(num_splits(total, segments, FORWARD_SPLIT) * num_heads,)](
            queries,
            keys.contiguous(),
            values.contiguous(),
            offsets,
            owners(offsets, FORWARD_SPLIT, total),
            out,
            scale,
            **_constants(queries, num_heads, num_keys, activation, FORWARD_SPLIT, False),
            num_warps=num_warps(num_keys, head_dim, queries.dtype),
        )
    return out if num_keys else out.zero_()


def gdpa_backward(
    dout: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    offsets: Tensor,
    num_heads: int,
    scale: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients of queries, keys and values."""
    total, segments, num_keys = queries.shape[0], keys.shape[0], keys.shape[1]
    head_dim, size = queries.shape[1] // num_heads, backward_split(num_keys)
    dqueries, queries = queries.new_empty(queries.shape), _rows(queries)
    dkeys, dvalues = keys.new_empty(keys.shape), values.new_empty(values.shape)
    if not segments or not num_keys:
        return dqueries.zero_(), dkeys, dvalues
    count = num_splits(total, segments, size)
    parts = [torch.empty(count, *keys.shape[1:], dtype=torch.float32, device=keys.device) for _ in range(2)]
    _backward[(count * num_heads,)](
        dout.contiguous(),
        queries,
        keys.contiguous(),
        values.contiguous(),
        offsets,
        owners(offsets, size, total),
        dqueries,
        dkeys,
        dvalues,
        *parts,
        scale,
        **_constants(queries, num_heads, num_keys, activation, size, True),
        num_warps=num_warps(num_keys, head_dim, queries.dtype),
    )
    for part, gradient in zip(parts, (dkeys, dvalues), strict=True):
        add_splits(part, offsets, size, gradient)
    return dqueries, dkeys, dvalues


def builds() -> list[Build]:
    """The shipped tiles: few keys and as many as a tile holds, for heads of 16 to 128."""
    found = split_builds("*bf16", 512)
    for dtype, tiles in (
        (torch.bfloat16, ((16, 16), (64, 16), (16, 64), (64, 64), (16, 128), (64, 128))),
        (torch.float32, ((16, 64), (32, 64), (32, 128))),
    ):
        for keys, width in tiles:
            found += _builds_of(dtype, width, keys)
    return found


def _builds_of(dtype: torch.dtype, width: int, keys: int) -> list[Build]:
    kind = pointer(dtype)
    inputs = dict.fromkeys(("queries", "keys", "values"), kind) | {"offsets": "*i32", "owners": "*i32"}
    gradients = dict.fromkeys(("dqueries", "dkeys", "dvalues"), kind) | {"key_parts": "*fp32", "value_parts": "*fp32"}
    forward = {**inputs, "out": kind, "scale": "fp32"}
    backward = {"dout": kind, **inputs, **gradients, "scale": "fp32"}
    name = f"{kind[1:]}, {keys} keys, head {width}"
    warps, pipelined = num_warps(keys, width, dtype), dtype != torch.float32
    queries = torch.empty(0, 4 * width, dtype=dtype, device="meta")
    found = []
    for title, kernel, arguments, split in (
        ("forward", _forward, forward, FORWARD_SPLIT),
        ("backward", _backward, backward, backward_split(keys)),
    ):
        constants = _constants(queries, 4, keys, "gelu", split, title == "backward")
        found.append(Build(f"{title}, {name}", kernel, arguments, constants, warps, pipelined=pipelined))
    return found
