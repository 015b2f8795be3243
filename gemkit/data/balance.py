"""Balanced batches: which rank takes which examples of a global batch, so that all have as many events to read.

Ranks wait for the one that has most to do. Histories differ in length by orders of magnitude, so contiguous shares of
a batch differ too. Here a batch is cut into small pieces; the piece with most events goes first, each to the rank that
has least so far. Which examples are in the batch does not change, and every rank has as many as without balancing.

Differs: GEM's "base batch shuffling" sorts sub-batches by total length and pairs heavy with light; giving each to the
lightest rank does that for any number of ranks.
"""

from __future__ import annotations

import heapq

import numpy as np

PIECES = 128
"""About how many pieces a rank gets at most: more cost time and gain little."""


def deal(lengths: np.ndarray, num_ranks: int, keys: np.ndarray | None = None) -> list[np.ndarray]:
    """Divides a batch of B examples among ranks.

    Neighbours with the same key share a history: its events count once, and they stay on one rank if one has room for
    all of them. They are parted where none has, since every rank gets B / num_ranks examples, rounded up or down.

    Args:
        lengths: (B,) events of each example's history.
        keys: (B,) whose history it is; None: everybody's own.

    Returns:
        For each rank the positions of its examples, ascending.
    """
    size = len(lengths)
    first = np.ones(size, bool)
    if keys is not None:
        first[1:] = keys[1:] != keys[:-1]
    costs = np.where(first, lengths, 0)
    rank_of = np.empty(size, np.int64)
    room = [size // num_ranks + (rank < size % num_ranks) for rank in range(num_ranks)]
    ranks = [(0, rank) for rank in range(num_ranks) if room[rank]]  # a heap: events so far, rank

    starts = piece_starts(first, num_ranks)
    ends = np.append(starts[1:], size)
    events = np.add.reduceat(costs, starts) if size else starts
    for piece in np.lexsort((starts - ends, -events)).tolist():  # most events first, then most examples
        at, end = int(starts[piece]), int(ends[piece])
        too_small = []
        while ranks and room[ranks[0][1]] < end - at:
            too_small.append(heapq.heappop(ranks))
        while at < end:  # once, unless no rank has room for the whole piece
            total, rank = heapq.heappop(ranks) if ranks else too_small.pop(0)
            taken = min(room[rank], end - at)
            rank_of[at : at + taken] = rank
            room[rank] -= taken
            if room[rank]:
                again = 0 if first[at] else int(lengths[at])  # a parted history counts on both ranks
                heapq.heappush(ranks, (total + int(costs[at : at + taken].sum()) + again, rank))
            at += taken
        for entry in too_small:
            heapq.heappush(ranks, entry)
    return [np.flatnonzero(rank_of == rank) for rank in range(num_ranks)]


def piece_starts(first: np.ndarray, num_ranks: int) -> np.ndarray:
    """Where the pieces of a batch begin: one or more whole groups each, of a few examples if the batch is large.

    Args:
        first: (B,) bool, whether a group of examples begins here.
    """
    groups = np.flatnonzero(first)
    size = -(-len(first) // (num_ranks * PIECES))
    slots = groups // max(1, size)
    starts: np.ndarray = groups[np.concatenate(([True], slots[1:] != slots[:-1]))] if len(groups) else groups
    return starts
