"""Weights of an example's own surface in a batched product, without a look at the batch from the host."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

BLOCK = 32
"""Examples in a block: more waste slots on rare surfaces, fewer read the weights more often."""


class SurfaceBlocks(NamedTuple):
    """The examples of a batch in blocks that hold one surface each.

        surface  [a b a a b]              B = 5 examples, S = 2 surfaces
        blocks   [a a | a . | b b | . .]  blocks of 2; owner [a a b b]

    Their number depends on B and S only, so that nothing waits for the device; some are empty. One matrix for each
    block does the work of one for each example: cost and memory do not grow with the number of surfaces.

    Attributes:
        slot: (B,) int64, the place of each example in the blocks.
        owner: (blocks,) int64, the surface of each block.
    """

    slot: Tensor
    owner: Tensor

    def pack(self, x: Tensor) -> Tensor:
        """Examples to blocks, with zeros in the free slots. Shape: (B, ...) -> (blocks, BLOCK, ...)."""
        slots = self.owner.shape[0] * BLOCK
        packed = x.new_zeros(slots, *x.shape[1:]).index_copy(0, self.slot, x)
        return packed.view(self.owner.shape[0], BLOCK, *x.shape[1:])

    def unpack(self, blocks: Tensor) -> Tensor:
        """Blocks to examples. Shape: (blocks, BLOCK, ...) -> (B, ...)."""
        return blocks.flatten(0, 1).index_select(0, self.slot)


def surface_blocks(surface: Tensor, num_surfaces: int) -> SurfaceBlocks:
    """The blocks of a batch. Shape: (B,) -> slot (B,), owner (blocks,)."""
    is_of = (surface.unsqueeze(1) == torch.arange(num_surfaces, device=surface.device)).long()
    rank = is_of.cumsum(0).gather(1, surface.unsqueeze(1)).squeeze(1) - 1
    blocks = (is_of.sum(0) + BLOCK - 1) // BLOCK
    ends = blocks.cumsum(0)
    most = (surface.shape[0] + num_surfaces * (BLOCK - 1)) // BLOCK
    owner = torch.searchsorted(ends, torch.arange(most, device=surface.device), right=True)
    first = (ends - blocks).index_select(0, surface)
    return SurfaceBlocks(first * BLOCK + rank, owner.clamp(max=num_surfaces - 1))
