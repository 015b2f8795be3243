"""Checks and times of `chunk_attention` on a GPU."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from gemkit_kernels.chunk_attention.op import chunk_attention
from gemkit_kernels.chunk_attention.pytorch import chunk_attention_pytorch
from gemkit_kernels.chunk_attention.reference import chunk_attention_reference
from gemkit_kernels.compare import errors
from gemkit_kernels.lengths import ODD, chunk_starts, log_normal
from gemkit_kernels.timing import Case, Inputs

EVENTS, LONGEST, HEADS, WIDTH = 2**20, 8192, 4, 64
BLOCK = 128
"""Rows of FlexAttention's blocks."""
OPTIONS = ("norm_gains", "ages", "age_slopes", "summary_queries")


def example(
    lengths: Tensor, size: int, heads: int, width: int, dtype: torch.dtype, full: bool, device: str, seed: int
) -> Inputs:
    """Inputs by name; with `full` everything that is optional."""
    generator = torch.Generator(device).manual_seed(seed)
    total = int(lengths.sum())

    def draw(*shape: int, kind: torch.dtype = dtype) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(kind)

    inputs: Inputs = {
        "qkv": draw(total, 3 * heads * width).requires_grad_(),
        "starts": chunk_starts(lengths, size).to(device),
    }
    if full:
        inputs["norm_gains"] = (1 + 0.2 * draw(2, width, kind=torch.float32)).requires_grad_()
        inputs["ages"] = draw(total, kind=torch.float32).abs() * 1e6
        inputs["age_slopes"] = (0.1 * draw(heads, kind=torch.float32)).requires_grad_()
        inputs["summary_queries"] = draw(2, heads * width).requires_grad_()
    return inputs


