"""Segments of jagged rows in splits of a fixed size: how work on segments of any length spreads evenly.

    size 4      segment 0: 6 rows   segment 1: 3 rows   segment 2: 5 rows
    splits      [0-3] [4-5]         [6-8] []            [9-12] [13]
    segment's first split               offset // size + segment:  0, 2, 4

A segment of n rows has room for at least ceil(n / size) splits, and there are T // size + U of them whatever the
lengths: nobody has to ask the device how many. What a segment does not need stays empty.
"""

from __future__ import annotations

import torch
from torch import Tensor

from gemkit_kernels.packing import Slots


def num_splits(total: int, segments: int, size: int) -> int:
    """Splits of `total` rows in `segments` segments."""
    return total // size + segments


def padded_splits(offsets: Tensor, size: int, total: int) -> tuple[Slots, Tensor]:
    """Slots for the splits, and each split's segment.

    An empty slot holds another row of its own segment, unless that is empty, so that what is masked is not another
    segment's: 0 * NaN is NaN.

    Shape: offsets (U+1,), from 0 to T = `total` -> Slots of (K, C), (K,) int64; K = T // C + U, C = `size`.
    """
    offsets = offsets.long()
    starts, ends = offsets[:-1], offsets[1:]
    segments = starts.shape[0]
    first = starts.div(size, rounding_mode="floor") + torch.arange(segments, device=offsets.device)
    split = torch.arange(num_splits(total, segments, size), device=offsets.device)
    owner = torch.searchsorted(first, split, right=True) - 1
    row = (starts.index_select(0, owner) + (split - first.index_select(0, owner)) * size).unsqueeze(1)
    row = row + torch.arange(size, device=offsets.device)
    end = ends.index_select(0, owner).unsqueeze(1)
    shift = torch.repeat_interleave(first * size - starts, offsets.diff(), output_size=total)
    position = torch.arange(total, device=offsets.device) + shift
    return Slots(torch.minimum(row, end - 1).clamp(min=0).view(-1), row < end, position), owner
