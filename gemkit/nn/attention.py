"""Multi-head self-attention with rotary positions, over many short sequences at once."""

from __future__ import annotations

import math
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

SHORT = 64
"""Longest sequence for which a CPU is better off with the score matrix kept than with it recomputed."""


class SelfAttention(nn.Module):
    """Multi-head self-attention over the second-last axis, with rotary positions.

    Args:
        dim: D, divisible by `num_heads`; the head width must be even.
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """
        Args:
            valid: (K, L) bool; slots that may be attended to.

        Shape: (K, L, D) -> (K, L, D). Rows of an all-invalid sequence are finite and meaningless.
        """
        # A sequence without a single valid slot would make softmax divide by zero: let it see itself.
        out: Tensor = self.out(attention(self.qkv(x), valid | ~valid.any(-1, keepdim=True), self.num_heads))
        return out


def attention(qkv: Tensor, valid: Tensor, num_heads: int) -> Tensor:
    """`softmax(R(q) R(k)^T / sqrt(E)) v` in each head, R being the rotary embedding.

    A CPU in full precision takes `ShortAttention` where sequences are short, else PyTorch's fused attention.

    Args:
        qkv: Queries, keys and values side by side.
        valid: (K, L) bool, slots that may be attended to; at least one in each sequence.

    Shape: (K, L, 3 D) -> (K, L, D).
    """
    count, length, width = qkv.shape
    dim = width // 3
    turn = turns(length, dim // num_heads // 2, qkv.device)
    if qkv.device.type == "cpu" and qkv.dtype in (torch.float32, torch.float64) and 0 < length <= SHORT and count:
        return cast(Tensor, ShortAttention.apply(qkv, valid, turn, num_heads))  # type: ignore[no-untyped-call]
    qk, v = torch.split(qkv, [2 * dim, dim], dim=-1)
    head_dim = dim // num_heads  # not -1: without any event there are no sequences, and -1 would be ambiguous
    qk = rotate(qk.reshape(count, length, 2 * num_heads, head_dim), turn)
    q, k = qk.view(count, length, 2, num_heads, head_dim).permute(2, 0, 3, 1, 4)
    v = v.view(count, length, num_heads, head_dim).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=valid[:, None, None, :])
    return mixed.transpose(1, 2).reshape(count, length, dim)


def turns(length: int, pairs: int, device: torch.device, base: float = 10000.0) -> Tensor:
    """The rotations of rotary position embedding, as complex numbers of absolute value 1.

    Paper: RoFormer (arXiv 2104.09864), equation 34: pair i at position p turns by p * base^(-i / pairs).

    Shape: (length, 1, pairs); the middle axis is the heads'.
    """
    frequency = base ** (-torch.arange(pairs, device=device, dtype=torch.float32) / pairs)
    angle = torch.arange(length, device=device, dtype=torch.float32).unsqueeze(-1) * frequency
    return torch.polar(torch.ones_like(angle), angle).unsqueeze(1)


def rotate(x: Tensor, turn: Tensor) -> Tensor:
    """Turns the pairs (0, 1), (2, 3), ... of each head. Shape: x (K, L, H, E), turn (L, 1, E / 2) -> (K, L, H, E)."""
    # One complex product: a third of the time of sines and cosines on halves.
    exact = x if x.dtype == torch.float64 else x.float()
    return torch.view_as_real(_pairs(exact) * turn).flatten(-2).to(x.dtype)


def _pairs(x: Tensor) -> Tensor:
    return torch.view_as_complex(torch.unflatten(x, -1, (-1, 2)))


class ShortAttention(torch.autograd.Function):
    """Attention by batched matrix products on slices of qkv, whose gradient is written in one piece.

    PyTorch's fused kernel for CPUs wants heads apart, and its gradients have to be put together again: at 800
    sequences of 32 slots that copying costs as much as the attention itself.
    """

    @staticmethod
    def forward(ctx: Any, qkv: Tensor, valid: Tensor, turn: Tensor, num_heads: int) -> Tensor:
        dim = qkv.shape[-1] // 3
        qk = rotate(torch.unflatten(qkv[..., : 2 * dim], -1, (2 * num_heads, -1)), turn).flatten(-2)
        bias = torch.zeros_like(valid, dtype=qkv.dtype).masked_fill_(~valid, -torch.inf).unsqueeze(1)
        weights, mixed = [], []
        for q, k, v in _heads(qk, qkv, num_heads):
            scores = torch.baddbmm(bias, q, k.transpose(1, 2), alpha=1 / math.sqrt(q.shape[-1]))
            weights.append(scores.softmax(-1))
            mixed.append(torch.bmm(weights[-1], v))
        ctx.save_for_backward(qkv, qk, turn, *weights)
        return torch.cat(mixed, dim=-1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        qkv, qk, turn, *weights = ctx.saved_tensors
        num_heads, dim = len(weights), qkv.shape[-1] // 3
        parts: tuple[list[Tensor], ...] = ([], [], [])
        of_heads = gradients[0].chunk(num_heads, dim=-1)
        for (q, k, v), p, g in zip(_heads(qk, qkv, num_heads), weights, of_heads, strict=True):
            d_p = torch.bmm(g, v.transpose(1, 2))
            d_scores = torch.ops.aten._softmax_backward_data(d_p, p, -1, p.dtype).mul_(1 / math.sqrt(q.shape[-1]))
            parts[0].append(torch.bmm(d_scores, k))
            parts[1].append(torch.bmm(d_scores.transpose(1, 2), q))
            parts[2].append(torch.bmm(p.transpose(1, 2), g))
        d_qkv = torch.cat([*parts[0], *parts[1], *parts[2]], dim=-1)
        _pairs(torch.unflatten(d_qkv[..., : 2 * dim], -1, (2 * num_heads, -1))).mul_(turn.conj())
        return d_qkv, None, None, None


def _heads(qk: Tensor, qkv: Tensor, num_heads: int) -> list[tuple[Tensor, Tensor, Tensor]]:
    dim = qkv.shape[-1] // 3
    queries, keys = (part.chunk(num_heads, dim=-1) for part in torch.split(qk, dim, dim=-1))
    return list(zip(queries, keys, qkv[..., 2 * dim :].chunk(num_heads, dim=-1), strict=True))
