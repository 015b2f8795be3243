"""What several blocks share: tokens to tokens, and one vector to tokens."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, nn

from gemkit.nn.layers import mlp


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


def hidden_layers(width: int, hidden: Sequence[int], dropout: float) -> nn.Sequential:
    """An MLP without its output layer: linear, ReLU (and dropout) for each hidden width."""
    return nn.Sequential(*list(mlp(width, hidden, 1, dropout))[:-1])
