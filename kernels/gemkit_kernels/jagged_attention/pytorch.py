"""`jagged_attention` in PyTorch: histories or parts of them side by side, one call of PyTorch's own attention."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from gemkit_kernels.packing import pad, slots, unpad
from gemkit_kernels.rotary import complex_turns, rotate


def jagged_attention_pytorch(
    qkv: Tensor,
    offsets: Tensor,
    longest: int,
    num_heads: int,
    causal: bool = False,
    window: int = 0,
    both_sides: bool = False,
    num_global: int = 0,
    rotary: bool = True,
) -> Tensor:
    """Shape: as `jagged_attention`."""
    total, dim = qkv.shape[0], qkv.shape[1] // 3
    head_dim = dim // num_heads
    if total == 0:
        return qkv[:, :dim]
    narrow = 0 < window < longest and num_global == 0
    size = -(-longest // window) * window if narrow else longest
    where = slots(offsets, size, total)
    # Empty slots are not seen, but 0 * NaN would be: they hold zeros.
    rows = pad(qkv, where).masked_fill(~where.valid.unsqueeze(-1), 0.0)
    qk, v = rows.split([2 * dim, dim], dim=-1)
    qk = qk.reshape(-1, size, 2 * num_heads, head_dim)
    if rotary:
        qk = rotate(qk, complex_turns(size, head_dim // 2, qk.device, qk.dtype))
    # (U, H, L, E) each
    q, k = qk.unflatten(2, (2, num_heads)).permute(2, 0, 3, 1, 4)
    v = v.reshape(-1, size, num_heads, head_dim).transpose(1, 2)
    if narrow:
        mixed = _windows(q, k, v, where.valid, window, both_sides)
    else:
        mixed = F.scaled_dot_product_attention(
            q, k, v, attn_mask=_visible(where.valid, causal, window, both_sides, num_global).unsqueeze(1)
        )
    return unpad(mixed.transpose(1, 2).reshape(-1, size, dim), where)


def _visible(valid: Tensor, causal: bool, window: int, both_sides: bool, num_global: int) -> Tensor:
    """What the slots of each history see. Shape: (U, L) -> (U or 1, L or 1, L)."""
    slot = torch.arange(valid.shape[1], device=valid.device)
    distance = slot.unsqueeze(1) - slot
    if not causal and not window:
        # Softmax needs a slot in every row: an empty history sees what stands in its slots.
        return (valid | ~valid.any(-1, keepdim=True)).unsqueeze(1)
    near = distance >= 0 if causal or not both_sides else distance > -window
    if window:
        near = near & (distance < window)
    is_global = slot >= valid.sum(-1, keepdim=True) - num_global
    seen = near | is_global.unsqueeze(1) | is_global.unsqueeze(2)
    return (seen & valid.unsqueeze(1)) | (distance == 0)


def _windows(q: Tensor, k: Tensor, v: Tensor, valid: Tensor, window: int, both_sides: bool) -> Tensor:
    """Chunks as wide as the window: what their rows see is in the same chunk, the one before and the one after.

    Shape: (U, H, L, E) each, valid (U, L) -> (U, H, L, E).
    """
    near = (-1, 0, 1) if both_sides else (-1, 0)
    q, k, v = (x.unflatten(2, (-1, window)).transpose(1, 2) for x in (q, k, v))
    k, v = (torch.cat([_shifted(x, by) for by in near], dim=3) for x in (k, v))
    holds = valid.unflatten(1, (-1, window))
    holds = torch.cat([_shifted(holds, by) for by in near], dim=2)
    slot = torch.arange(k.shape[3], device=k.device)
    distance = slot[window : 2 * window, None] - slot
    seen = (distance < window) & (distance > (-window if both_sides else -1))
    mask = (holds.unsqueeze(2) & seen) | (distance == 0)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask.unsqueeze(2))
    return mixed.transpose(1, 2).flatten(2, 3)


def _shifted(x: Tensor, by: int) -> Tensor:
    """The chunk `by` places further for each chunk, zeros past the ends. Shape: (U, n, ...) -> the same."""
    if by == 0:
        return x
    none = torch.zeros_like(x[:, :1])
    return torch.cat([none, x[:, :-1]] if by < 0 else [x[:, 1:], none], dim=1)
