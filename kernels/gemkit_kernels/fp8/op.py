"""`fp8_quantise` and `fp8_dequantise`, and the operators `gemkit::fp8_quantise` and `gemkit::fp8_dequantise`.

They have no gradient: they stand in between of a forward and a backward pass, for what autograd has saved.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from gemkit_kernels import check, paths
from gemkit_kernels.fp8.pytorch import fp8_dequantise_pytorch, fp8_quantise_pytorch
from gemkit_kernels.fp8.reference import KIND, SIDE

OP = "fp8"
WIDEST = 16384
"""Numbers in the widest row that one program holds."""
KINDS = (torch.bfloat16, torch.float16, torch.float32)


def fp8_quantise(x: Tensor, tiled: bool = False) -> tuple[Tensor, Tensor]:
    """Numbers in `float8_e4m3fn`, and the powers of two that they are to be multiplied by.

    A scale is the least power of two that brings the largest finite number of its row, or of its tile of 32 x 32, to
    448 or less. So scaling never rounds: what is exact in FP8 stays exact, and quantising twice changes nothing. The
    largest of maximum / 448 would use the range a little better, by a factor below 2 at its lower end.
    Numbers below 2^-9 times the scale become multiples of that, or 0. NaN stays NaN, and infinity becomes NaN, so that
    a run that has blown up does not look as if it had not; the numbers beside them keep their precision.

    Shape:
        x (R, W) -> (R, W), and (R,), or tiled (ceil(R / 32), ceil(W / 32)) in fp32

    Raises:
        ValueError: Not a matrix, or not of bf16, fp16 or fp32.
    """
    check.shape(OP, "x", x, (None, None))
    _known(x.dtype)
    if paths.choose(OP, x.device.type, _unfit(x, x.shape[1], tiled)) == paths.TRITON:
        found: tuple[Tensor, Tensor] = _quantise_operator(x, tiled)
        return found
    return fp8_quantise_pytorch(x, tiled)


def fp8_dequantise(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """The numbers again, in `dtype`; what rounding in FP8 has carried beyond its range becomes its largest number.

    Args:
        scales: Of rows if it is a vector, of tiles if it is a matrix.

    Shape:
        values (R, W), scales as from `fp8_quantise` -> (R, W)

    Raises:
        ValueError: A shape or a type that does not fit; see the message.
    """
    check.shape(OP, "values", values, (None, None))
    if values.dtype != KIND:
        raise ValueError(f"{OP}: values is {values.dtype}, expected {KIND}")
    _known(dtype)
    rows, width = values.shape
    check.shape(OP, "scales", scales, (rows,) if scales.dim() == 1 else (-(-rows // SIDE), -(-width // SIDE)))
    if paths.choose(OP, values.device.type, _unfit(values, 1, False)) == paths.TRITON:
        found: Tensor = _dequantise_operator(values, scales, dtype)
        return found
    return fp8_dequantise_pytorch(values, scales, dtype)


def _known(dtype: torch.dtype) -> None:
    if dtype not in KINDS:
        raise ValueError(f"{OP}: {dtype}, expected bfloat16, float16 or float32")


def _unfit(tensor: Tensor, width: int, tiled: bool) -> str:
    """Why the kernels cannot take this, if they cannot."""
    if width > WIDEST and not tiled:
        return f"rows of {width}, a program holds {WIDEST}"
    if tensor.is_cuda and torch.cuda.get_device_capability(tensor.device) < (9, 0):
        return "the GPU's compute capability is below 9.0"
    return ""


@torch.library.custom_op("gemkit::fp8_quantise", mutates_args=())
def _quantise_operator(x: Tensor, tiled: bool) -> tuple[Tensor, Tensor]:
    from gemkit_kernels.fp8.triton import fp8_quantise_triton

    return fp8_quantise_triton(x.contiguous(), tiled)


@_quantise_operator.register_fake
def _(x: Tensor, tiled: bool) -> tuple[Tensor, Tensor]:
    rows, width = x.shape
    shape = (-(-rows // SIDE), -(-width // SIDE)) if tiled else (rows,)
    return x.new_empty(x.shape, dtype=KIND), x.new_empty(shape, dtype=torch.float32)


@torch.library.custom_op("gemkit::fp8_dequantise", mutates_args=())
def _dequantise_operator(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    from gemkit_kernels.fp8.triton import fp8_dequantise_triton

    return fp8_dequantise_triton(values.contiguous(), scales.contiguous(), dtype)


@_dequantise_operator.register_fake
def _(values: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    return values.new_empty(values.shape, dtype=dtype)


@register_flop_formula([torch.ops.gemkit.fp8_quantise, torch.ops.gemkit.fp8_dequantise])
def _flops(*_: object, **__: object) -> int:
    """Copies: no product."""
    return 0
