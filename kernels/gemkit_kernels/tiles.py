"""What kernels share: heads in tiles, rotary positions, QK-norm, softmax over whole rows."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)
"""Scores times this are in units of log 2, which the hardware exponentiates."""


class Build(NamedTuple):
    """One tile configuration that is shipped, for ahead-of-time compilation (`gemkit_kernels.aot`).

    Attributes:
        arguments: Triton type of each run-time argument, in order: `*bf16`, `*i32`, `i32`, `fp32`.
        constants: Value of each compile-time argument.
        wgmma: Its sm_90 code is meant to use Hopper's matrix instructions.
        architectures: For which it is shipped.
        pipelined: Its loads are meant to run ahead, through shared memory.
    """

    name: str
    kernel: Any
    arguments: dict[str, str]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int = 1
    wgmma: bool = False
    pipelined: bool = False
    architectures: tuple[int, ...] = (80, 90)


def power_of_two(n: int, least: int = 16) -> int:
    """The least power of two that is `n` or more."""
    return max(least, 1 << (n - 1).bit_length())


def pointer(dtype: torch.dtype) -> str:
    """Triton's name of a pointer to `dtype`."""
    return {torch.bfloat16: "*bf16", torch.float16: "*fp16", torch.float32: "*fp32"}[dtype]


@triton.jit
def turn(x, cos, sin, ROWS: tl.constexpr, WIDTH: tl.constexpr):
    """Rotates the pairs (0, 1), (2, 3), ... of each row; with -sin, back."""
    cos, sin = cos.to(tl.float32), sin.to(tl.float32)
    a, b = tl.split(tl.reshape(x, (ROWS, WIDTH // 2, 2)))
    return tl.reshape(tl.join(a * cos - b * sin, a * sin + b * cos), (ROWS, WIDTH))


@triton.jit
def inverse_rms(x, width, EPS: tl.constexpr):
    """One over the root mean square of each row, over its first `width` values; the others are 0."""
    return tl.rsqrt(tl.sum(x * x, 1) / width + EPS)


@triton.jit
def rms_norm_backward(dy, x, r, gain, width):
    """Gradients of `x * r * gain` for x and for the gain."""
    dyg = dy * gain[None, :]
    dx = r[:, None] * (dyg - x * (r * r * tl.sum(dyg * x, 1) / width)[:, None])
    return dx, tl.sum(dy * x * r[:, None], 0)


@triton.jit
def softmax_rows(scores):
    """Softmax of each row, from scores in units of log 2; a row of -inf becomes zeros."""
    peak = tl.max(scores, 1)
    weights = tl.exp2(scores - tl.where(peak == float("-inf"), 0.0, peak)[:, None])
    total = tl.sum(weights, 1)
    return weights / tl.where(total == 0.0, 1.0, total)[:, None]
