"""What several blocks share: tokens to tokens, and one vector to tokens."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gemkit.nn.layers import mlp


class TokenLinear(nn.Module):
    """A linear map over the token axis: W X. Shape: (B, N, D) -> (B, n_out, D)."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_out, num_in))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)

    def forward(self, x: Tensor) -> Tensor:
        return token_linear(self.weight, x)


class ToTokens(nn.Module):
    """A vector becomes tokens: a linear map, cut into tokens, LayerNorm over D. Shape: (B, W) -> (B, n_out, D)."""

    def __init__(self, width: int, num_tokens: int, dim: int) -> None:
        super().__init__()
        self.shape = (num_tokens, dim)
        self.linear = nn.Linear(width, num_tokens * dim)
        self.norm = nn.LayerNorm(dim)

    def forward(self, vector: Tensor) -> Tensor:
        tokens: Tensor = self.norm(self.linear(vector).unflatten(-1, self.shape))
        return tokens


def token_linear(weight: Tensor, x: Tensor) -> Tensor:
    """W X. Shape: weight (n_out, N), x (B, N, D) -> (B, n_out, D)."""
    # bmm with an expanded weight: `@` would copy the transposed x.
    return torch.bmm(weight.expand(x.shape[0], -1, -1), x)


def hidden_layers(width: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """An MLP without its output layer: linear, ReLU (and dropout) for each hidden width."""
    return mlp(width, hidden, 1, dropout)[:-1]
