"""Jagged rows in regular slots and back, for the PyTorch paths."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


class Slots(NamedTuple):
    """How T rows lie in K segments of C slots, each filled from its first slot on.

    Attributes:
        gather: (K * C,) int64, the row in each slot; another row of the segment in empty ones.
        valid: (K, C) bool, False in empty slots.
        position: (T,) int64, each row's slot in the flattened (K * C).
    """

    gather: Tensor
    valid: Tensor
    position: Tensor


def slots(offsets: Tensor, size: int, total: int) -> Slots:
    """Slots for segments of at most `size` rows.

    Shape: offsets (K+1,), from 0 to T = `total`.
    """
    offsets = offsets.long()
    starts, lengths = offsets[:-1], offsets.diff()
    slot = torch.arange(size, device=offsets.device)
    segments = torch.arange(starts.shape[0], device=offsets.device)
    valid = slot < lengths.unsqueeze(1)
    # A row of the same segment: a weight of 0 does not silence another's NaN.
    last = (offsets[1:] - 1).clamp(min=0)
    gather = torch.minimum(starts.unsqueeze(1) + slot, last.unsqueeze(1)).view(-1)
    shift = torch.repeat_interleave(segments * size - starts, lengths, output_size=total)
    return Slots(gather, valid, torch.arange(total, device=offsets.device) + shift)


def pad(rows: Tensor, where: Slots) -> Tensor:
    """Rows into their slots. Empty slots hold some other row; what comes back to them as gradient is dropped.

    Shape: (T, ...) -> (K, C, ...).
    """
    if rows.shape[0] == 0:
        return rows.new_zeros(*where.valid.shape, *rows.shape[1:])
    padded: Tensor = _Move.apply(rows, where.gather, where.position)  # type: ignore[no-untyped-call]
    return padded.view(*where.valid.shape, *rows.shape[1:])


def unpad(padded: Tensor, where: Slots) -> Tensor:
    """The inverse of `pad`. Shape: (K, C, ...) -> (T, ...)."""
    rows: Tensor = _Rows.apply(padded.flatten(0, 1), where.position)  # type: ignore[no-untyped-call]
    return rows


class _Move(torch.autograd.Function):
    """`index_select`, whose gradient is read from where each row went: one slot each, so nothing is added up."""

    @staticmethod
    def forward(ctx: Any, rows: Tensor, there: Tensor, back: Tensor) -> Tensor:
        ctx.back = back
        return rows.index_select(0, there)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        return gradients[0].index_select(0, ctx.back), None, None


class _Rows(torch.autograd.Function):
    """`index_select`, whose gradient is copied to where each row came from: nothing is added up."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, position: Tensor) -> Tensor:
        ctx.position, ctx.shape = position, slots.shape
        return slots.index_select(0, position)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].new_zeros(ctx.shape).index_copy_(0, ctx.position, gradients[0]), None
