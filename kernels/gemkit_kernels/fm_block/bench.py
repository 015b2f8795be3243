"""Checks and times of `fm_block` on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from gemkit_kernels.compare import errors
from gemkit_kernels.fm_block.op import fm_block
from gemkit_kernels.fm_block.pytorch import fm_block_pytorch
from gemkit_kernels.fm_block.reference import fm_block_reference
from gemkit_kernels.timing import Call, Case, Inputs

SIZES = ((262144, 32, 32, 16), (65536, 64, 64, 24), (32768, 128, 128, 16), (16384, 256, 128, 24))
"""Examples, tokens, width, rank."""
ODD = ((7, 31, 33, 3), (5, 33, 31, 31), (3, 1, 100, 9), (301, 32, 32, 16), (9, 64, 130, 17), (4, 3, 1, 16))


def example(batch: int, n: int, d: int, k: int, dtype: torch.dtype, attentive: bool, device: str, seed: int) -> Inputs:
    """Inputs by name. Gain and bias are fp32, as parameters are under autocast."""
    generator = torch.Generator(device).manual_seed(seed)

    def draw(*shape: int, scale: float = 1.0, shift: float = 0.0, kind: torch.dtype = dtype) -> Any:
        drawn = shift + scale * torch.randn(*shape, generator=generator, device=device)
        return drawn.to(kind).requires_grad_()

    return {
        # A single token so small that epsilon counts: the norm is blind to its size otherwise.
        "x": draw(batch, n, d, scale=1.0 if n > 1 else 0.05 * d**-0.5),
        "y": draw(*((batch, k, n) if attentive else (k, n))),
        "gain": draw(n * k, scale=0.2, shift=1.0, kind=torch.float32),
        "bias": draw(n * k, kind=torch.float32),
    }


def errors_of(
    batch: int, n: int, d: int, k: int, dtype: torch.dtype, attentive: bool, device: str, seed: int
) -> dict[str, float]:
    """Relative errors at one size."""
    inputs = example(batch, n, d, k, dtype, attentive, device, seed)
    return errors(lambda x: (fm_block(**x),), lambda x: (fm_block_reference(**x),), inputs, seed)


def checks() -> Iterator[tuple[str, torch.dtype, dict[str, float]]]:
    """Odd sizes, and those that are timed with fewer examples."""
    sizes = {torch.float32: ODD[:2], torch.bfloat16: (ODD[0], ODD[4], *((300, *size) for _, *size in SIZES))}
    for dtype, chosen in sizes.items():
        for i, (batch, n, d, k) in enumerate(chosen):
            for attentive in (False, True) if i < 2 else (False,):
                name = f"{batch} examples, {n} tokens of {d}, rank {k}{', attentive' if attentive else ''}"
                yield name, dtype, errors_of(batch, n, d, k, dtype, attentive, "cuda", seed=n + d)


def cases() -> list[Case]:
    """From small Wukongs to large ones, bf16, Y shared."""
    return [_case(*size) for size in SIZES]


def _case(batch: int, n: int, d: int, k: int) -> Case:
    def inputs(seed: int) -> Inputs:
        return example(batch, n, d, k, torch.bfloat16, False, "cuda", seed)

    def eager(x: Inputs) -> Any:
        return fm_block_pytorch(**x)

    floors = {
        "forward_bytes": 2 * batch * (n * d + n * k),
        "forward_flop": 4 * batch * n * d * k,
        "backward_bytes": 2 * batch * (2 * n * d + n * k),
        "backward_flop": 12 * batch * n * d * k,
    }
    calls: dict[str, Call] = {
        "triton": lambda x: fm_block(**x),
        "eager": eager,
        "compile": torch.compile(eager, dynamic=False),
    }
    return Case("fm_block", f"{batch} of {n} tokens x {d}, rank {k}", inputs, calls, **floors, sets=4)
