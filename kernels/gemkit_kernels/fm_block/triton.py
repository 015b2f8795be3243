"""`fm_block` in Triton: an example is one tile; nothing but the inputs and outputs touches memory.

The backward pass computes the products anew from x. Both passes run on a fixed number of programs, each of which takes
many examples in turn: Y, gain and bias are read once, and sums over examples (gradients of Y, gain and bias) stay in
registers until a program is done. It then writes its part; parts are added up afterwards, in a fixed order.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from gemkit_kernels.fm_block.op import MOST_BEFORE_HOPPER
from gemkit_kernels.fm_block.reference import EPS
from gemkit_kernels.tiles import Build, pointer, power_of_two


@triton.jit
def _projection(y, ranks, rows, k: tl.constexpr, n: tl.constexpr, KIND: tl.constexpr):
    """Y^T of one example, or of all."""
    tile = tl.load(y + ranks[:, None] * n + rows[None, :], mask=(ranks < k)[:, None] & (rows < n)[None, :], other=0.0)
    return tl.trans(tile.to(KIND))


@triton.jit
def _tokens(x, rows, columns, n: tl.constexpr, d: tl.constexpr):
    """Some columns of X of one example."""
    mask = (rows < n)[:, None] & (columns < d)[None, :]
    return tl.load(x + rows[:, None] * d + columns[None, :], mask=mask, other=0.0)


@triton.jit
def _normed(products, valid, count, EPS: tl.constexpr):
    """LayerNorm of a whole tile without its gain and bias, and one over its standard deviation."""
    # Outside of `valid` products are 0.
    centred = tl.where(valid, products - tl.sum(products) / count, 0.0)
    r = tl.rsqrt(tl.sum(centred * centred) / count + EPS)
    return centred * r, r


@triton.jit(do_not_specialize=["batch", "programs"])
def _forward(
    x,
    y,
    gain,
    bias,
    out,
    batch,
    programs,
    n: tl.constexpr,
    d: tl.constexpr,
    k: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    ATTENTIVE: tl.constexpr,
    EPS: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    kind: tl.constexpr = x.dtype.element_ty
    rows, ranks, columns = tl.arange(0, N), tl.arange(0, K), tl.arange(0, WIDTH)
    place = rows[:, None] * k + ranks[None, :]
    valid = (rows < n)[:, None] & (ranks < k)[None, :]
    scale = tl.load(gain + place, mask=valid, other=0.0).to(tl.float32)
    shift = tl.load(bias + place, mask=valid, other=0.0).to(tl.float32)
    if not ATTENTIVE:
        projection = _projection(y, ranks, rows, k, n, kind)
    for i in tl.range(tl.program_id(0), batch, programs, num_stages=STAGES):
        example = tl.cast(i, tl.int64)
        if ATTENTIVE:
            projection = _projection(y + example * (k * n), ranks, rows, k, n, kind)
        tokens = _tokens(x + example * (n * d), rows, columns, n, d)
        compressed = tl.dot(tl.trans(tokens), projection, input_precision=PRECISION).to(kind)
        products = tl.dot(tokens, compressed, input_precision=PRECISION)
        for part in range(1, PARTS):
            more = _tokens(x + example * (n * d), rows, part * WIDTH + columns, n, d)
            also = tl.dot(tl.trans(more), projection, input_precision=PRECISION).to(kind)
            products = tl.dot(more, also, products, input_precision=PRECISION)
        normed, _ = _normed(products, valid, n * k, EPS)
        tl.store(out + example * (n * k) + place, (normed * scale + shift).to(kind), mask=valid)


@triton.jit(do_not_specialize=["batch", "programs"])
def _backward(
    x,
    y,
    gain,
    dout,
    dx,
    dy,
    sums,
    batch,
    programs,
    n: tl.constexpr,
    d: tl.constexpr,
    k: tl.constexpr,
    N: tl.constexpr,
    K: tl.constexpr,
    WIDTH: tl.constexpr,
    PARTS: tl.constexpr,
    ATTENTIVE: tl.constexpr,
    SUM_BIAS: tl.constexpr,
    EPS: tl.constexpr,
    PRECISION: tl.constexpr,
    STAGES: tl.constexpr,
):
    kind: tl.constexpr = x.dtype.element_ty
    rows, ranks, columns = tl.arange(0, N), tl.arange(0, K), tl.arange(0, WIDTH)
    place = rows[:, None] * k + ranks[None, :]
    valid = (rows < n)[:, None] & (ranks < k)[None, :]
    if not ATTENTIVE:
        projection = _projection(y, ranks, rows, k, n, kind)
    dgain, dbias, dprojection = (
        tl.zeros([N, K], tl.float32),
        tl.zeros([N, K], tl.float32),
        tl.zeros([N, K], tl.float32),
    )
    for i in tl.range(tl.program_id(0), batch, programs, num_stages=STAGES):
        example = tl.cast(i, tl.int64)
        if ATTENTIVE:
            projection = _projection(y + example * (k * n), ranks, rows, k, n, kind)
            dprojection = tl.zeros([N, K], tl.float32)
        dnormed = tl.load(dout + example * (n * k) + place, mask=valid, other=0.0).to(tl.float32)
        tokens = _tokens(x + example * (n * d), rows, columns, n, d)
        compressed = tl.dot(tl.trans(tokens), projection, input_precision=PRECISION).to(kind)
        products = tl.dot(tokens, compressed, input_precision=PRECISION)
        for part in range(1, PARTS):
            more = _tokens(x + example * (n * d), rows, part * WIDTH + columns, n, d)
            also = tl.dot(tl.trans(more), projection, input_precision=PRECISION).to(kind)
            products = tl.dot(more, also, products, input_precision=PRECISION)
        normed, r = _normed(products, valid, n * k, EPS)
        dgain += dnormed * normed
        if SUM_BIAS:
            dbias += dnormed
        dnormed *= tl.load(gain + place, mask=valid, other=0.0).to(tl.float32)
        dproducts = dnormed - tl.sum(dnormed) / (n * k) - normed * (tl.sum(dnormed * normed) / (n * k))
        dproducts = tl.where(valid, r * dproducts, 0.0).to(kind)
        for part in range(PARTS):
            if PARTS > 1 or N * K > 2048:
                # Registers hold no more: x comes again, out of the cache.
                tokens = _tokens(x + example * (n * d), rows, part * WIDTH + columns, n, d)
                compressed = tl.dot(tl.trans(tokens), projection, input_precision=PRECISION).to(kind)
            dcompressed = tl.dot(tl.trans(tokens), dproducts, input_precision=PRECISION).to(kind)
            dtokens = tl.dot(dproducts, tl.trans(compressed), input_precision=PRECISION)
            dtokens = tl.dot(projection, tl.trans(dcompressed), dtokens, input_precision=PRECISION)
            dprojection = tl.dot(tokens, dcompressed, dprojection, input_precision=PRECISION)
            column = part * WIDTH + columns
            there = dx + example * (n * d) + rows[:, None] * d + column[None, :]
            tl.store(there, dtokens.to(kind), mask=(rows < n)[:, None] & (column < d)[None, :])
        if ATTENTIVE:
            there = dy + example * (k * n) + ranks[:, None] * n + rows[None, :]
            tl.store(there, tl.trans(dprojection), mask=(ranks < k)[:, None] & (rows < n)[None, :])
    part_of = sums + tl.program_id(0).to(tl.int64) * (3 * n * k)
    tl.store(part_of + place, dgain, mask=valid)
    if SUM_BIAS:
        tl.store(part_of + n * k + place, dbias, mask=valid)
    if not ATTENTIVE:
        there = part_of + 2 * n * k + ranks[:, None] * n + rows[None, :]
        tl.store(there, tl.trans(dprojection), mask=(ranks < k)[:, None] & (rows < n)[None, :])


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
        _forward[(programs,)](x, y, gain, bias, out, batch, programs, **constants, num_warps=how.num_warps)
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
        _backward[(programs,)](x, y, gain, dout, dx, dy, sums, batch, programs, **constants, num_warps=how.num_warps)
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
        title = f"{kernel.__name__.strip('_')}, {name}"
        return Build(title, kernel, arguments, constants, how.num_warps, how.stages, architectures=architectures)

    how = backward_tile(n, d, k, dtype)
    absent = {} if attentive else {"dy": None}
    return [
        build(_forward, forward, forward_tile(n, d, k, dtype)),
        build(_backward, backward, how, SUM_BIAS=how.sum_bias, **absent),
    ]
