"""What `gdpa` is."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional as F

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {"gelu": F.gelu, "silu": F.silu}


def gdpa_reference(
    queries: Tensor, keys: Tensor, values: Tensor, offsets: Tensor, num_heads: int, scale: float, activation: str
) -> Tensor:
    """History by history and head by head, as `gdpa` describes it. Shape: as `gdpa`."""
    act = ACTIVATIONS[activation]
    head_dim = queries.shape[1] // num_heads
    histories = []
    for u, (start, end) in enumerate(zip(offsets[:-1].tolist(), offsets[1:].tolist(), strict=True)):
        heads = []
        for h in range(num_heads):
            part = slice(h * head_dim, (h + 1) * head_dim)
            scores = queries[start:end, part] @ keys[u, :, part].t() * scale
            heads.append(act(scores) @ values[u, :, part])
        histories.append(torch.cat(heads, dim=1))
    return torch.cat(histories) if histories else queries[:0]
