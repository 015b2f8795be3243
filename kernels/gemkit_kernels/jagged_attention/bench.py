"""Checks and times of `jagged_attention` on a GPU."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from gemkit_kernels.compare import errors
from gemkit_kernels.jagged_attention.op import jagged_attention
from gemkit_kernels.jagged_attention.reference import jagged_attention_reference
from gemkit_kernels.lengths import ODD, log_normal, offsets_of
from gemkit_kernels.timing import Case, Inputs

EVENTS, HEADS, WIDTH = 2**20, 4, 64
BLOCK = 128
"""Rows of FlexAttention's blocks."""
VARIANTS: tuple[dict[str, Any], ...] = (
    {},
    {"causal": True},
    {"causal": True, "num_global": 3},
    {"window": 64},
    {"window": 7, "both_sides": True},
    {"window": 100, "both_sides": True, "num_global": 2},
    {"window": 1},
    {"causal": True, "rotary": False},
)
"""Options that take different ways through the kernels."""


def example(lengths: Tensor, heads: int, width: int, dtype: torch.dtype, device: str, seed: int) -> Inputs:
    """Inputs by name."""
    generator = torch.Generator(device).manual_seed(seed)
    qkv = torch.randn(int(lengths.sum()), 3 * heads * width, generator=generator, device=device)
    return {"qkv": qkv.to(dtype).requires_grad_(), "offsets": offsets_of(lengths).to(device)}


