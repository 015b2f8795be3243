"""`gdpa` in PyTorch: chunks of few rows side by side, two batched products."""

from __future__ import annotations

from torch import Tensor

from gemkit_kernels.gdpa.reference import ACTIVATIONS
from gemkit_kernels.packing import pad, unpad
from gemkit_kernels.splits import padded_splits

CHUNK = 16
"""Rows that share a copy of their history's keys and values: few, so that short histories waste little."""


def gdpa_pytorch(
    queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, num_heads: int, scale: float, activation: str
) -> Tensor:
    """Shape: as `gdpa`."""
    if queries.shape[0] == 0:
        return queries * 1.0
    where, owner = padded_splits(offsets, CHUNK, queries.shape[0])
    # An empty history's chunk holds rows of another one.
    empty = (offsets.diff() == 0).view(-1, 1, 1)

    def heads(x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], num_heads, -1).transpose(1, 2)

    key = heads(keys.masked_fill(empty, 0.0) * scale).index_select(0, owner)
    value = heads(values.masked_fill(empty, 0.0)).index_select(0, owner)
    mixed = ACTIVATIONS[activation](heads(pad(queries, where)) @ key.transpose(-1, -2)) @ value
    return unpad(mixed.transpose(1, 2).flatten(2), where)
