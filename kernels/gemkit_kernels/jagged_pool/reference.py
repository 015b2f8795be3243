"""What `jagged_pool` is."""

from __future__ import annotations

import torch
from torch import Tensor


def jagged_pool_reference(
    queries: Tensor, keys: Tensor, values: Tensor | None, offsets: Tensor, num_heads: int, scale: float
) -> Tensor:
    """History by history and head by head, as `jagged_pool` describes it. Shape: as `jagged_pool`."""
    values = keys if values is None else values
    segments, dim = offsets.shape[0] - 1, keys.shape[1]
    head_dim = dim // num_heads
    pooled = []
    for u, (start, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        own = queries[u] if queries.dim() == 3 else queries
        if start == end:
            pooled.append(torch.zeros_like(own))
            continue
        heads = []
        for h in range(num_heads):
            part = slice(h * head_dim, (h + 1) * head_dim)
            weights = (own[:, part] @ keys[start:end, part].t() * scale).softmax(-1)
            heads.append(weights @ values[start:end, part])
        pooled.append(torch.cat(heads, dim=1))
    return torch.stack(pooled) if segments else keys.new_zeros(0, queries.shape[-2], dim)