def errors_of(
    lengths: Tensor, heads: int, width: int, dtype: torch.dtype, options: dict[str, Any], device: str, seed: int
) -> dict[str, float]:
    """Relative errors."""
    inputs, longest = example(lengths, heads, width, dtype, device, seed), int(lengths.max())

    def operation(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return (jagged_attention(x["qkv"], x["offsets"], longest, heads, **options),)

    def reference(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return (jagged_attention_reference(x["qkv"], x["offsets"], heads, **options),)

    return errors(operation, reference, inputs, seed)


def checks() -> Iterator[tuple[str, torch.dtype, dict[str, float]]]:
    """Odd lengths, all tiles."""
    lengths = torch.tensor([*ODD, 1500])
    for dtype in (torch.float32, torch.bfloat16):
        for width in (24, 64, 128) if dtype == torch.bfloat16 else (64,):
            for options in VARIANTS if width == 64 and dtype == torch.bfloat16 else VARIANTS[2:6:3]:
                found = errors_of(lengths, 2, width, dtype, options, "cuda", seed=width)
                yield f"heads of {width}, {options or 'full'}", dtype, found


def cases() -> list[Case]:
    """A million events of log-normal histories, 4 heads of 64, bf16."""
    return [
        _case("full", 8192),
        _case("full", 1024),
        _case("causal", 8192, causal=True),
        _case("window 64", 8192, window=64),
    ]


def _case(name: str, longest: int, causal: bool = False, window: int = 0) -> Case:
    lengths = log_normal(EVENTS, longest, seed=0)
    longest = int(lengths.max())
    row = EVENTS * HEADS * WIDTH

    def inputs(seed: int) -> Inputs:
        return example(lengths, HEADS, WIDTH, torch.bfloat16, "cuda", seed)

    def ours(x: Inputs, rotary: bool = True) -> Tensor:
        return jagged_attention(x["qkv"], x["offsets"], longest, HEADS, causal=causal, window=window, rotary=rotary)

    def plain(x: Inputs) -> Tensor:
        return ours(x, rotary=False)

    calls = {
        "triton": ours,
        # The others have no rotary positions, so it is timed without them beside them.
        "triton, no rotary": plain,
        "varlen": varlen(longest, causal, window),
        "flex": flex(causal or window > 0, window),
    }
    if not causal and not window:
        calls["padded"] = padded(lengths, causal, window)
    flop = HEADS * WIDTH * visible_pairs(lengths, causal, window)
    floors = {
        "forward_bytes": 8 * row,
        "forward_flop": 4 * flop,
        "backward_bytes": 16 * row,
        "backward_flop": 10 * flop,
    }
    return Case("jagged_attention", f"{name}, up to {longest}", inputs, calls, **floors)


def visible_pairs(lengths: Tensor, causal: bool, window: int) -> int:
    """Pairs of a row and a row that it sees."""
    if not causal and not window:
        return int(lengths.square().sum())
    short = lengths.clamp(max=window or int(lengths.max()))
    return int((short * (short + 1) // 2 + (lengths - short) * window).sum())


def varlen(longest: int, causal: bool, window: int) -> Any:
    """PyTorch's own flash attention over histories."""

    def call(x: Inputs) -> Tensor:
        from torch.nn.attention.varlen import varlen_attn

        options: dict[str, Any] = {}
        if "window_size" in inspect.signature(varlen_attn).parameters:
            options["window_size"] = (window - 1 if window else -1, 0 if causal or window else -1)
        elif window:
            raise NotImplementedError("this version of varlen_attn has no windows")
        else:
            options["is_causal"] = causal
        q, k, v = x["qkv"].view(-1, 3, HEADS, WIDTH).unbind(1)
        out = varlen_attn(q, k, v, x["offsets"], x["offsets"], longest, longest, **options)
        assert isinstance(out, Tensor)
        return out

    return call


def flex(causal: bool, window: int) -> Any:
    """FlexAttention over all events in a row; in every step its mask is made, straight from the offsets."""
    from torch.nn.attention.flex_attention import flex_attention

    attend = torch.compile(flex_attention, dynamic=False)

    def call(x: Inputs) -> Tensor:
        q, k, v = x["qkv"].view(1, -1, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        out: Tensor = attend(q, k, v, block_mask=block_mask(x["offsets"], q.shape[2], causal, window))
        return out

    return call


def block_mask(offsets: Tensor, events: int, causal: bool, window: int) -> Any:
    """For each block of queries the blocks of keys that it sees whole, and those that it sees in part."""
    from torch.nn.attention.flex_attention import BlockMask

    rows = torch.arange(events, device=offsets.device)
    history = torch.searchsorted(offsets, rows, right=True)
    reach = window or events

    def seen(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
        same = history[q] == history[k]
        return same & (k <= q) & (q - k < reach) if causal else same

    first, last = rows[::BLOCK], rows[BLOCK - 1 :: BLOCK]
    start, end = offsets[history[first] - 1], offsets[history[last]]
    # What some row of a block sees, and what all of them see if they are of one history.
    low, high = torch.maximum(start, first - reach + 1), torch.minimum(end, last + 1) if causal else end
    inner, outer = torch.maximum(start, last - reach + 1), first + 1 if causal else end
    low, high, inner, outer = low // BLOCK, -(-high // BLOCK), -(-inner // BLOCK), outer // BLOCK
    whole = torch.where(history[first] == history[last], (outer - inner).clamp(min=0), 0)
    inner = torch.where(whole > 0, inner, high)
    blocks = torch.arange(events // BLOCK, device=offsets.device)
    partial = low.unsqueeze(1) + blocks
    partial += torch.where(partial < inner.unsqueeze(1), 0, whole.unsqueeze(1))
    most = (len(blocks), len(blocks) - 1)
    num_partial, partial, num_whole, full = (
        x.clamp(max=most[x.dim() - 1]).to(torch.int32)[None, None]
        for x in (high - low - whole, partial, whole, inner.unsqueeze(1) + blocks)
    )
    return BlockMask.from_kv_blocks(num_partial, partial, num_whole, full, BLOCK_SIZE=BLOCK, mask_mod=seen)


def padded(lengths: Tensor, causal: bool, window: int, at_once: int = 32) -> Any:
    """Histories padded to the longest, SDPA, 32 histories at a time for the masks' memory."""
    count, longest = len(lengths), int(lengths.max())
    slot = torch.arange(longest)
    valid = slot < lengths.unsqueeze(1)
    where = valid.flatten().nonzero().squeeze(1).to("cuda")
    valid = valid.to("cuda")
    # Padding stands after a history's rows: who looks back only does not see it.
    distance = (slot.unsqueeze(1) - slot).to("cuda") if window else slot
    near = (distance >= 0) & (distance < window) if window else None

    def call(x: Inputs) -> Tensor:
        slots = x["qkv"].new_zeros(count * longest, x["qkv"].shape[1]).index_copy(0, where, x["qkv"])
        parts = []
        for rows, some in zip(slots.view(count, longest, -1).split(at_once), valid.split(at_once), strict=True):
            q, k, v = rows.view(-1, longest, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
            mask = near if window else None if causal else some[:, None, None]
            mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=causal)
            parts.append(mixed.transpose(1, 2).flatten(2))
        return torch.cat(parts).flatten(0, 1).index_select(0, where)

    return call
