"""Histories of about one length side by side: full attention without padding to the longest of the batch.

    lengths  3 9 2 8      16 slots are the least: [ . . 3 events | . . 9 | . . 2 | . . 8 ] is one bucket
    lengths  3 900 40 38  [ 3 ]  [ . 40 | . . 38 ]  [ 900 ] are three

A history's events stand at the end of its row, its CLS tokens after them, so that no distance depends on padding.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gemkit.nn.jagged import ChunkPlan, from_chunks, to_chunks

SHORTEST = 16
"""Slots of the narrowest bucket."""

RATIO = math.sqrt(0.5)
"""Shortest history of a bucket in units of its longest: finer buckets save little padding and cost more calls."""


class BucketPlan(NamedTuple):
    """How T events lie in buckets, whose slots stand one bucket after another.

    Attributes:
        slots: All M slots, as chunks of one slot.
        order: (U,) int64, the history of each row, one bucket after another.
        place: (U,) int64, the row of each history.
        shapes: Rows and slots of each bucket.
    """

    slots: ChunkPlan
    order: Tensor
    place: Tensor
    shapes: tuple[tuple[int, int], ...]


def bucket_plan(lengths: np.ndarray) -> BucketPlan:
    """Sorts histories by length and puts neighbours into one bucket, as wide as the longest of them.

    `torch.compile` makes one graph for each number of buckets.
    """
    lengths = np.asarray(lengths, dtype=np.int64)
    order = np.argsort(-lengths, kind="stable")
    falling = lengths[order]
    shapes, widths, start = [], np.empty_like(lengths), 0
    while start < len(order):
        width = max(int(falling[start]), SHORTEST)
        shortest = 0 if width == SHORTEST else width * RATIO
        end = int(np.searchsorted(-falling, -shortest, side="right"))
        shapes.append((end - start, width))
        widths[start:end] = width
        start = end
    shapes = shapes or [(0, SHORTEST)]
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    ends = np.cumsum(widths)  # a history ends where its row does
    place = np.argsort(order)
    position = np.arange(offsets[-1]) + np.repeat(ends[place] - offsets[1:], lengths)
    gather, valid = np.zeros(widths.sum(), dtype=np.int64), np.zeros(widths.sum(), dtype=bool)
    gather[position] = np.arange(offsets[-1])
    valid[position] = True
    owner = np.repeat(order, widths)
    arrays = (gather[:, None], valid[:, None], position, owner, widths[place])
    slots = ChunkPlan(*(torch.from_numpy(a) for a in arrays))
    return BucketPlan(slots, torch.from_numpy(order), torch.from_numpy(place), tuple(shapes))


def to_buckets(values: Tensor, cls: Tensor, plan: BucketPlan) -> list[Tensor]:
    """Rows of each bucket: padding, events, CLS tokens.

    Shape: (T, E), cls (U, S, E) -> (rows, slots + S, E) for each bucket.
    """
    parts = to_chunks(values, plan.slots).split([rows * slots for rows, slots in plan.shapes])
    of_rows = cls.index_select(0, plan.order).split([rows for rows, _ in plan.shapes])
    return [
        torch.cat([part.view(rows, slots, part.shape[-1]), own], dim=1)
        for part, own, (rows, slots) in zip(parts, of_rows, plan.shapes, strict=True)
    ]


def from_buckets(buckets: list[Tensor], plan: BucketPlan) -> tuple[Tensor, Tensor]:
    """The inverse of `to_buckets`. Shape: (rows, slots + S, E) for each bucket -> (T, E), cls (U, S, E)."""
    width = buckets[0].shape[-1]
    parts = [b[:, :slots].reshape(-1, width) for b, (_, slots) in zip(buckets, plan.shapes, strict=True)]
    own = [b[:, slots:] for b, (_, slots) in zip(buckets, plan.shapes, strict=True)]
    return from_chunks(torch.cat(parts), plan.slots), torch.cat(own).index_select(0, plan.place)


def valid_slots(plan: BucketPlan) -> list[Tensor]:
    """Which slots hold an event. Shape: (rows, slots) bool for each bucket."""
    parts = plan.slots.valid.view(-1).split([rows * slots for rows, slots in plan.shapes])
    return [part.view(shape) for part, shape in zip(parts, plan.shapes, strict=True)]
