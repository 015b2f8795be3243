"""How far an operation is from its reference in float64, outputs and gradients."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

LIMITS = {torch.float32: 2e-5, torch.float16: 4e-3, torch.bfloat16: 2e-2}
"""Largest relative error, by type."""

Operation = Callable[[dict[str, Tensor]], tuple[Tensor, ...]]


def relative_error(found: Tensor, expected: Tensor) -> float:
    """`||found - expected|| / ||expected||`; infinite if anything found is not finite."""
    found, expected = found.detach().double().cpu(), expected.detach().double().cpu()
    if found.shape != expected.shape:
        raise ValueError(f"shape {tuple(found.shape)}, expected {tuple(expected.shape)}")
    if not torch.isfinite(found).all():
        return torch.inf
    return float((found - expected).norm() / expected.norm().clamp(min=1e-12)) if expected.numel() else 0.0


def errors(operation: Operation, reference: Operation, inputs: dict[str, Tensor], seed: int = 0) -> dict[str, float]:
    """Relative errors of outputs `0`, `1`, ... and of the gradient of every input that wants one.

    The reference gets the same numbers in float64 on the CPU. Gradients of the outputs are drawn from `seed`.
    """
    exact = {
        name: (x.detach().double() if x.is_floating_point() else x.detach()).cpu().requires_grad_(x.requires_grad)
        for name, x in inputs.items()
    }
    expected = reference(exact)
    generator = torch.Generator().manual_seed(seed)
    found = operation(inputs)
    of = [x.to(y.dtype).cpu() for x, y in zip(expected, found, strict=True)]  # drawn in the operation's precision
    douts = [torch.randn(x.shape, generator=generator).to(x.dtype) for x in of]
    names = [name for name, x in inputs.items() if x.requires_grad]
    result = {str(i): relative_error(x, y) for i, (x, y) in enumerate(zip(found, expected, strict=True))}
    if names:
        gradients = torch.autograd.grad(
            [x for x in found if x.requires_grad],
            [inputs[n] for n in names],
            [d.to(x.device) for d, x in zip(douts, found, strict=True) if x.requires_grad],
        )
        exact_gradients = torch.autograd.grad(
            [x for x in expected if x.requires_grad],
            [exact[n] for n in names],
            [d.double() for d, x in zip(douts, expected, strict=True) if x.requires_grad],
        )
        for name, x, y in zip(names, gradients, exact_gradients, strict=True):
            result[f"gradient of {name}"] = relative_error(x, y)
    return result
