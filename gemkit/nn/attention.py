"""Multi-head self-attention with rotary positions, over many short sequences at once."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemkit.errors import GemkitError


def check_head_width(num_heads: int, dim: int) -> None:
    """For the configs of encoders.

    Raises:
        GemkitError: The heads do not divide `dim` into even widths, which rotary positions need.
    """
    if dim % (2 * num_heads):
        raise GemkitError(
            f"sequence.num_heads = {num_heads} does not divide size.dim = {dim} into even head widths",
            where="sequence.num_heads",
            allowed=", ".join(str(h) for h in range(1, dim // 2 + 1) if dim % (2 * h) == 0) or "an even size.dim",
        )


class QKNorm(nn.Module):
    """RMSNorm of the queries and of the keys of each head.

    Paper: Query-Key Normalization for Transformers (arXiv 2010.04245), section 3.
    Differs: RMSNorm with learned gains in place of unit length and one learned scale, as current models have it.

    Shape: (..., 3 D) -> (..., 3 D), queries, keys and values side by side.
    """

    def __init__(self, num_heads: int, head_dim: int) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.query, self.key = nn.RMSNorm(head_dim, eps=1e-6), nn.RMSNorm(head_dim, eps=1e-6)

    def forward(self, qkv: Tensor) -> Tensor:
        q, k, v = qkv.chunk(3, dim=-1)
        q = self.query(torch.unflatten(q, -1, (self.num_heads, -1))).flatten(-2)
        k = self.key(torch.unflatten(k, -1, (self.num_heads, -1))).flatten(-2)
        return torch.cat([q, k, v], dim=-1)


class PositionBias(nn.Module):
    """A learned number for each head and distance, added to the scores; farther distances share the last.

    Paper: Self-Attention with Relative Position Representations (arXiv 1803.02155), in the scalar form of T5 (arXiv
        1910.10683), section 2.1.
    Differs: distances are not bucketed.

    Shape: length L -> (H, L, L).
    """

    def __init__(self, num_heads: int, num_positions: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_heads, 2 * num_positions - 1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.weight, std=0.02)

    def forward(self, length: int) -> Tensor:
        slot = torch.arange(length, device=self.weight.device)
        farthest = self.weight.shape[1] // 2
        distance = (slot.unsqueeze(1) - slot).clamp(-farthest, farthest) + farthest
        return self.weight.index_select(1, distance.view(-1)).view(-1, length, length)


class SelfAttention(nn.Module):
    """Multi-head self-attention over the second-last axis.

    Args:
        dim: D, divisible by `num_heads`; the head width must be even.
        qk_norm: RMSNorm of each head's queries and keys.
        num_positions: Distances with a learned bias of their own, in place of rotary positions; 0: rotary.
    """

    def __init__(self, dim: int, num_heads: int, qk_norm: bool = False, num_positions: int = 0) -> None:
        super().__init__()
        self.num_heads = num_heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.qk_norm = QKNorm(num_heads, dim // num_heads) if qk_norm else None
        self.bias = PositionBias(num_heads, num_positions) if num_positions else None
        self.out = nn.Linear(dim, dim)

    def forward(self, x: Tensor, valid: Tensor) -> Tensor:
        """
        Args:
            valid: (K, L) bool; slots that may be attended to.

        Shape: (K, L, D) -> (K, L, D). Rows of an all-invalid sequence are finite and meaningless.
        """
        qkv = self.qkv(x) if self.qk_norm is None else self.qk_norm(self.qkv(x))
        bias = None if self.bias is None else self.bias(x.shape[1])
        # A sequence without a single valid slot would make softmax divide by zero: let it see itself.
        out: Tensor = self.out(attention(qkv, valid | ~valid.any(-1, keepdim=True), self.num_heads, bias))
        return out


def attention(qkv: Tensor, valid: Tensor, num_heads: int, bias: Tensor | None = None) -> Tensor:
    """`softmax(R(q) R(k)^T / sqrt(E)) v` in each head, R being the rotary embedding; with `bias`, without R.

    Args:
        qkv: Queries, keys and values side by side.
        valid: (K, L) bool, slots that may be attended to; or (K, L, L), those that each slot may attend to. At least
            one in each row.
        bias: (H, L, L), added to the scores.

    Shape: (K, L, 3 D) -> (K, L, D).
    """
    count, length, width = qkv.shape
    dim = width // 3
    head_dim = dim // num_heads  # not -1: without any event there are no sequences, and -1 would be ambiguous
    qk, v = torch.split(qkv, [2 * dim, dim], dim=-1)
    qk = qk.reshape(count, length, 2 * num_heads, head_dim)
    mask = (valid if valid.dim() == 3 else valid.unsqueeze(1)).unsqueeze(1)
    if bias is None:
        qk = rotate(qk, turns(length, head_dim // 2, qkv.device))
    else:
        mask = bias.masked_fill(~mask, -torch.inf)
    q, k = qk.view(count, length, 2, num_heads, head_dim).permute(2, 0, 3, 1, 4)
    v = v.view(count, length, num_heads, head_dim).transpose(1, 2)
    mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
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
