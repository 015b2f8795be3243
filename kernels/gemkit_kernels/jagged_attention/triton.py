"""`jagged_attention` in Triton: a program has some rows of one history and head, and walks over the rows they see.

Softmax goes tile by tile and keeps the logarithm of its sum for each row; from that the backward pass computes the
weights anew. It is two kernels, one with a tile of queries (for dq, and `delta`, the row sums of dout * out) and one
with a tile of keys (for dk and dv), so nothing is added up in memory.

Rotary positions turn queries and keys. In a window, where each is loaded a few times only, the forward kernel turns
them after loading; else a kernel of its own turns each once, and the others read its copy. The backward kernels always
do: turning what they load as well would take more registers than there are.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from gemkit_kernels.jagged_attention.triton_backward import backward_keys, backward_queries
from gemkit_kernels.jagged_attention.triton_forward import forward, turn_beforehand
from gemkit_kernels.rotary import table
from gemkit_kernels.tiles import LOG2E, Build, pointer, power_of_two

EVERYTHING = 2**30
"""Rows before or after a row that it sees, where nothing limits them."""


class Options(NamedTuple):
    """What is the same in all kernels of a call.

    Attributes:
        back, ahead: Rows before and after a row that it sees.
        num_global: S; 0 where all rows see all anyway.
    """

    num_heads: int
    head_dim: int
    longest: int
    back: int
    ahead: int
    num_global: int
    rotary: bool

    @property
    def windowed(self) -> bool:
        return self.back < EVERYTHING


class Tile(NamedTuple):
    """Rows that a program has, rows that it loads at a time, and how it is compiled."""

    rows: int
    step: int
    num_warps: int
    num_stages: int


TURN = Tile(64, 64, 4, 1)
"""Of the kernel that turns rows beforehand."""


def tile(kernel: Any, o: Options, dtype: torch.dtype) -> Tile:
    """Tiles that spill no registers, found by compiling ahead of time."""
    wide = o.head_dim > 64
    if kernel is turn_beforehand:
        return TURN
    if dtype == torch.float32:
        return Tile(16 if wide and kernel is not forward else 32, 32, 8, 2)
    if kernel is backward_keys and (wide or o.windowed):
        return Tile(64, 32, 8 if wide else 4, 2)
    if o.windowed:
        return Tile(64, 64, 8 if wide else 4, 2)
    if kernel is forward:
        return Tile(128, 64, 8 if wide else 4, 3)
    return Tile(128, 64, 8, 2)


def options(
    width: int,
    longest: int,
    num_heads: int,
    causal: bool,
    window: int,
    both_sides: bool,
    num_global: int,
    rotary: bool,
) -> Options:
    """The arguments of `jagged_attention` in the kernels' terms; `width` is 3 D."""
    back = window - 1 if window else EVERYTHING
    ahead = 0 if causal or (window and not both_sides) else back
    some = num_global if ahead < EVERYTHING else 0
    return Options(num_heads, width // 3 // num_heads, longest, back, ahead, some, rotary)


def jagged_attention_forward(qkv: Tensor, offsets: Tensor, o: Options) -> tuple[Tensor, Tensor]:
    """The mixed values, and for each head and row the base-2 logarithm of the softmax's sum.

    Shape: qkv (T, 3 D), offsets (U+1,) -> (T, D), (H, T).
    """
    out = qkv.new_empty(qkv.shape[0], o.num_heads * o.head_dim)
    lse = qkv.new_empty(o.num_heads, qkv.shape[0], dtype=torch.float32)
    turns = _turns(qkv, o)
    qk = qkv if o.windowed else _turned(qkv, offsets, turns, o)
    _start(forward, (qk, qkv, out, lse), offsets, turns, qkv, o)
    return out, lse


def jagged_attention_backward(
    dout: Tensor, qkv: Tensor, offsets: Tensor, out: Tensor, lse: Tensor, o: Options
) -> Tensor:
    """Shape: dout (T, D), qkv (T, 3 D), offsets (U+1,), out (T, D), lse (H, T) -> (T, 3 D)."""
    dqkv, deltas = torch.empty_like(qkv), torch.empty_like(lse)
    turns = _turns(qkv, o)
    qk = _turned(qkv, offsets, turns, o)
    _start(backward_queries, (qk, qkv, out, dout, lse, deltas, dqkv), offsets, turns, qkv, o)
    _start(backward_keys, (qk, qkv, dout, lse, deltas, dqkv), offsets, turns, qkv, o)
    return dqkv


def _turns(qkv: Tensor, o: Options) -> tuple[Any, Any]:
    """Cosines and sines, for a power of two of positions: few tables, not one for each batch."""
    if not o.rotary:
        return None, None
    cos, sin = table(power_of_two(o.longest), o.head_dim // 2, qkv.device)
    return cos, sin


def _turned(qkv: Tensor, offsets: Tensor, turns: tuple[Any, Any], o: Options) -> Tensor:
    """Queries and keys as the kernels read them: a turned copy."""
    if not o.rotary:
        return qkv
    qk = qkv.new_empty(qkv.shape[0], 2 * o.num_heads * o.head_dim)
    _start(turn_beforehand, (qkv, qk), offsets, turns, qkv, o)
    return qk


def _start(
    kernel: Any, tensors: tuple[Tensor, ...], offsets: Tensor, turns: tuple[Any, Any], qkv: Tensor, o: Options
) -> None:
    """Lists the tiles of all histories and starts a program for each, or for each of them and head.

    The list is made on the device, which alone knows the lengths. It has room for T / rows + U tiles, which always
    suffices; programs past the last tile find no rows.
    """
    at = tile(kernel, o, qkv.dtype)
    total, histories = qkv.shape[0], offsets.shape[0] - 1
    count = total // at.rows + histories
    if total == 0 or histories == 0:
        return
    ends = ((offsets.diff() + (at.rows - 1)) // at.rows).cumsum(0)
    tiles = torch.searchsorted(ends, torch.arange(count, device=qkv.device), right=True)
    # Scores are in units of log 2.
    rest = () if kernel is turn_beforehand else (total, o.back, o.ahead, o.head_dim**-0.5 * LOG2E.value)
    grid = (count if kernel is turn_beforehand else count * o.num_heads,)
    kernel[grid](
        *tensors,
        offsets,
        tiles,
        ends,
        *turns,
        histories,
        o.longest,
        *rest,
        **_constants(kernel, o, qkv.dtype),
        num_warps=at.num_warps,
        num_stages=at.num_stages,
    )


def _constants(kernel: Any, o: Options, dtype: torch.dtype) -> dict[str, Any]:
    at = tile(kernel, o, dtype)
    fused = o.rotary and kernel is forward and o.windowed
    found = {
        "H": o.num_heads,
        "E": o.head_dim,
        "WIDTH": power_of_two(o.head_dim),
        "QK": (2 if o.rotary and not fused else 3) * o.num_heads * o.head_dim,
        "ROWS": at.rows,
        "STEP": at.step,
        "S": o.num_global,
        "ROTARY": o.rotary,
        "FUSED": fused,
        # Two products of bf16 fit tf32 and fp32 does not: three tf32 products give fp32's precision.
        "PRECISION": "tf32x3" if dtype == torch.float32 else "tf32",
    }
    return {name: value for name, value in found.items() if name in kernel.arg_names}


def builds() -> list[Build]:
    """The shipped tiles: windows and full attention, heads of 16 to 128; every tile with its largest options."""
    found = []
    for dtype, widths in ((torch.bfloat16, (16, 32, 64, 128)), (torch.float32, (64, 128))):
        for width in widths:
            for window in (64, 0) if width >= 64 else (64,):
                found += [_build(k, dtype, width, window) for k in (forward, backward_queries, backward_keys)]
    return [*found, _build(turn_beforehand, torch.bfloat16, 64, 0)]


def _build(kernel: Any, dtype: torch.dtype, width: int, window: int) -> Build:
    o = options(3 * 4 * width, 8192, 4, window == 0, window, False, 2, True)
    at, kind = tile(kernel, o, dtype), pointer(dtype)
    types = {
        **dict.fromkeys(("qk", "qkv", "out", "dout", "dqkv", "turned"), kind),
        **dict.fromkeys(("lse", "deltas", "cos", "sin"), "*fp32"),
        **{"offsets": "*i32", "tiles": "*i64", "ends": "*i64", "scale": "fp32"},
        **dict.fromkeys(("total", "histories", "longest", "back", "ahead"), "i32"),
    }
    arguments = {name: types[name] for name in kernel.arg_names if name in types}
    name = f"{kernel.__name__}, {kind[1:]}, {'window' if window else 'causal'}, head {width}"
    matrix = kernel is not turn_beforehand
    return Build(
        name,
        kernel,
        arguments,
        _constants(kernel, o, dtype),
        at.num_warps,
        at.num_stages,
        wgmma=matrix and dtype == torch.bfloat16 and at.rows >= 64,
        pipelined=matrix and at.num_stages > 1,
    )
