"""Several streams of events as one: event by event, counted from the newest of each."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from gemkit.data.arrays import offsets_of


class Alignment(NamedTuple):
    """Which events stand side by side.

        stream a      . a1 a2 a3
        stream b      . .  .  b1        T' = 3 vectors: (a1, -), (a2, -), (a3, b1)

    Attributes:
        gather: (T', S) int64, the event of each stream; 0 where it has none.
        present: (T', S) bool.
        offsets: (U+1,) int64, of the histories of T' vectors.
    """

    gather: Tensor
    present: Tensor
    offsets: Tensor


def align_streams(lengths: np.ndarray, stream: np.ndarray, num_streams: int) -> tuple[np.ndarray, Alignment]:
    """Puts the j-th newest events of all streams side by side.

    Args:
        lengths: (U,), events of each history; within a stream the oldest comes first.
        stream: (T,), the stream of each event.

    Returns:
        Lengths (U,) of the aligned histories, those of their longest streams; and the alignment.
    """
    history = np.repeat(np.arange(len(lengths)), lengths)
    group = history * num_streams + stream
    order = np.argsort(group, kind="stable")
    counts = np.bincount(group, minlength=len(lengths) * num_streams)
    ends = np.cumsum(counts)
    from_newest = ends[group[order]] - 1 - np.arange(len(order))
    aligned = counts.reshape(-1, num_streams).max(axis=1)
    offsets = offsets_of(aligned)
    row = offsets[history[order] + 1] - 1 - from_newest
    gather = np.zeros((offsets[-1], num_streams), dtype=np.int64)
    present = np.zeros((offsets[-1], num_streams), dtype=bool)
    gather[row, stream[order]] = order
    present[row, stream[order]] = True
    return aligned, Alignment(*(torch.from_numpy(a) for a in (gather, present, offsets)))
