"""`jagged_pool` in PyTorch: softmax over a history in two steps, chunk by chunk and then over its chunks."""

from __future__ import annotations

import torch
from torch import Tensor

from gemkit_kernels.packing import pad
from gemkit_kernels.splits import padded_splits

CHUNK = 16
"""Rows of a chunk: few, so that short histories waste little."""


def jagged_pool_pytorch(
    queries: Tensor, keys: Tensor, values: Tensor | None, offsets: Tensor, num_heads: int, scale: float
) -> Tensor:
    """Shape: as `jagged_pool`."""
    segments, (total, dim) = offsets.shape[0] - 1, keys.shape
    if total == 0:
        nothing = sum(x[..., :0].sum() for x in (queries, keys, values) if x is not None)  # has all gradients
        return nothing + queries.new_zeros(segments, queries.shape[-2], dim)
    queries = queries * scale
    where, owner = padded_splits(offsets, CHUNK, total)
    empty = (offsets.diff() == 0).view(-1, 1, 1, 1)

    def heads(x: Tensor) -> Tensor:
        return x.view(*x.shape[:-1], num_heads, -1).transpose(-2, -3)

    key = heads(pad(keys, where))
    value = key if values is None else heads(pad(values, where))
    if queries.dim() == 3:
        # An empty history's chunk holds rows of another one.
        query = heads(queries.masked_fill(empty.view(-1, 1, 1), 0.0)).index_select(0, owner)
    else:
        query = heads(queries)
    scores = (query @ key.transpose(-1, -2)).masked_fill(~where.valid[:, None, None], -torch.inf)
    peak = scores.new_full((segments, *scores.shape[1:3]), torch.finfo(scores.dtype).min)
    highest = scores.detach().amax(-1)
    peak = peak.scatter_reduce(0, owner.view(-1, 1, 1).expand_as(highest), highest, "amax")
    weights = (scores - peak.index_select(0, owner).unsqueeze(-1)).exp()

    def add(x: Tensor) -> Tensor:
        return x.new_zeros(segments, *x.shape[1:]).index_add(0, owner, x)

    total_weight = add(weights.sum(-1, keepdim=True)).masked_fill(empty, 1.0)
    pooled = add(weights @ value).masked_fill(empty, 0.0) / total_weight
    return pooled.transpose(1, 2).flatten(2)
