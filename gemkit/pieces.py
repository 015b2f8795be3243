"""Tensors of which every process holds a piece, and how pieces of one layout become those of another."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, Protocol

import torch
from torch import Tensor


class Piece(NamedTuple):
    """A block of a tensor.

    Attributes:
        start: Its first index along each dimension.
        values: The block, as a view: writing to it changes the tensor.
    """

    start: tuple[int, ...]
    values: Tensor


class Pieces(NamedTuple):
    """What this process holds of a tensor.

    Attributes:
        shape: Of the whole tensor.
        pieces: The blocks that are here.
        saved_here: Whether this process writes them to a checkpoint: one of those that hold the same.
        replica, replicas: Of the processes that hold the same and divide the writing among them, which one this is, and
            how many there are.
    """

    shape: tuple[int, ...]
    pieces: tuple[Piece, ...]
    saved_here: bool = True
    replica: int = 0
    replicas: int = 1

    @property
    def whole(self) -> Tensor | None:
        """The tensor, if all of it is here in one block."""
        if len(self.pieces) == 1 and tuple(self.pieces[0].values.shape) == self.shape:
            return self.pieces[0].values
        return None

    @property
    def num_bytes(self) -> int:
        """Of the blocks that are here."""
        return sum(p.values.numel() * p.values.element_size() for p in self.pieces)


class Source(Protocol):
    """Where tensors are read from: a checkpoint."""

    def shape(self, name: str) -> tuple[int, ...]:
        """Of the whole tensor."""

    def block(self, name: str, start: Sequence[int], size: Sequence[int]) -> Tensor:
        """A block of it."""


def pieces_of(tensor: Tensor, first: bool = True) -> Pieces:
    """A tensor that all processes hold alike, or a DTensor.

    Args:
        first: Whether this process is the one that saves what all hold alike.
    """
    from torch.distributed.tensor import DTensor, Replicate

    if not isinstance(tensor, DTensor):
        return Pieces(tuple(tensor.shape), (Piece((0,) * tensor.dim(), tensor.detach()),), first)
    from torch.distributed.tensor._utils import compute_local_shape_and_global_offset

    mesh, placements = tensor.device_mesh, tensor.placements
    _, start = compute_local_shape_and_global_offset(tensor.shape, mesh, placements)
    coordinates = mesh.get_coordinate()
    assert coordinates is not None
    replica, replicas = 0, 1
    for at, size, placement in zip(coordinates, mesh.shape, placements, strict=True):
        if isinstance(placement, Replicate):
            replica, replicas = replica * size + at, replicas * size
    local = tensor.to_local().detach()
    held = (Piece(tuple(start), local),) if local.numel() else ()
    return Pieces(tuple(tensor.shape), held, replica=replica, replicas=replicas)


def written_here(tensors: Mapping[str, Pieces]) -> set[str]:
    """Which of these tensors this process writes to a checkpoint.

    Replicas write about as much each: the largest tensor first, each goes to the one that has least so far. All of them
    come to the same answer, from names and shapes.
    """
    found = {name for name, held in tensors.items() if held.saved_here and held.replicas == 1}
    loads: dict[int, list[int]] = {}
    for size, name in sorted((-math.prod(t.shape), name) for name, t in tensors.items() if t.replicas > 1):
        load = loads.setdefault(tensors[name].replicas, [0] * tensors[name].replicas)
        writer = load.index(min(load))
        load[writer] -= size
        if writer == tensors[name].replica:
            found.add(name)
    return found


@torch.no_grad()
def fill(pieces: Pieces, source: Source, name: str) -> None:
    """Copies what this process holds of a tensor from where it is stored, in whatever layout.

    Statistics of rows may be stored with a column for each part of the rows, as column-wise sharding keeps them; then
    a row's is the mean over its columns (`(rows, k)` to `(rows,)`), and the same for all of them the other way round.
    """
    stored = source.shape(name)
    for start, values in pieces.pieces:
        if stored == pieces.shape:
            values.copy_(source.block(name, start, values.shape))
        else:
            others = stored[1:]
            rows = source.block(name, (start[0], *(0 for _ in others)), (values.shape[0], *others))
            rows = rows.mean(1) if others else rows
            values.copy_(rows.unsqueeze(1).expand_as(values) if values.dim() > 1 else rows)


def overlap(
    start: Sequence[int], size: Sequence[int], other: Sequence[int], other_size: Sequence[int]
) -> tuple[tuple[slice, ...], tuple[slice, ...]] | None:
    """The common part of two blocks, as slices of either; None if there is none."""
    low = [max(a, b) for a, b in zip(start, other, strict=True)]
    high = [min(a + n, b + m) for a, n, b, m in zip(start, size, other, other_size, strict=True)]
    if any(h <= lo for lo, h in zip(low, high, strict=True)):
        return None
    here = tuple(slice(lo - a, h - a) for lo, h, a in zip(low, high, start, strict=True))
    there = tuple(slice(lo - b, h - b) for lo, h, b in zip(low, high, other, strict=True))
    return here, there
