"""`jagged_attention`: the function, and the operator `gemkit::jagged_attention` that starts its kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gemkit_kernels import check, paths
from gemkit_kernels.jagged_attention.pytorch import jagged_attention_pytorch

OP = "jagged_attention"


def jagged_attention(
    qkv: Tensor,
    offsets: Tensor,
    longest: int,
    num_heads: int,
    *,
    causal: bool = False,
    window: int = 0,
    both_sides: bool = False,
    num_global: int = 0,
    rotary: bool = True,
) -> Tensor:
    """Self-attention inside each history, all histories at once, without a padded copy.

        rows       a b c d e f g h i        offsets  0 3 4 9
        histories |a b c|d|e f g h i|       causal: g sees e, f, g; window = 2: g sees f, g

    In each head, over the rows j of the history that row i sees: `sum_j softmax_j(R_i(q_i) . R_j(k_j) / sqrt(E)) v_j`.
    R is the rotary embedding of the row's place in its history.

    Paper: FlashAttention-2 (arXiv 2307.08691), algorithms 1 and 2; Longformer (arXiv 2004.05150), section 3.1, for
        windows and global tokens; RoFormer (arXiv 2104.09864), equation 34.
    Differs: jagged; dq has a kernel of its own in place of atomic additions; Longformer's global tokens have
        projections of their own.

    Args:
        qkv: Queries, keys and values side by side, heads side by side in each.
        offsets: int32 or int64; where histories start, and T at the end. Histories may be empty.
        longest: Rows of the longest history, or more. It is not checked against `offsets`, which stay on the device:
            what comes out for a longer history is undefined.
        causal: Rows see themselves and those before them.
        window: W: rows see themselves and the W - 1 before them; 0: no window.
        both_sides: With a window, they also see the W - 1 after them.
        num_global: S: the last S rows of every history see all of it and are seen by all of it.
        rotary: Whether R turns queries and keys; E must then be even.

    Shape:
        qkv (T, 3 D), offsets (U+1,) -> (T, D), with D = H E.

    Raises:
        ValueError: A shape, a type or a number that does not fit; see the message.
    """
    _check(qkv, offsets, longest, num_heads, causal, window, both_sides, num_global, rotary)
    if torch.is_autocast_enabled(qkv.device.type):  # as PyTorch's own attention does
        qkv = qkv.to(torch.get_autocast_dtype(qkv.device.type))
    arguments = (offsets, longest, num_heads, causal, window, both_sides, num_global, rotary)
    if has_kernels(qkv, num_heads):
        out: Tensor = _operator(qkv, *arguments)[0]
        return out
    return jagged_attention_pytorch(qkv, *arguments)


def has_kernels(qkv: Tensor, num_heads: int) -> bool:
    """Whether `jagged_attention` starts its kernels for these."""
    head_dim = qkv.shape[1] // 3 // num_heads
    unfit = ""
    if head_dim > 128:
        unfit = f"heads of width {head_dim}, a tile holds 128"
    elif qkv.dtype == torch.float64:
        unfit = "float64"
    path: str = paths.choose(OP, qkv.device.type, unfit)
    return path == paths.TRITON


def _check(
    qkv: Tensor,
    offsets: Tensor,
    longest: int,
    num_heads: int,
    causal: bool,
    window: int,
    both_sides: bool,
    num_global: int,
    rotary: bool,
) -> None:
    check.shape(OP, "qkv", qkv, (None, None))
    check.kind(OP, "qkv", qkv)
    check.offsets(OP, "offsets", offsets)
    dim = check.divides(OP, "3 (queries, keys, values)", 3, qkv.shape[1])
    head_dim = check.divides(OP, "num_heads", num_heads, dim)
    for name, number in (("longest", longest), ("window", window), ("num_global", num_global)):
        if number < 0:
            raise ValueError(f"{OP}: {name} = {number}, expected at least 0")
    if both_sides and (causal or not window):
        raise ValueError(f"{OP}: both_sides needs a window, and no causal")
    if rotary and head_dim % 2:
        raise ValueError(f"{OP}: rotary positions need heads of even width, these have {head_dim}")


@torch.library.custom_op("gemkit::jagged_attention", mutates_args=())
def _operator(
    qkv: Tensor,
    offsets: Tensor,
    longest: int,
    num_heads: int,
    causal: bool,
    window: int,
    both_sides: bool,
    num_global: int,
    rotary: bool,
) -> tuple[Tensor, Tensor]:
    """The mixed values, and what the backward pass needs of the softmax. Shape: -> (T, D), (H, T)."""
    from gemkit_kernels.jagged_attention import triton as kernels

    rest = (longest, num_heads, causal, window, both_sides, num_global, rotary)
    return kernels.jagged_attention_forward(qkv.contiguous(), offsets, kernels.options(qkv.shape[1], *rest))


@_operator.register_fake
def _(
    qkv: Tensor,
    offsets: Tensor,
    longest: int,
    num_heads: int,
    causal: bool,
    window: int,
    both_sides: bool,
    num_global: int,
    rotary: bool,
) -> tuple[Tensor, Tensor]:
    total, dim = qkv.shape[0], qkv.shape[1] // 3
    return qkv.new_empty(total, dim), qkv.new_empty(num_heads, total, dtype=torch.float32)


@torch.library.custom_op("gemkit::jagged_attention_backward", mutates_args=())
def _backward_operator(
    dout: Tensor,
    qkv: Tensor,
    offsets: Tensor,
    out: Tensor,
    lse: Tensor,
    longest: int,
    num_heads: int,
    causal: bool,
    window: int,
    both_sides: bool,
    num_global: int,
    rotary: bool,
) -> Tensor:
    from gemkit_kernels.jagged_attention import triton as kernels

    rest = (longest, num_heads, causal, window, both_sides, num_global, rotary)
    tensors = (dout.contiguous(), qkv.contiguous(), offsets, out, lse)
    return kernels.jagged_attention_backward(*tensors, kernels.options(qkv.shape[1], *rest))


@_backward_operator.register_fake
def _(dout: Tensor, qkv: Tensor, *_: Any) -> Tensor:
    return torch.empty_like(qkv, memory_format=torch.contiguous_format)


def _setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    qkv, offsets, *ctx.rest = inputs
    ctx.save_for_backward(qkv, offsets, *output)


def _gradients(ctx: Any, dout: Tensor, _: Tensor) -> tuple[Tensor | None, ...]:
    dqkv = _backward_operator(dout, *ctx.saved_tensors, *ctx.rest)
    return (dqkv, *[None] * 8)


_operator.register_autograd(_gradients, setup_context=_setup)


def visible_rows(total: int, histories: int, causal: bool, window: int, both_sides: bool, num_global: int) -> float:
    """Rows that a row sees, on average, if all histories are equally long: in longer ones and in shorter ones."""
    length = total / max(histories, 1)
    seen = min(length, (2 * window - 1 if both_sides else window) or length)
    return (seen + 1) / 2 if causal and not window else min(seen + 2 * num_global, length)


@register_flop_formula(torch.ops.gemkit.jagged_attention)
def _flops(
    qkv_shape: tuple[int, ...],
    offsets_shape: tuple[int, ...],
    longest: int,
    num_heads: int,
    causal: bool,
    window: int,
    both_sides: bool,
    num_global: int,
    *_: Any,
    **__: Any,
) -> int:
    """Two products over the rows seen. Lengths are on the device: histories count as equally long."""
    rows = visible_rows(qkv_shape[0], offsets_shape[0] - 1, causal, window, both_sides, num_global)
    return int(4 * qkv_shape[0] * rows * qkv_shape[1] // 3)


@register_flop_formula(torch.ops.gemkit.jagged_attention_backward)
def _backward_flops(
    dout_shape: tuple[int, ...], qkv_shape: tuple[int, ...], offsets_shape: tuple[int, ...], *rest: Any, **__: Any
) -> int:
    """Five products, one of them the scores anew; that the kernels compute two of them twice does not count."""
    _, _, *options = rest
    return _flops(qkv_shape, offsets_shape, *options) * 5 // 2
