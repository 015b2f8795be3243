"""Checks and times of `jagged_pool` on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gemkit_kernels.compare import errors
from gemkit_kernels.jagged_pool.op import jagged_pool
from gemkit_kernels.jagged_pool.pytorch import jagged_pool_pytorch
from gemkit_kernels.jagged_pool.reference import jagged_pool_reference
from gemkit_kernels.lengths import ODD, chunk_starts, log_normal, offsets_of
from gemkit_kernels.timing import Case, Inputs

EVENTS, LONGEST, HEADS, WIDTH = 2**20, 8192, 4, 64
FORMS = ("shared", "own", "shared, values are keys", "own, values are keys")


def example(
    lengths: Tensor, queries: int, heads: int, width: int, dtype: torch.dtype, form: str, device: str, seed: int
) -> Inputs:
    """Inputs by name; keys and values are views of one tensor."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype).requires_grad_()

    dim, own = heads * width, form.startswith("own")
    return {
        "queries": draw(len(lengths), queries, dim) if own else draw(queries, dim),
        "rows": draw(int(lengths.sum()), dim if form.endswith("keys") else 2 * dim),
        "offsets": offsets_of(lengths).to(device),
    }


def tensors(x: dict[str, Tensor]) -> tuple[Tensor, Tensor, Tensor | None, Tensor]:
    """The tensors that `jagged_pool` takes."""
    dim = x["queries"].shape[-1]
    values = x["rows"][:, dim:] if x["rows"].shape[1] > dim else None
    return x["queries"], x["rows"][:, :dim], values, x["offsets"]


def errors_of(
    queries: int,
    heads: int,
    width: int,
    dtype: torch.dtype,
    form: str,
    device: str,
    seed: int,
    lengths: tuple[int, ...] = ODD,
) -> dict[str, float]:
    """Relative errors of the output and the gradients."""
    inputs = example(torch.tensor(lengths), queries, heads, width, dtype, form, device, seed)
    scale = width**-0.5

    def operation(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return (jagged_pool(*tensors(x), heads),)

    def reference(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return (jagged_pool_reference(*tensors(x), heads, scale),)

    return errors(operation, reference, inputs, seed)


def checks() -> Iterator[tuple[str, torch.dtype, dict[str, float]]]:
    """Odd lengths, all tiles, all forms; one history of many splits."""
    for dtype in (torch.float32, torch.bfloat16):
        for queries, width in ((4, 64), (17, 24), (64, 128)) if dtype == torch.bfloat16 else ((4, 64),):
            for form in FORMS if width == 64 else FORMS[1:3]:
                found = errors_of(queries, 2, width, dtype, form, "cuda", seed=queries + width)
                yield f"{queries} queries, heads of {width}, {form}", dtype, found
        for form in FORMS[:1]:
            long = errors_of(4, 2, 64, dtype, form, "cuda", seed=1, lengths=(3, 20_000, 0, 512, 513))
            yield f"a history of 20 000, {form}", dtype, long


def cases() -> list[Case]:
    """A million events of log-normal histories, 4 heads of 64, bf16; and the summaries of their chunks of 64."""
    lengths = log_normal(EVENTS, LONGEST, seed=0)
    chunks = chunk_starts(lengths, 64).diff().long()
    return [
        _case("4 shared queries", lengths, 4, "shared"),
        _case("4 queries of each history", lengths, 4, "own"),
        _case("chunks of 64, 2 shared queries, values are keys", chunks, 2, "shared, values are keys"),
    ]


def _case(name: str, lengths: Tensor, queries: int, form: str) -> Case:
    row = EVENTS * HEADS * WIDTH
    pooled = len(lengths) * queries * HEADS * WIDTH
    own = pooled if form.startswith("own") else 0
    read = row if form.endswith("keys") else 2 * row

    def inputs(seed: int) -> Inputs:
        return example(lengths, queries, HEADS, WIDTH, torch.bfloat16, form, "cuda", seed)

    def ours(x: Inputs) -> Tensor:
        return jagged_pool(*tensors(x), HEADS)

    def eager(x: Inputs) -> Tensor:
        return jagged_pool_pytorch(*tensors(x), HEADS, WIDTH**-0.5)

    calls: dict[str, Any] = {"triton": ours, "eager": eager}
    if len(lengths) < 10_000:  # of the chunks' padded copy the compiler makes no less
        calls["compile"] = torch.compile(eager, dynamic=False)
    # In the backward pass rows and the gradients of what is pooled in, gradients out.
    floors = {
        "forward_bytes": 2 * (read + own + pooled),
        "forward_flop": 4 * queries * row,
        "backward_bytes": 2 * (2 * read + 2 * own + 2 * pooled),
        "backward_flop": 10 * queries * row,
    }
    return Case("jagged_pool", name, inputs, calls, **floors)
