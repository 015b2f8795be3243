"""What `fm_block` is."""

from __future__ import annotations

import torch
from torch import Tensor

EPS = 1e-5
"""Added to the variance in LayerNorm."""


def fm_block_reference(x: Tensor, y: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Example by example, by way of all products of tokens: `(X X^T) Y^T`.

    Shape: as `fm_block`.
    """
    rows = []
    for i in range(x.shape[0]):
        gram = x[i] @ x[i].t()
        products = (gram @ (y if y.dim() == 2 else y[i]).t()).flatten()
        centred = products - products.mean()
        rows.append(centred / (centred.square().mean() + EPS).sqrt() * gain + bias)
    return torch.stack(rows) if rows else x.new_zeros(0, gain.shape[0])
