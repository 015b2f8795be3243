"""`fm_block`: the function, and the operator `gemkit::fm_block` that starts its kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gemkit_kernels import check, paths
from gemkit_kernels.fm_block.pytorch import autocast_type, fm_block_pytorch

OP = "fm_block"
MOST_TOKENS, MOST_RANKS, MOST_COLUMNS = 256, 32, 512
"""What one tile of the kernels holds."""
MOST_PRODUCTS = {torch.float32: 32 * 16, torch.float16: 256 * 32, torch.bfloat16: 256 * 32}
"""Tokens times ranks that one tile holds, both rounded up to a power of two."""
MOST_ATTENTIVE, MOST_BEFORE_HOPPER = 256 * 16, 64 * 32
"""The same with a Y for each example, and on GPUs of compute capability 8."""


def fm_block(x: Tensor, y: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """`LN(flatten(X (Y X)^T))`: products of all tokens with k learned mixtures of them, normed over one example.

    Under autocast the kernels work and answer in autocast's type. Y, gain and bias may have another type than x: Y is
    rounded to x's, gain and bias are used as they are.

    Paper: Wukong (arXiv 2403.02545), section 3.4, with the optimised FM of section 3.6, and the LayerNorm of its
        equation of the FM block.
    Differs: Y stands left of X, (k, n) and not (n, k); LayerNorm's epsilon, which the paper does not name, is 1e-5.

    Args:
        y: One for all examples (static), or one for each (attentive).

    Shape:
        x (B, n, d), y (k, n) or (B, k, n), gain (n k,), bias (n k,) -> (B, n k)

    Raises:
        ValueError: A shape or a type that does not fit; see the message.
    """
    _checked(x, y, gain, bias)
    if paths.choose(OP, x.device.type, _unfit(x, y)) == paths.TRITON:
        out: Tensor = _operator(x.to(autocast_type(x) or x.dtype), y, gain, bias)
        return out
    return fm_block_pytorch(x, y, gain, bias)


def _checked(x: Tensor, y: Tensor, gain: Tensor, bias: Tensor) -> None:
    check.shape(OP, "x", x, (None, None, None))
    for name, tensor in (("x", x), ("y", y), ("gain", gain), ("bias", bias)):
        check.kind(OP, name, tensor)
    batch, n, _ = x.shape
    check.shape(OP, "y", y, (None, n) if y.dim() == 2 else (batch, None, n))
    products = n * y.shape[-2]
    if not products * x.shape[2]:
        raise ValueError(f"{OP}: x has shape {tuple(x.shape)} and y {tuple(y.shape)}, expected tokens, columns, ranks")
    check.shape(OP, "gain", gain, (products,))
    check.shape(OP, "bias", bias, (products,))


def _unfit(x: Tensor, y: Tensor) -> str:
    """Why the kernels cannot take this, if they cannot."""
    (_, n, d), k = x.shape, y.shape[-2]
    dtype = autocast_type(x) or x.dtype
    if dtype not in MOST_PRODUCTS:
        return str(dtype)[6:]
    for number, most, what in ((n, MOST_TOKENS, "tokens"), (k, MOST_RANKS, "ranks"), (d, MOST_COLUMNS, "columns")):
        if number > most:
            return f"{number} {what}, a tile holds {most}"
    most = min(MOST_PRODUCTS[dtype], MOST_ATTENTIVE if y.dim() == 3 else 256 * 32)
    if x.is_cuda and torch.cuda.get_device_capability(x.device) < (9, 0):
        most = min(most, MOST_BEFORE_HOPPER)
    if _rounded(n) * _rounded(k) > most:
        return f"{n} tokens and {k} ranks in {str(dtype)[6:]}, a tile holds {most} products"
    return ""


def _rounded(number: int) -> int:
    """The least power of two that is `number` or more, at least 16: a side of a tile."""
    return max(16, 1 << (number - 1).bit_length())


@torch.library.custom_op("gemkit::fm_block", mutates_args=())
def _operator(x: Tensor, y: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    from gemkit_kernels.fm_block.triton import fm_block_forward

    return fm_block_forward(x.contiguous(), y.contiguous(), gain.contiguous(), bias.contiguous())


@_operator.register_fake
def _(x: Tensor, y: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    return x.new_empty(x.shape[0], x.shape[1] * y.shape[-2])


@torch.library.custom_op("gemkit::fm_block_backward", mutates_args=())
def _backward_operator(
    dout: Tensor, x: Tensor, y: Tensor, gain: Tensor, bias: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    from gemkit_kernels.fm_block.triton import fm_block_backward

    dx, dy, dgain, dbias = fm_block_backward(dout.contiguous(), x.contiguous(), y.contiguous(), gain.contiguous())
    return dx, dy.to(y.dtype), dgain.to(gain.dtype), dbias.to(bias.dtype)


@_backward_operator.register_fake
def _(dout: Tensor, x: Tensor, y: Tensor, gain: Tensor, bias: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    a, b, c, d = (torch.empty_like(t, memory_format=torch.contiguous_format) for t in (x, y, gain, bias))
    return a, b, c, d


def _setup(ctx: Any, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs)


def _gradients(ctx: Any, dout: Tensor) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = _backward_operator(dout, *ctx.saved_tensors)
    return found


_operator.register_autograd(_gradients, setup_context=_setup)


@register_flop_formula(torch.ops.gemkit.fm_block)
def _flops(x_shape: tuple[int, ...], y_shape: tuple[int, ...], *_: Any, **__: Any) -> int:
    """Two products: Y X, and X with that."""
    batch, n, d = x_shape
    return 4 * batch * n * d * y_shape[-2]


@register_flop_formula(torch.ops.gemkit.fm_block_backward)
def _backward_flops(_: Any, x_shape: tuple[int, ...], y_shape: tuple[int, ...], *__: Any, **___: Any) -> int:
    """Two products of the forward pass anew, and two for each of them."""
    batch, n, d = x_shape
    return 12 * batch * n * d * y_shape[-2]
