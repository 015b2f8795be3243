"""Feed-forward, maps over the token axis, and pooling by attention."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gemkit.nn.jagged import ChunkPlan, segment_sum, to_chunks


def mlp(dim_in: int, hidden: Sequence[int], dim_out: int, dropout: float = 0.0) -> nn.Sequential:
    """Linear, ReLU (and dropout) for each hidden width, then Linear. Shape: (..., dim_in) -> (..., dim_out)."""
    layers: list[nn.Module] = []
    for width in hidden:
        layers += [nn.Linear(dim_in, width), nn.ReLU()]
        if dropout:
            layers.append(nn.Dropout(dropout))
        dim_in = width
    return nn.Sequential(*layers, nn.Linear(dim_in, dim_out))


class TokenLinear(nn.Module):
    """A linear map over the token axis: W X. Shape: (B, N, D) -> (B, n_out, D)."""

    def __init__(self, num_in: int, num_out: int, bias: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num_out, num_in))
        self.bias = nn.Parameter(torch.empty(num_out, 1)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.xavier_uniform_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        y = token_linear(self.weight, x)
        return y if self.bias is None else y + self.bias


def token_linear(weight: Tensor, x: Tensor) -> Tensor:
    """W X. Shape: weight (n_out, N), x (B, N, D) -> (B, n_out, D)."""
    # bmm with an expanded weight: `@` would copy the transposed x.
    return torch.bmm(weight.expand(x.shape[0], -1, -1), x)


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
        chunks, invalid = to_chunks(values, plan), ~plan.valid.unsqueeze(-1)
        scores = (chunks @ self.queries.t() / math.sqrt(values.shape[-1])).masked_fill(invalid, -torch.inf)
        # Softmax over a history in two steps, chunk by chunk and then over its chunks.
        peak = scores.new_full((histories, scores.shape[-1]), -torch.inf)
        owner = plan.owner.unsqueeze(-1).expand(-1, scores.shape[-1])
        peak = peak.scatter_reduce(0, owner, scores.detach().amax(1), "amax")
        weights = (scores - peak.index_select(0, plan.owner).unsqueeze(1)).exp()
        total = segment_sum(weights.sum(1), plan.owner, histories)
        pooled = segment_sum(torch.bmm(weights.transpose(1, 2), chunks), plan.owner, histories)
        pooled = pooled / total.clamp(min=torch.finfo(total.dtype).tiny).unsqueeze(-1)
        filled = (offsets.diff() > 0).to(values.dtype)[:, None, None]
        out: Tensor = self.value(pooled) * filled
        return out
