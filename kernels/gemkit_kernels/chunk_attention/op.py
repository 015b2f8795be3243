"""`chunk_attention`: the function, and the operator `gemkit::chunk_attention` that starts its kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gemkit_kernels import check, paths
from gemkit_kernels.chunk_attention.pytorch import chunk_attention_pytorch

OP = "chunk_attention"


def chunk_attention(
    qkv: Tensor,
    starts: Tensor,
    size: int,
    num_heads: int,
    *,
    rotary: bool = True,
    norm_gains: Tensor | None = None,
    ages: Tensor | None = None,
    age_slopes: Tensor | None = None,
    summary_queries: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Self-attention inside each chunk, all chunks at once, without a padded copy.

        rows      a b c d e f g h i        starts  0 3 4 9
        chunks   |a b c|d|e f g h i|

    In each head, over the rows i and j of one chunk: `sum_j softmax_j(s_ij) v_j`, with
    `s_ij = R_i(q_i) . R_j(k_j) / sqrt(E) + slope * log(1 + |age_i - age_j|)`. R is the rotary embedding of the row's
    place in its chunk; only differences of places matter, so it is the same whichever end chunks are aligned to.
    Learned summary queries attend to the same keys, unturned, and values: m vectors for each chunk.

    Paper: Meta's GEM post of 2026-08-03: attention in blocks of 64 events with QK-norm.
    Differs: the post has no equations; rotary positions, the bias by age and the summaries are our reading.

    Args:
        qkv: Queries, keys and values side by side, heads side by side in each.
        starts: int32 or int64; where chunks start, and T at the end. Chunks may be empty.
        size: C, rows of the longest chunk, or more. It is not checked against `starts`, which stay on the device: what
            comes out for a longer chunk is undefined.
        rotary: Whether R turns queries and keys; E must then be even.
        norm_gains: QK-norm: queries and keys are divided by their root mean square and multiplied by this, queries
            by the first row, before R.
        ages: Seconds. Needs `age_slopes`, one for each head.
        summary_queries: Their summaries are zero for an empty chunk.

    Returns:
        The mixed values, and the summaries, m = 0 without summary queries.

    Shape:
        qkv (T, 3 D), starts (K+1,), norm_gains (2, E), ages (T,), age_slopes (H,), summary_queries (m, D)
        -> (T, D), (K, m, D), with D = H E.

    Raises:
        ValueError: A shape, a type or a number that does not fit; see the message.
    """
    head_dim = _checked(qkv, starts, size, num_heads, rotary, norm_gains, ages, age_slopes, summary_queries)
    arguments = (qkv, starts, size, num_heads, rotary, norm_gains, ages, age_slopes, summary_queries)
    num_summaries = 0 if summary_queries is None else summary_queries.shape[0]
    if paths.choose(OP, qkv.device.type, _unfit(size, head_dim, qkv.dtype, num_summaries)) == paths.TRITON:
        out: tuple[Tensor, Tensor] = _operator(*arguments)
        return out
    return chunk_attention_pytorch(*arguments)


def _checked(
    qkv: Tensor,
    starts: Tensor,
    size: int,
    num_heads: int,
    rotary: bool,
    norm_gains: Tensor | None,
    ages: Tensor | None,
    age_slopes: Tensor | None,
    summary_queries: Tensor | None,
) -> int:
    """The width of a head."""
    check.shape(OP, "qkv", qkv, (None, None))
    check.kind(OP, "qkv", qkv)
    check.offsets(OP, "starts", starts)
    dim = check.divides(OP, "3 (queries, keys, values)", 3, qkv.shape[1])
    head_dim = check.divides(OP, "num_heads", num_heads, dim)
    if size < 1:
        raise ValueError(f"{OP}: size = {size}, expected at least 1")
    if rotary and head_dim % 2:
        raise ValueError(f"{OP}: rotary positions need heads of even width, these have {head_dim}")
    if (ages is None) != (age_slopes is None):
        raise ValueError(f"{OP}: ages and age_slopes go together")
    expected = {
        "norm_gains": (norm_gains, (2, head_dim)),
        "ages": (ages, (qkv.shape[0],)),
        "age_slopes": (age_slopes, (num_heads,)),
        "summary_queries": (summary_queries, (None, dim)),
    }
    for name, (tensor, sizes) in expected.items():
        if tensor is not None:
            check.shape(OP, name, tensor, sizes)
    return head_dim


