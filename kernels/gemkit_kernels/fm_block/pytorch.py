"""`fm_block` in PyTorch: two batched products and PyTorch's own LayerNorm."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gemkit_kernels.fm_block.reference import EPS


def autocast_type(x: Tensor) -> torch.dtype | None:
    """The type that autocast wants on x's device, if it is on."""
    kind = x.device.type
    # Not `is_autocast_available`, which torch.compile cannot look through in torch 2.11.
    if kind == "meta" or not torch.is_autocast_enabled(kind):
        return None
    return torch.get_autocast_dtype(kind)


def fm_block_pytorch(x: Tensor, y: Tensor, gain: Tensor, bias: Tensor) -> Tensor:
    """Shape: as `fm_block`."""
    # bmm with an expanded Y: `@` would copy the transposed x.
    compressed = torch.bmm((y if y.dim() == 3 else y.expand(x.shape[0], -1, -1)).to(x.dtype), x)
    products = torch.bmm(x, compressed.transpose(1, 2)).flatten(1)
    if gain.dtype != products.dtype and autocast_type(x) is None:
        gain, bias = gain.to(products.dtype), bias.to(products.dtype)
    return F.layer_norm(products, gain.shape, gain, bias, EPS)
