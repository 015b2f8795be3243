"""Feed-forward, multi-head attention with rotary positions, pooling by attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemkit.nn.jagged import ChunkPlan, row_index, segment_softmax, segment_sum, to_chunks


def mlp(dim_in: int, hidden: Sequence[int], dim_out: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear, ReLU (and dropout) for each hidden width, then Linear. Shape: (..., dim_in) -> (..., dim_out)."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(dim_in, width), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        dim_in = width
    return nn.Sequential(*layers, nn.Linear(dim_in, dim_out))


def rotate(x: Tensor, base: float = 10000.0) -> Tensor:
    """Rotary position embedding; positions count along the second-last-but-one axis.

    Paper: RoFormer (arXiv 2104.09864), equation 34: pairs (0, 1), (2, 3), ... turn by position * frequency.

    Shape: (K, L, H, E) with E even -> (K, L, H, E).
    """
    length, half = x.shape[1], x.shape[-1] // 2
    frequency = base ** (-torch.arange(half, device=x.device, dtype=torch.float32) / half)
    angle = torch.arange(length, device=x.device, dtype=torch.float32).unsqueeze(-1) * frequency
    turn = torch.polar(torch.ones_like(angle), angle).unsqueeze(1)
    # One complex product: a third of the time of sines and cosines on halves.
    pairs = torch.view_as_complex(x.float().reshape(*x.shape[:-1], half, 2))
    return torch.view_as_real(pairs * turn).reshape(x.shape).to(x.dtype)


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
        count, length, dim = x.shape
        width = dim // self.num_heads  # not -1: without any event there are no sequences, and -1 would be ambiguous
        qk, v = self.qkv(x).split([2 * dim, dim], dim=-1)
        qk = rotate(qk.reshape(count, length, 2 * self.num_heads, width))
        q, k = qk.view(count, length, 2, self.num_heads, width).permute(2, 0, 3, 1, 4)
        v = v.view(count, length, self.num_heads, width).transpose(1, 2)
        # A sequence without a single valid slot would make softmax divide by zero: let it see itself.
        mask = (valid | ~valid.any(-1, keepdim=True))[:, None, None, :]
        mixed = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        out: Tensor = self.out(mixed.transpose(1, 2).reshape(count, length, dim))
        return out


class PoolingByAttention(nn.Module):
    """Few learned queries pool a jagged history: PMA without padding.

    Paper: Set Transformer (arXiv 1810.00825), section 3.2, as InterFormer (arXiv 2411.09852) uses it.
    Differs: one head per query, keys and values without projections other than the value's; an empty
        history pools to zero.
    """

    def __init__(self, dim: int, num_queries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(num_queries, dim))
        self.value = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.queries, std=self.queries.shape[1] ** -0.5)

    def forward(self, values: Tensor, offsets: Tensor, plan: ChunkPlan) -> Tensor:
        """
        Args:
            plan: Any chunking of the same rows; products are summed chunk by chunk.

        Shape: (T, D), (U+1,) -> (U, num_queries, D).
        """
        histories = offsets.shape[0] - 1
        scores = values @ self.queries.t() / math.sqrt(values.shape[-1])
        weights = segment_softmax(scores, row_index(offsets, values.shape[0]), histories)
        weighted = to_chunks(weights, plan).masked_fill(~plan.valid.unsqueeze(-1), 0.0)
        partial = torch.bmm(weighted.transpose(1, 2), to_chunks(values, plan))
        pooled = segment_sum(partial, plan.owner, histories)
        filled = (offsets.diff() > 0).to(values.dtype)[:, None, None]
        out: Tensor = self.value(pooled) * filled
        return out
