"""Checks and times of `gdpa` on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gemkit_kernels.compare import errors
from gemkit_kernels.gdpa.op import gdpa
from gemkit_kernels.gdpa.pytorch import gdpa_pytorch
from gemkit_kernels.gdpa.reference import gdpa_reference
from gemkit_kernels.lengths import ODD, log_normal, offsets_of
from gemkit_kernels.timing import Case, Inputs

EVENTS, LONGEST, HEADS, WIDTH = 2**20, 8192, 4, 64


def example(
    lengths: Tensor, num_keys: int, heads: int, width: int, dtype: torch.dtype, device: str, seed: int
) -> Inputs:
    """Inputs by name."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=device).to(dtype).requires_grad_()

    dim = heads * width
    return {
        "queries": draw(int(lengths.sum()), dim),
        "keys": draw(len(lengths), num_keys, dim),
        "values": draw(len(lengths), num_keys, dim),
        "offsets": offsets_of(lengths).to(device),
    }


def errors_of(
    num_keys: int,
    heads: int,
    width: int,
    dtype: torch.dtype,
    activation: str,
    device: str,
    seed: int,
    lengths: tuple[int, ...] = ODD,
) -> dict[str, float]:
    """Relative errors of the output and the gradients."""
    inputs = example(torch.tensor(lengths), num_keys, heads, width, dtype, device, seed)
    scale = width**-0.5

    def operation(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        arguments = (x["queries"], x["keys"], x["values"], x["offsets"], heads)
        return (gdpa(*arguments, scale=scale, activation=activation),)

    def reference(x: dict[str, Tensor]) -> tuple[Tensor, ...]:
        return (gdpa_reference(x["queries"], x["keys"], x["values"], x["offsets"], heads, scale, activation),)

    return errors(operation, reference, inputs, seed)


def checks() -> Iterator[tuple[str, torch.dtype, dict[str, float]]]:
    """Odd lengths, all tiles, both activations; one history of many splits."""
    for dtype in (torch.float32, torch.bfloat16):
        for keys, width in ((4, 64), (33, 24), (128, 128)) if dtype == torch.bfloat16 else ((4, 64),):
            for activation in ("gelu", "silu") if keys == 4 else ("gelu",):
                name = f"{keys} keys, heads of {width}, {activation}"
                yield name, dtype, errors_of(keys, 2, width, dtype, activation, "cuda", seed=keys + width)
        long = errors_of(4, 2, 64, dtype, "gelu", "cuda", seed=1, lengths=(3, 20_000, 0, 512, 513))
        yield "a history of 20 000", dtype, long


def cases() -> list[Case]:
    """A million events of log-normal histories, 4 heads of 64, bf16."""
    return [_case(num_keys) for num_keys in (4, 16)]


def _case(num_keys: int) -> Case:
    lengths = log_normal(EVENTS, LONGEST, seed=0)
    row = EVENTS * HEADS * WIDTH
    scale = 1 / num_keys

    def inputs(seed: int) -> Inputs:
        return example(lengths, num_keys, HEADS, WIDTH, torch.bfloat16, "cuda", seed)

    def ours(x: Inputs) -> Tensor:
        return gdpa(x["queries"], x["keys"], x["values"], x["offsets"], HEADS, scale=scale)

    def eager(x: Inputs) -> Tensor:
        return gdpa_pytorch(x["queries"], x["keys"], x["values"], x["offsets"], HEADS, scale, "gelu")

    calls: dict[str, Any] = {"triton": ours, "eager": eager}
    if num_keys == 4:
        calls["compile"] = torch.compile(eager, dynamic=False)
    # Queries in, outputs out; in the backward pass queries and gradients in, gradients out.
    floors = {
        "forward_bytes": 4 * row,
        "forward_flop": 4 * num_keys * row,
        "backward_bytes": 6 * row,
        "backward_flop": 10 * num_keys * row,
    }
    return Case("gdpa", f"{num_keys} keys", inputs, calls, **floors)