def _unfit(size: int, head_dim: int, dtype: torch.dtype, num_summaries: int) -> str:
    """Why the kernels cannot take this, if they cannot: what they take fits the registers of a program."""
    if dtype == torch.float64:
        return "float64"
    longest = 64 if dtype == torch.float32 else 128
    if max(size, head_dim) > longest:
        return f"chunks of {size} with heads of {head_dim} in {str(dtype)[6:]}: the kernels take {longest} of each"
    if size > 64 and head_dim > 64:
        return f"chunks of {size} with heads of {head_dim}: one of the two may be more than 64"
    if num_summaries and (max(size, head_dim) > 64 or dtype == torch.float32):
        return f"summaries of chunks of {size} with heads of {head_dim}: the kernels take 64 of each in half precision"
    if num_summaries > 16:
        return f"{num_summaries} summaries: the kernels take 16"
    return ""


@torch.library.custom_op("gemkit::chunk_attention", mutates_args=())
def _operator(
    qkv: Tensor,
    starts: Tensor,
    size: int,
    num_heads: int,
    rotary: bool,
    norm_gains: Tensor | None,
    ages: Tensor | None,
    age_slopes: Tensor | None,
    summary_queries: Tensor | None,
) -> tuple[Tensor, Tensor]:
    from gemkit_kernels.chunk_attention.triton import chunk_attention_forward

    rest = (starts, size, num_heads, rotary, norm_gains, ages, age_slopes, summary_queries)
    return chunk_attention_forward(qkv.contiguous(), *rest)


@_operator.register_fake
def _(qkv: Tensor, starts: Tensor, size: int, num_heads: int, rotary: bool, *optional: Tensor | None) -> Any:
    dim, queries = qkv.shape[1] // 3, optional[-1]
    num_summaries = 0 if queries is None else queries.shape[0]
    return qkv.new_empty(qkv.shape[0], dim), qkv.new_empty(starts.shape[0] - 1, num_summaries, dim)


@torch.library.custom_op("gemkit::chunk_attention_backward", mutates_args=())
def _backward_operator(
    dout: Tensor,
    dsummaries: Tensor,
    qkv: Tensor,
    starts: Tensor,
    size: int,
    num_heads: int,
    rotary: bool,
    norm_gains: Tensor | None,
    ages: Tensor | None,
    age_slopes: Tensor | None,
    summary_queries: Tensor | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from gemkit_kernels.chunk_attention.triton import chunk_attention_backward

    rest = (starts, size, num_heads, rotary, norm_gains, ages, age_slopes, summary_queries)
    found = chunk_attention_backward(dout, dsummaries, qkv.contiguous(), *rest)
    return _like(found, qkv, norm_gains, age_slopes, summary_queries)


def _like(found: tuple[Tensor, ...], *tensors: Tensor | None) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients in the types of what they belong to; empty for what is not there."""
    a, b, c, d = (
        g.new_empty(0) if x is None else g.to(x.dtype).reshape(x.shape) for g, x in zip(found, tensors, strict=True)
    )
    return a.contiguous(), b.contiguous(), c.contiguous(), d.contiguous()


@_backward_operator.register_fake
def _(dout: Tensor, dsummaries: Tensor, qkv: Tensor, *rest: Any) -> Any:
    norm_gains, _, age_slopes, summary_queries = rest[-4:]
    return tuple(
        qkv.new_empty(0) if x is None else torch.empty_like(x, memory_format=torch.contiguous_format)
        for x in (qkv, norm_gains, age_slopes, summary_queries)
    )


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, starts, ctx.size, ctx.num_heads, ctx.rotary, *rest = inputs
    ctx.save_for_backward(qkv, starts, *rest)


def _gradients(ctx: Any, dout: Tensor, dsummaries: Tensor) -> tuple[Tensor | None, ...]:
    qkv, starts, *rest = ctx.saved_tensors
    norm_gains, _, age_slopes, summary_queries = rest
    numbers = (ctx.size, ctx.num_heads, ctx.rotary)
    dqkv, dgains, dslopes, dqueries = _backward_operator(dout, dsummaries, qkv, starts, *numbers, *rest)
    return (
        dqkv,
        None,
        None,
        None,
        None,
        None if norm_gains is None else dgains,
        None,
        None if age_slopes is None else dslopes,
        None if summary_queries is None else dqueries,
    )


_operator.register_autograd(_gradients, setup_context=_setup)


@register_flop_formula(torch.ops.gemkit.chunk_attention)
def _flops(qkv_shape: tuple[int, ...], starts_shape: tuple[int, ...], size: int, *_: Any, **__: Any) -> int:
    """Two products of C columns for each row: what full chunks take."""
    return 4 * qkv_shape[0] * size * qkv_shape[1] // 3


@register_flop_formula(torch.ops.gemkit.chunk_attention_backward)
def _backward_flops(_: Any, __: Any, qkv_shape: tuple[int, ...], ___: Any, size: int, *____: Any, **_____: Any) -> int:
    """Five products, one of them the scores anew."""
    return 10 * qkv_shape[0] * size * qkv_shape[1] // 3