def errors_of(size: int, heads: int, width: int, dtype: torch.dtype, full: bool, device: str, seed: int) -> Any:
    """Relative errors on odd lengths."""
    # Drawn on the CPU, so that every device checks the same numbers: the gradients of the slopes are sums of terms of
    # either sign, and where those happen to cancel, rounding is all that is left.
    drawn = example(torch.tensor(ODD), size, heads, width, dtype, full, "cpu", seed)
    inputs = {n: x.detach().to(device).requires_grad_(x.requires_grad) for n, x in drawn.items()}

    def optional(x: dict[str, Tensor]) -> dict[str, Any]:
        return {name: x[name] for name in OPTIONS if name in x}

    def operation(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return chunk_attention(x["qkv"], x["starts"], size, heads, **optional(x))

    def reference(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return chunk_attention_reference(x["qkv"], x["starts"], heads, **optional(x))

    return errors(operation, reference, inputs, seed)


def checks() -> Iterator[tuple[str, torch.dtype, dict[str, float]]]:
    """Odd lengths; every kind of tile."""
    sizes = {
        torch.float32: ((64, 64), (50, 24)),
        torch.bfloat16: ((32, 16), (64, 64), (64, 128), (128, 64)),
    }
    for dtype, pairs in sizes.items():
        for size, width in pairs:
            for full in (False, True):
                if full and (width > 64 or dtype == torch.float32):
                    continue
                name = f"chunks of {size}, heads of {width}{', all options' if full else ''}"
                yield name, dtype, errors_of(size, 2, width, dtype, full, "cuda", seed=size + width)


def cases() -> list[Case]:
    """A million events of log-normal histories, 4 heads of 64, bf16."""
    return [_case(size, full) for size, full in ((64, False), (32, False), (128, False), (64, True))]


def _case(size: int, full: bool) -> Case:
    lengths = log_normal(EVENTS, LONGEST, seed=0)
    row = EVENTS * HEADS * WIDTH

    def inputs(seed: int) -> Inputs:
        return example(lengths, size, HEADS, WIDTH, torch.bfloat16, full, "cuda", seed)

    def ours(x: Inputs) -> Any:
        return chunk_attention(x["qkv"], x["starts"], size, HEADS, **{n: x[n] for n in OPTIONS if n in x})

    def eager(x: Inputs) -> Any:
        arguments = [x.get(n) for n in OPTIONS]
        return chunk_attention_pytorch(x["qkv"], x["starts"], size, HEADS, True, *arguments)

    calls: dict[str, Callable[[Inputs], Any]] = {"triton": ours, "eager": eager}
    if not full:
        # The others have no rotary positions, so it is timed without them beside them.
        def plain(x: Inputs) -> Any:
            return chunk_attention(x["qkv"], x["starts"], size, HEADS, rotary=False)

        calls["triton, no rotary"] = plain
        if size == 64:
            calls["compile"] = torch.compile(eager, dynamic=False)
            calls |= {"varlen": varlen(size), "flex": flex(), "padded": padded(lengths)}
    name = f"chunks of {size}{', all options' if full else ''}"
    floors = {
        "forward_bytes": 8 * row,
        "forward_flop": 4 * size * row,
        "backward_bytes": 14 * row,
        "backward_flop": 10 * size * row,
    }
    return Case("chunk_attention", name, inputs, calls, **floors)


def varlen(size: int) -> Any:
    """PyTorch's own flash attention, every chunk a sequence of its own."""

    def call(x: Inputs) -> Tensor:
        q, k, v = x["qkv"].view(-1, 3, HEADS, WIDTH).unbind(1)
        from torch.nn.attention.varlen import varlen_attn

        out = varlen_attn(q, k, v, x["starts"], x["starts"], size, size)
        assert isinstance(out, Tensor)
        return out

    return call


def flex() -> Any:
    """FlexAttention over all events in a row; in every step its mask is made, straight from the starts of chunks."""
    from torch.nn.attention.flex_attention import BlockMask, flex_attention

    attend = torch.compile(flex_attention, dynamic=False)

    def make(starts: Tensor) -> BlockMask:
        rows = torch.arange(EVENTS, device="cuda")
        chunk = torch.searchsorted(starts, rows, right=True, out_int32=True)

        def same(b: Tensor, h: Tensor, q: Tensor, k: Tensor) -> Tensor:
            return chunk[q] == chunk[k]

        # A block of 128 queries needs the blocks from the start of its first chunk to the end of its last.
        first, last = (
            starts[chunk[::BLOCK].long() - 1] // BLOCK,
            (starts[chunk[BLOCK - 1 :: BLOCK].long()] - 1) // BLOCK,
        )
        blocks = torch.arange(EVENTS // BLOCK, device="cuda", dtype=torch.int32)
        indices = (first.unsqueeze(1) + blocks).clamp(max=EVENTS // BLOCK - 1)
        counts = last - first + 1
        return BlockMask.from_kv_blocks(counts[None, None], indices[None, None], BLOCK_SIZE=BLOCK, mask_mod=same)

    def call(x: Inputs) -> Tensor:
        q, k, v = x["qkv"].view(1, -1, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        out: Tensor = attend(q, k, v, block_mask=make(x["starts"]))
        return out

    return call


def padded(lengths: Tensor, at_once: int = 32) -> Any:
    """Histories padded to the longest, SDPA with a mask of chunks, 32 histories at a time.

    Masks are 8,192 x 8,192 for every history: kept for the backward pass, they would not fit on a card, so each part
    is computed anew there.
    """
    count, longest = len(lengths), int(lengths.max())
    slot = torch.arange(longest)
    where = (slot < lengths.unsqueeze(1)).flatten().nonzero().squeeze(1).to("cuda")
    # Chunks are full at the newest end. Padding is a chunk of its own.
    chunks = (lengths.unsqueeze(1) - 1 - slot).div(64, rounding_mode="floor").clamp(min=-1).to("cuda")

    def attend(rows: Tensor, chunk: Tensor) -> Tensor:
        q, k, v = rows.view(-1, longest, 3, HEADS, WIDTH).permute(2, 0, 3, 1, 4)
        same = (chunk.unsqueeze(2) == chunk.unsqueeze(1)).unsqueeze(1)
        return F.scaled_dot_product_attention(q, k, v, attn_mask=same).transpose(1, 2).flatten(2)

    def call(x: Inputs) -> Tensor:
        slots = x["qkv"].new_zeros(count * longest, x["qkv"].shape[1]).index_copy(0, where, x["qkv"])
        parts = []
        pieces = slots.view(count, longest, -1).split(at_once), chunks.split(at_once)
        for rows, chunk in zip(*pieces, strict=True):
            parts.append(checkpoint(attend, rows, chunk, use_reentrant=False))
        return torch.cat(parts).flatten(0, 1).index_select(0, where)

    return call
