"""`fm_block` in Triton: which tiles, and how they are started."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gemkit_kernels.fm_block.op import MOST_BEFORE_HOPPER
from gemkit_kernels.fm_block.reference import EPS
from gemkit_kernels.fm_block.triton_kernels import fm_backward, fm_forward
from gemkit_kernels.tiles import Build, pointer, power_of_two


class Tile(NamedTuple):
    """How a pass runs.

    Attributes:
        width: Columns of x that are worked on at once.
        programs: Programs for each multiprocessor.
        stages: 2 and more: the next examples are loaded ahead.
        sum_bias: The backward kernel adds up the bias's gradient. Large tiles have no registers left for that.
    """

    width: int
    num_warps: int
    programs: int
    stages: int = 1
    sum_bias: bool = True


def forward_tile(n: int, d: int, k: int, dtype: torch.dtype) -> Tile:
    """A tile that spills nothing, found by compiling ahead of time."""
    tokens, ranks = power_of_two(n), power_of_two(k)
    if dtype == torch.float32:
        return Tile(min(power_of_two(d), 32), num_warps=4, programs=4)
    width = min(power_of_two(d), 128)
    if tokens == 64:  # the fastest of those that spill nothing, on an H200
        return Tile(width, num_warps=4, programs=8, stages=2)
    warps = min(8, max(1, tokens * width // 4096, tokens * ranks // 1024))
    if warps == 8 and d <= 128:
        return Tile(width, warps, programs=1, stages=2)
    return Tile(width, warps, programs=16 // warps)


def backward_tile(n: int, d: int, k: int, dtype: torch.dtype) -> Tile:
    """A tile that spills nothing, found by compiling ahead of time."""
    products, width = power_of_two(n) * power_of_two(k), power_of_two(d)
    if dtype == torch.float32:
        return Tile(min(width, 32), num_warps=4, programs=2)
    if products > 2048:
        return Tile(16 if products > 4096 else min(width, 32), num_warps=8, programs=1, sum_bias=False)
    if products > 512:
        if n == 128 and k <= 16:
            return Tile(min(width, 64), num_warps=4, programs=4)
        if n <= 32:
            return Tile(min(width, 32), num_warps=2, programs=4, sum_bias=False)
        return Tile(min(width, 64), num_warps=4 if n <= 64 else 8, programs=2)
    width = min(width, 64)
    return Tile(width, num_warps=max(1, width // 32), programs=8)


def _constants(n: int, d: int, k: int, attentive: bool, dtype: torch.dtype, how: Tile) -> dict[str, object]:
    return {
        "n": n,
        "d": d,
        "k": k,
        "N": power_of_two(n),
        "K": power_of_two(k),
        "WIDTH": how.width,
        "PARTS": -(-d // how.width),
        "ATTENTIVE": attentive,
        "EPS": EPS,
        # Two products of bf16 fit tf32 and fp32 does not: three tf32 products give fp32's precision.
        "PRECISION": "tf32x3" if dtype == torch.float32 else "tf32",
        "STAGES": how.stages,
    }


def _programs(batch: int, device: torch.device, for_each: int) -> int:
    """Programs that take `batch` examples in turn; in the interpreter few, so that each takes several."""
    if device.type != "cuda":
        return min(batch, 3)
    return min(batch, for_each * torch.cuda.get_device_properties(device).multi_processor_count)


def fm_block_forward(x: Tensor, y: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Shape: as `fm_block`."""
    (batch, n, d), k = x.shape, y.shape[-2]
    out = x.new_empty(batch, n * k)
    if batch:
        how = forward_tile(n, d, k, x.dtype)
        constants = _constants(n, d, k, y.dim() == 3, x.dtype, how)
        programs = _programs(batch, x.device, how.programs)
        fm_forward[(programs,)](x, y, gain, bias, out, batch, programs, **constants, num_warps=how.num_warps)
    return out


def fm_block_backward(dout: Tensor, x: Tensor, y: Tensor, gain: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Gradients of x, y, gain and bias; those that are sums over examples in fp32."""
    (batch, n, d), k = x.shape, y.shape[-2]
    dx = torch.empty_like(x)
    dy = torch.empty_like(y) if y.dim() == 3 else None
    how = backward_tile(n, d, k, x.dtype)
    programs = _programs(batch, x.device, how.programs)
    # Of the gain, of the bias, and of the Y that examples share.
    sums = x.new_empty(programs, 3, n * k, dtype=torch.float32)
    if batch:
        constants = {**_constants(n, d, k, dy is not None, x.dtype, how), "SUM_BIAS": how.sum_bias}
        fm_backward[(programs,)](x, y, gain, dout, dx, dy, sums, batch, programs, **constants, num_warps=how.num_warps)
    dbias = sums[:, 1].sum(0) if how.sum_bias else dout.sum(0, dtype=torch.float32)
    return dx, sums[:, 2].sum(0).view(k, n) if dy is None else dy, sums[:, 0].sum(0), dbias


def builds() -> list[Build]:
    """The shipped tiles, from small Wukongs to large ones."""
    found = _builds_of(torch.float32, 32, 32, 16)
    for n, d, k in ((32, 32, 16), (64, 64, 24), (128, 128, 16), (128, 256, 32)):
        found += _builds_of(torch.bfloat16, n, d, k)
    return found + _builds_of(torch.bfloat16, 256, 128, 24) + _builds_of(torch.bfloat16, 256, 256, 16, attentive=True)


def _builds_of(dtype: torch.dtype, n: int, d: int, k: int, attentive: bool = False) -> list[Build]:
    kind = pointer(dtype)
    name = f"{kind[1:]}, {n} tokens of {d}, rank {k}{', attentive' if attentive else ''}"
    tensors = {"x": kind, "y": kind, "gain": "*fp32"}
    numbers = {"batch": "i32", "programs": "i32"}
    forward = {**tensors, "bias": "*fp32", "out": kind, **numbers}
    gradients = {"dout": kind, "dx": kind, **({"dy": kind} if attentive else {}), "sums": "*fp32"}
    backward = {**tensors, **gradients, **numbers}
    # Older GPUs get smaller tiles only.
    architectures = (80, 90) if power_of_two(n) * power_of_two(k) <= MOST_BEFORE_HOPPER else (90,)

    def build(kernel: Any, arguments: dict[str, str], how: Tile, **more: Any) -> Build:
        constants = {**_constants(n, d, k, attentive, dtype, how), **more}
        title = f"{kernel.__name__.removeprefix('fm_')}, {name}"
        return Build(title, kernel, arguments, constants, how.num_warps, how.stages, architectures=architectures)

    how = backward_tile(n, d, k, dtype)
    absent = {} if attentive else {"dy": None}
    return [
        build(fm_forward, forward, forward_tile(n, d, k, dtype)),
        build(fm_backward, backward, how, SUM_BIAS=how.sum_bias, **absent),
    ]
