"""Jagged histories: rows of different lengths, back to back, without padding.

    offsets  0        3     5            9
    values   [a b c | d e | f g h i]

A `ChunkPlan` cuts every row into chunks of a fixed size for the operations that want a regular shape
(attention inside a chunk, a matrix per row). It is made on the host, from lengths, once per batch.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

CHUNK = 16
"""Slots of the chunks that every batch's layout holds: small, so that short histories waste little."""


class ChunkPlan(NamedTuple):
    """How T rows lie in K chunks of C slots.

    Attributes:
        gather: (K, C) int64, the row of `values` in each slot; 0 in empty slots.
        valid: (K, C) bool, False in empty slots.
        position: (T,) int64, each row's slot in the flattened (K * C).
        owner: (K,) int64, the history of each chunk.
        counts: (U,) int64, chunks of each history.
    """

    gather: Tensor
    valid: Tensor
    position: Tensor
    owner: Tensor
    counts: Tensor


def chunk_plan(lengths: np.ndarray, size: int, align: str = "newest") -> ChunkPlan:
    """Cuts histories into chunks of `size` slots.

    Args:
        align: ``newest`` keeps the newest chunk full and leaves the oldest short; ``oldest`` the reverse.
            Short chunks are filled from the end that touches their neighbour.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    counts = -(-lengths // size)
    padding = counts * size - lengths
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    slot_offsets = np.concatenate(([0], np.cumsum(counts * size)))
    shift = slot_offsets[:-1] - offsets[:-1] + (padding if align == "newest" else 0)
    rows = np.arange(offsets[-1])
    position = rows + np.repeat(shift, lengths)
    gather = np.zeros(slot_offsets[-1], dtype=np.int64)
    valid = np.zeros(slot_offsets[-1], dtype=bool)
    gather[position] = rows
    valid[position] = True
    owner = np.repeat(np.arange(len(lengths)), counts)
    arrays = (gather.reshape(-1, size), valid.reshape(-1, size), position, owner, counts)
    return ChunkPlan(*(torch.from_numpy(a) for a in arrays))


def to_chunks(values: Tensor, plan: ChunkPlan) -> Tensor:
    """Rows into their slots; empty slots hold some other row, to be masked by `plan.valid`.

    What comes back to an empty slot as gradient is dropped.

    Shape: (T, D) -> (K, C, D).
    """
    if values.shape[0] == 0:  # every history is empty: there is no row to stand in for the empty slots
        return values.new_zeros(*plan.gather.shape, values.shape[-1])
    slots: Tensor = _ToChunks.apply(values, plan)  # type: ignore[no-untyped-call]
    return slots.view(*plan.gather.shape, -1)


def from_chunks(chunks: Tensor, plan: ChunkPlan) -> Tensor:
    """Slots back into rows. Shape: (K, C, D) -> (T, D)."""
    rows: Tensor = _FromChunks.apply(chunks.reshape(-1, chunks.shape[-1]), plan)  # type: ignore[no-untyped-call]
    return rows


class _ToChunks(torch.autograd.Function):
    """The rows of all slots. Each row has one slot, so its gradient is read from there, not added up."""

    @staticmethod
    def forward(ctx: Any, values: Tensor, plan: ChunkPlan) -> Tensor:
        ctx.position = plan.position
        return values.index_select(0, plan.gather.view(-1))

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0].index_select(0, ctx.position), None


class _FromChunks(torch.autograd.Function):
    """The slots of all rows."""

    @staticmethod
    def forward(ctx: Any, slots: Tensor, plan: ChunkPlan) -> Tensor:
        ctx.position, ctx.num_slots = plan.position, slots.shape[0]
        return slots.index_select(0, plan.position)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        slots = gradients[0].new_zeros(ctx.num_slots, gradients[0].shape[1])
        return slots.index_copy_(0, ctx.position, gradients[0]), None


def row_index(offsets: Tensor, total: int) -> Tensor:
    """The history of every event. Shape: (U+1,) -> (T,), with T = `total` known to the host."""
    histories = torch.arange(offsets.shape[0] - 1, device=offsets.device)
    return torch.repeat_interleave(histories, offsets.diff(), output_size=total)


def segment_sum(values: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Sums of rows by segment; zero for an empty one. Shape: (T, ...), (T,) -> (num_segments, ...)."""
    return values.new_zeros(num_segments, *values.shape[1:]).index_add(0, index, values)


def segment_mean(values: Tensor, offsets: Tensor) -> Tensor:
    """Means of jagged rows; zero for an empty one. Shape: (T, D), (U+1,) -> (U, D)."""
    sums = segment_sum(values, row_index(offsets, values.shape[0]), offsets.shape[0] - 1)
    return sums / offsets.diff().clamp(min=1).unsqueeze(-1).to(values.dtype)


def newest(values: Tensor, offsets: Tensor, count: int) -> Tensor:
    """The `count` newest rows of each history, newest first; zeros where it is shorter.

    Shape: (T, D), (U+1,) -> (U, count, D).
    """
    if values.shape[0] == 0:
        return values.new_zeros(offsets.shape[0] - 1, count, values.shape[1])
    index = offsets[1:, None] - 1 - torch.arange(count, device=offsets.device)
    missing = index < offsets[:-1, None]
    rows = values.index_select(0, index.clamp(min=0).view(-1)).view(-1, count, values.shape[1])
    return rows.masked_fill(missing.unsqueeze(-1), 0.0)


def jagged_matmul(values: Tensor, weights: Tensor, plan: ChunkPlan) -> Tensor:
    """Every event times its own history's matrix.

    Shape: values (T, D), weights (U, D, E) -> (T, E).
    """
    return from_chunks(torch.bmm(to_chunks(values, plan), weights.index_select(0, plan.owner)), plan)
