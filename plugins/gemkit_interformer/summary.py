"""Gating, and the summary of tokens over the token axis."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from gemkit.nn.layers import mlp


class Gating(nn.Module):
    """Self-gating of tokens.

    Paper: InterFormer (arXiv 2411.09852): `sigmoid(X * MLP(X))`.
    Differs: `gate` is the form of re-implementations, `sigmoid(MLP(X)) * X`, which keeps the scale of X.

    Shape: (..., D) -> (..., D).
    """

    def __init__(self, dim: int, form: str) -> None:
        super().__init__()
        self.mlp = mlp(dim, (), dim)
        self.printed = form == "printed"

    def forward(self, x: Tensor) -> Tensor:
        gate = self.mlp(x)
        return torch.sigmoid(x * gate) if self.printed else torch.sigmoid(gate) * x


class TokenSummary(nn.Module):
    """`X_sum = Gating(MLP(X))`, the MLP over the token axis.

    Shape: (B, N, D) -> (B, n_sum, D).
    """

    def __init__(self, num_tokens: int, num_summary: int, dim: int, gating: str) -> None:
        super().__init__()
        self.compress = mlp(num_tokens, (), num_summary)
        self.gate = Gating(dim, gating)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.gate(self.compress(x.transpose(1, 2)).transpose(1, 2))
        return out
