"""`fm_block` in PyTorch: two batched products and PyTorch's own LayerNorm."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gemkit_kernels.fm_block.reference import EPS


def fm_block_pytorch(x: Tensor, y: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Shape: as `fm_block`."""
    # bmm with an expanded Y: `@` would copy the transposed x.
    compressed = torch.bmm((y if y.dim() == 3 else y.expand(x.shape[0], -1, -1)).to(x.dtype), x)
    products = torch.bmm(x, compressed.transpose(1, 2)).flatten(1)
    return F.layer_norm(products, gain.shape, gain.to(products.dtype), bias.to(products.dtype), EPS)
