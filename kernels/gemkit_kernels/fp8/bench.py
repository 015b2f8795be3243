"""Checks and times of FP8 casts on a GPU."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from gemkit_kernels.compare import relative_error
from gemkit_kernels.fp8.op import fp8_dequantise, fp8_quantise
from gemkit_kernels.fp8.pytorch import fp8_dequantise_pytorch, fp8_quantise_pytorch
from gemkit_kernels.fp8.reference import fp8_dequantise_reference, fp8_quantise_reference
from gemkit_kernels.timing import Call, Case, Inputs

BYTES = 4 * 10**9
"""Of activations in bf16."""


def example(rows: int, width: int, dtype: torch.dtype, device: str, seed: int) -> Tensor:
    """Rows of very different sizes, with zeros, NaN and infinities in some."""
    generator = torch.Generator().manual_seed(seed)
    exponents = torch.randint(-12, 12, (rows, 1), generator=generator)
    x = torch.randn(rows, width, generator=generator) * 2.0**exponents
    if rows > 4:
        x[1], x[2, 0], x[3, -1], x[4, 0] = 0.0, torch.nan, torch.inf, -torch.inf
    return x.to(device, dtype)


def errors_of(rows: int, width: int, dtype: torch.dtype, tiled: bool, device: str, seed: int) -> dict[str, float]:
    """Relative errors against the definition, which there is only one right answer to: 0."""
    x = example(rows, width, dtype, device, seed)
    values, scales = fp8_quantise(x, tiled)
    back = fp8_dequantise(values, scales, dtype)
    exact_values, exact_scales = fp8_quantise_reference(x.cpu(), tiled)
    exact = fp8_dequantise_reference(exact_values, exact_scales, dtype)
    lost = exact.isnan()
    return {
        "scales": relative_error(scales, exact_scales),
        "values": relative_error(values.float().cpu().masked_fill(lost, 0.0), exact_values.float().nan_to_num(0.0)),
        "numbers again": relative_error(back.cpu().masked_fill(lost, 0.0), exact.nan_to_num(0.0)),
        "what is lost": float((back.cpu().isnan() != lost).sum()),
    }


def checks() -> Iterator[tuple[str, torch.dtype, dict[str, float]]]:
    """Odd and even widths, rows and tiles."""
    for dtype in (torch.float32, torch.bfloat16):
        for rows, width in ((33, 31), (100, 256), (31, 1025), (5, 16384)):
            for tiled in (False, True):
                name = f"{rows} rows of {width}{', tiles' if tiled else ''}"
                yield name, dtype, errors_of(rows, width, dtype, tiled, "cuda", seed=rows)


def cases() -> list[Case]:
    """4 GB of bf16, there and back."""
    return [_case(width, tiled, back) for width in (1024, 256) for tiled in (False, True) for back in (False, True)]


def _case(width: int, tiled: bool, back: bool) -> Case:
    rows = BYTES // (2 * width)
    scales = rows * width // 1024 if tiled else rows

    def inputs(seed: int) -> Inputs:
        x = torch.empty(rows, width, dtype=torch.bfloat16, device="cuda").normal_()
        return dict(zip(("values", "scales"), fp8_quantise(x, tiled), strict=True)) if back else {"x": x}

    def triton(x: Inputs) -> Any:
        return fp8_dequantise(**x, dtype=torch.bfloat16) if back else fp8_quantise(**x, tiled=tiled)

    def eager(x: Inputs) -> Any:
        return fp8_dequantise_pytorch(**x, dtype=torch.bfloat16) if back else fp8_quantise_pytorch(**x, tiled=tiled)

    name = f"{'de' if back else ''}quantise, {rows} rows of {width}{', tiles' if tiled else ''}"
    calls: dict[str, Call] = {"triton": triton, "eager": eager}
    if width == 1024:
        calls["compile"] = torch.compile(eager, dynamic=False)
    forward_bytes = 3 * rows * width + 4 * scales
    return Case("fp8", name, inputs, calls, forward_bytes, forward_flop=rows * width, sets=1)
