"""`jagged_pool`: the function, and the operator `gemkit::jagged_pool` that starts its kernels."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gemkit_kernels import check, paths
from gemkit_kernels.jagged_pool.pytorch import jagged_pool_pytorch

OP = "jagged_pool"
WIDEST = 128
"""Values of a head that a tile holds."""


def jagged_pool(
    queries: Tensor,
    keys: Tensor,
    values: Tensor | None,
    offsets: Tensor,
    num_heads: int,
    *,
    scale: float | None = None,
) -> Tensor:
    """Few queries pool each jagged history by attention, without a padded copy.

        offsets  0        3     5                    queries, shared or each history's own
        rows     [a b c | d e]               ->      [p q] of a b c, [p q] of d e

    In each head: `pooled_uj = sum_t softmax_t(scale q_uj . k_t) v_t` over the rows t of history u; zeros for a history
    without rows.

    Paper: Set Transformer (arXiv 1810.00825), section 3.2, pooling by multihead attention with learned seeds.
    Differs: no projections, residual or feed-forward, which are the caller's; each history may bring its own queries.

    Args:
        queries: Shared by all histories, or of each.
        keys, values: May be views of one tensor, with rows further apart than D. Without values, keys are the values.
        scale: One over the root of a head's width, unless it is given.

    Shape: queries (Q, D) or (U, Q, D), keys and values (T, D), offsets (U+1,) int32 or int64, from 0 to T -> (U, Q, D).

    Raises:
        ValueError: A shape, a type or a number that does not fit; see the message.
    """
    check.shape(OP, "keys", keys, (None, None))
    check.kind(OP, "keys", keys)
    check.offsets(OP, "offsets", offsets)
    dim = keys.shape[1]
    check.shape(OP, "queries", queries, (None, dim) if queries.dim() == 2 else (offsets.shape[0] - 1, None, dim))
    if values is not None:
        check.shape(OP, "values", values, tuple(keys.shape))
    others = {"queries": queries, "values": keys if values is None else values}
    for name, tensor in others.items():
        if tensor.dtype != keys.dtype:
            raise ValueError(f"{OP}: {name} are {tensor.dtype}, keys {keys.dtype}")
    head_dim = check.divides(OP, "num_heads", num_heads, dim)
    scale = 1 / math.sqrt(head_dim) if scale is None else float(scale)
    rest = (keys, values, offsets, num_heads, scale)
    if paths.choose(OP, keys.device.type, _unfit(head_dim, keys.dtype)) != paths.TRITON:
        return jagged_pool_pytorch(queries, *rest)
    outs: list[Tensor] = [_operator(part, *rest)[0] for part in queries.split(most_queries(head_dim, keys.dtype), -2)]
    return torch.cat(outs, -2) if len(outs) > 1 else outs[0]


def most_queries(head_dim: int, dtype: torch.dtype) -> int:
    """Queries that a tile holds."""
    return 64 if dtype != torch.float32 else 32 if head_dim <= 64 else 16


def _unfit(head_dim: int, dtype: torch.dtype) -> str:
    """Why the kernels cannot take this, if they cannot."""
    if head_dim > WIDEST:
        return f"heads of width {head_dim}, a tile holds {WIDEST}"
    return "float64" if dtype == torch.float64 else ""


@torch.library.custom_op("gemkit::jagged_pool", mutates_args=())
def _operator(
    queries: Tensor, keys: Tensor, values: Tensor | None, offsets: Tensor, num_heads: int, scale: float
) -> tuple[Tensor, Tensor]:
    from gemkit_kernels.jagged_pool.triton import jagged_pool_forward

    return jagged_pool_forward(queries, keys, values, offsets, num_heads, scale)


@_operator.register_fake
def _(
    queries: Tensor, keys: Tensor, values: Tensor | None, offsets: Tensor, num_heads: int, scale: float
) -> tuple[Tensor, Tensor]:
    segments, num_queries = offsets.shape[0] - 1, queries.shape[-2]
    log_sums = keys.new_empty(segments, num_heads, num_queries, dtype=torch.float32)
    return keys.new_empty(segments, num_queries, keys.shape[1]), log_sums


@torch.library.custom_op("gemkit::jagged_pool_backward", mutates_args=())
def _backward_operator(
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
    from gemkit_kernels.jagged_pool.triton import jagged_pool_backward

    return jagged_pool_backward(dout, out, log_sums, queries, keys, values, offsets, num_heads, scale)


@_backward_operator.register_fake
def _(
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
    dvalues = keys.new_empty(0 if values is None else keys.shape)
    return queries.new_empty(queries.shape), keys.new_empty(keys.shape), dvalues


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    *tensors, ctx.num_heads, ctx.scale = inputs
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*output, *tensors)


def _gradients(ctx: Any, dout: Tensor, _: Any) -> tuple[Tensor | None, ...]:
    out, log_sums, queries, keys, values, offsets = ctx.saved_tensors
    rest = (queries, keys, values, offsets, ctx.num_heads, ctx.scale)
    dqueries, dkeys, dvalues = _backward_operator(dout, out, log_sums, *rest)
    return dqueries, dkeys, None if values is None else dvalues, None, None, None


_operator.register_autograd(_gradients, setup_context=_setup)


@register_flop_formula(torch.ops.gemkit.jagged_pool)
def _flops(queries_shape: tuple[int, ...], keys_shape: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Two products."""
    return 4 * queries_shape[-2] * keys_shape[0] * keys_shape[1]


@register_flop_formula(torch.ops.gemkit.jagged_pool_backward)
def _backward_flops(
    dout_shape: tuple[int, ...],
    out_shape: tuple[int, ...],
    log_sums_shape: tuple[int, ...],
    queries_shape: tuple[int, ...],
    keys_shape: tuple[int, ...],
    *_: Any,
    **__: Any,
) -> int:
    """Five products, one of them the scores anew."""
    return 10 * queries_shape[-2] * keys_shape[0] * keys_shape[1]
