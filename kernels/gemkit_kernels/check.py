"""Checks of arguments, in the words of the caller."""

from __future__ import annotations

import torch
from torch import Tensor

KINDS = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def shape(op: str, name: str, tensor: Tensor, expected: tuple[int | None, ...]) -> None:
    """
    Raises:
        ValueError: `tensor` has another shape; None in `expected` is any size.
    """
    sizes = tuple(tensor.shape)
    if len(sizes) != len(expected) or any(e is not None and e != s for s, e in zip(sizes, expected, strict=True)):
        wanted = ", ".join("any" if e is None else str(e) for e in expected)
        raise ValueError(f"{op}: {name} has shape {sizes}, expected ({wanted})")


def offsets(op: str, name: str, tensor: Tensor) -> None:
    """
    Raises:
        ValueError: Not a vector of at least one integer. Its values are not looked at: that would wait for the device.
    """
    if tensor.dim() != 1 or tensor.shape[0] < 1 or tensor.dtype not in (torch.int32, torch.int64):
        raise ValueError(f"{op}: {name} has shape {tuple(tensor.shape)} and {tensor.dtype}, expected int32 (K + 1,)")


def kind(op: str, name: str, tensor: Tensor) -> None:
    """
    Raises:
        ValueError: Not a floating-point type that the operations take.
    """
    if tensor.dtype not in KINDS:
        raise ValueError(f"{op}: {name} is {tensor.dtype}, expected {', '.join(str(k)[6:] for k in KINDS)}")


def divides(op: str, name: str, number: int, whole: int) -> int:
    """The quotient.

    Raises:
        ValueError: `number` does not divide `whole`.
    """
    if number < 1 or whole % number:
        raise ValueError(f"{op}: {name} = {number} does not divide {whole}")
    return whole // number
