"""`gdpa`: the function, and the operator `gemkit::gdpa` that starts its kernels."""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gemkit_kernels import check, paths
from gemkit_kernels.gdpa.pytorch import gdpa_pytorch
from gemkit_kernels.gdpa.reference import ACTIVATIONS

OP = "gdpa"
WIDEST = 128
"""Values of a head that a tile holds."""


def gdpa(
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    offsets: Tensor,
    num_heads: int,
    *,
    scale: float,
    activation: str = "gelu",
) -> Tensor:
    """Every event attends to the few keys of its history, with an activation in place of softmax.

    In each head, `out_i = sum_m act(scale q_i . k_m) v_m`, over the M keys of the history that event i is in. A history
    without events still has keys; they get no gradient.

    Paper: Kunlun (arXiv 2602.10016), generalized dot-product attention, where keys and values are made from a summary
        of the features.
    Differs: the scale is the caller's; one set of keys for each history, not for each example.

    Args:
        queries: May be a view with rows further apart than D.
        activation: `gelu`, the exact one, or `silu`.

    Shape: queries (T, D), keys and values (U, M, D), offsets (U+1,) int32 or int64, from 0 to T -> (T, D).

    Raises:
        ValueError: A shape, a type or a number that does not fit; see the message.
    """
    check.shape(OP, "queries", queries, (None, None))
    check.kind(OP, "queries", queries)
    check.offsets(OP, "offsets", offsets)
    dim = queries.shape[1]
    check.shape(OP, "keys", keys, (offsets.shape[0] - 1, None, dim))
    check.shape(OP, "values", values, tuple(keys.shape))
    if not queries.dtype == keys.dtype == values.dtype:
        raise ValueError(f"{OP}: queries, keys and values are {queries.dtype}, {keys.dtype} and {values.dtype}")
    head_dim = check.divides(OP, "num_heads", num_heads, dim)
    if activation not in ACTIVATIONS:
        raise ValueError(f"{OP}: activation = {activation}, expected {' or '.join(ACTIVATIONS)}")
    rest = (offsets, num_heads, float(scale), activation)
    if paths.choose(OP, queries.device.type, _unfit(head_dim, queries.dtype)) != paths.TRITON:
        return gdpa_pytorch(queries, keys, values, *rest)
    most = most_keys(queries.dtype)
    parts = zip(keys.split(most, 1), values.split(most, 1), strict=True)
    outs: list[Tensor] = [_operator(queries, *part, *rest) for part in parts]
    return functools.reduce(torch.add, outs)


def most_keys(dtype: torch.dtype) -> int:
    """Keys that a tile holds."""
    return 32 if dtype == torch.float32 else 64


def _unfit(head_dim: int, dtype: torch.dtype) -> str:
    """Why the kernels cannot take this, if they cannot."""
    if head_dim > WIDEST:
        return f"heads of width {head_dim}, a tile holds {WIDEST}"
    return "float64" if dtype == torch.float64 else ""


@torch.library.custom_op("gemkit::gdpa", mutates_args=())
def _operator(
    queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, num_heads: int, scale: float, activation: str
) -> Tensor:
    from gemkit_kernels.gdpa.triton import gdpa_forward

    return gdpa_forward(queries, keys, values, offsets, num_heads, scale, activation)


@_operator.register_fake
def _(
    queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, num_heads: int, scale: float, activation: str
) -> Tensor:
    return queries.new_empty(queries.shape)


@torch.library.custom_op("gemkit::gdpa_backward", mutates_args=())
def _backward_operator(
    dout: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    offsets: Tensor,
    num_heads: int,
    scale: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    from gemkit_kernels.gdpa.triton import gdpa_backward

    return gdpa_backward(dout, queries, keys, values, offsets, num_heads, scale, activation)


@_backward_operator.register_fake
def _(
    dout: Tensor,
    queries: Tensor,
    keys: Tensor,
    values: Tensor,
    offsets: Tensor,
    num_heads: int,
    scale: float,
    activation: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return queries.new_empty(queries.shape), keys.new_empty(keys.shape), values.new_empty(values.shape)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    *tensors, ctx.num_heads, ctx.scale, ctx.activation = inputs
    ctx.save_for_backward(*tensors)


def _gradients(ctx: Any, dout: Tensor) -> tuple[Tensor | None, ...]:
    found = _backward_operator(dout, *ctx.saved_tensors, ctx.num_heads, ctx.scale, ctx.activation)
    return (*found, None, None, None, None)


_operator.register_autograd(_gradients, setup_context=_setup)


@register_flop_formula(torch.ops.gemkit.gdpa)
def _flops(queries_shape: tuple[int, ...], keys_shape: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Two products."""
    return 4 * queries_shape[0] * keys_shape[1] * queries_shape[1]


@register_flop_formula(torch.ops.gemkit.gdpa_backward)
def _backward_flops(
    dout_shape: tuple[int, ...], queries_shape: tuple[int, ...], keys_shape: tuple[int, ...], *_: Any, **__: Any
) -> int:
    """Five products, one of them the scores anew."""
    return 10 * queries_shape[0] * keys_shape[1] * queries_shape[1]
