"""PersonalizedFFN: every history's events go through a map of their own."""

from __future__ import annotations

import math

import torch
from gemkit_kernels.gdpa import gdpa
from torch import Tensor, nn
from torch.nn import functional as F

from gemkit.errors import GemkitError
from gemkit.interfaces import Events
from gemkit.nn.jagged import ChunkPlan, from_chunks, jagged_matmul, to_chunks
from gemkit.nn.layers import mlp


def check_heads(num_heads: int, dim: int) -> None:
    """
    Raises:
        GemkitError: GDPA's heads do not divide `dim`.
    """
    if dim % num_heads:
        raise GemkitError(
            f"cross.gdpa_heads = {num_heads} does not divide size.dim = {dim}",
            where="cross.gdpa_heads",
            allowed=", ".join(str(h) for h in range(1, dim + 1) if dim % h == 0),
        )


class PersonalizedFFN(nn.Module):
    """`PFFN(X_sum, S) = f(X_sum) S`, with f linear or an MLP onto a (D, D) matrix.

    Paper: InterFormer (arXiv 2411.09852), section 4.
    Differs: f(X_sum) is divided by sqrt(D), so that the events keep their scale at the start.

    Shape: summary (U, n_sum, D), values (T, D) -> (T, D).
    """

    def __init__(self, num_summary: int, dim: int, hidden: tuple[int, ...]) -> None:
        super().__init__()
        self.dim = dim
        self.make = mlp(num_summary * dim, hidden, dim * dim)

    def forward(self, summary: Tensor, values: Tensor, events: Events) -> Tensor:
        weights = self.make(summary.flatten(1)).view(-1, self.dim, self.dim) / math.sqrt(self.dim)
        return jagged_matmul(values, weights, events.layout.chunks)


class GatedDotProductAttention(nn.Module):
    """GDPA: the PFFN as attention over X_sum without softmax, `act(Q K^T / tau) V`, act = GELU.

    Paper: Kunlun (arXiv 2602.10016): queries from the events, keys and values from X_sum.
    Differs: tau, the maximal length there, is the number of summary tokens here, the length of K.

    Shape: summary (U, n_sum, D), values (T, D) -> (T, D).
    """

    def __init__(self, dim: int, num_heads: int) -> None:
        super().__init__()
        check_heads(num_heads, dim)
        self.num_heads = num_heads
        self.query, self.key, self.value, self.out = (nn.Linear(dim, dim) for _ in range(4))

    def forward(self, summary: Tensor, values: Tensor, events: Events) -> Tensor:
        query, key, value = self.query(values), self.key(summary), self.value(summary)
        if values.is_cuda:
            mixed = gdpa(query, key, value, events.offsets, self.num_heads, scale=1 / summary.shape[1])
        else:
            mixed = gdpa_in_chunks(query, key, value, events.layout.chunks, self.num_heads)
        out: Tensor = self.out(mixed)
        return out


def gdpa_in_chunks(query: Tensor, key: Tensor, value: Tensor, plan: ChunkPlan, num_heads: int) -> Tensor:
    """`gdpa` with the batch's own chunks, which the host has made: on a CPU it is quicker than to make them anew.

    Shape: query (T, D), key and value (U, M, D) -> (T, D).
    """

    def heads(x: Tensor) -> Tensor:
        return torch.unflatten(x, -1, (num_heads, -1)).transpose(1, 2)

    near_key, near_value = (heads(x).index_select(0, plan.owner) for x in (key, value))
    mixed = F.gelu(heads(to_chunks(query, plan)) @ near_key.transpose(-1, -2) / key.shape[1]) @ near_value
    return from_chunks(mixed.transpose(1, 2).flatten(2), plan)


def make_pffn(form: str, num_summary: int, dim: int, num_heads: int) -> nn.Module:
    """The PFFN of the config's choice: linear, mlp or gdpa."""
    if form == "gdpa":
        return GatedDotProductAttention(dim, num_heads)
    return PersonalizedFFN(num_summary, dim, hidden=(dim,) if form == "mlp" else ())
