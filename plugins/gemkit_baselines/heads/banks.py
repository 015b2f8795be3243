"""Many small MLPs of the same widths as few batched products."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class LinearBank(nn.Module):
    """`num` linear maps side by side, each on an input of its own.

    Shape: (num, n, dim_in) -> (num, n, dim_out).
    """

    def __init__(self, num: int, dim_in: int, dim_out: int, bias: bool = True) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(num, dim_in, dim_out))
        # Flat, because optimisers tell biases from matrices by the number of axes.
        self.bias = nn.Parameter(torch.empty(num * dim_out)) if bias else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Each map starts like an `nn.Linear`."""
        bound = self.weight.shape[1] ** -0.5
        nn.init.uniform_(self.weight, -bound, bound)
        if self.bias is not None:
            nn.init.uniform_(self.bias, -bound, bound)

    def forward(self, x: Tensor, which: Tensor | None = None) -> Tensor:
        """
        Args:
            which: (k,) int64, the map of each of x's k slices; None: slice i goes through map i.
        """
        weight = self.weight if which is None else self.weight.index_select(0, which)
        if self.bias is None:
            return torch.bmm(x, weight)
        bias = self.bias.view(self.weight.shape[0], 1, -1)
        return torch.baddbmm(bias if which is None else bias.index_select(0, which), x, weight)


class MLPBank(nn.Module):
    """MLPs side by side: `per_input` of them on each of `num_inputs` inputs.

    Linear, ReLU (and dropout) for each hidden width, then Linear, unless `dim_out` is None. Those that read the same
    input share the matrix product of their first layer.

    Shape: (num_inputs, n, dim_in) -> (num_inputs * per_input, n, dim_out or the last hidden width).
    """

    def __init__(
        self,
        dim_in: int,
        hidden: Sequence[int],
        dim_out: int | None = None,
        *,
        num_inputs: int = 1,
        per_input: int = 1,
        dropout: float = 0.0,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.num_hidden, self.per_input, self.dropout = len(hidden), per_input, dropout
        widths = [*hidden] if dim_out is None else [*hidden, dim_out]
        self.layers = nn.ModuleList(LinearBank(num_inputs, dim_in, per_input * width, bias) for width in widths[:1])
        self.layers.extend(LinearBank(num_inputs * per_input, *pair, bias) for pair in pairwise(widths))

    def forward(self, x: Tensor, which: Tensor | None = None) -> Tensor:
        """
        Args:
            which: (k,) int64, the input of each of x's k slices, with `per_input` 1; None: slice i is input i.
        """
        for i, layer in enumerate(self.layers):
            x = layer(x, which)
            if i == 0 and self.per_input > 1:
                x = x.unflatten(-1, (self.per_input, -1)).transpose(1, 2).flatten(0, 1)
            if i < self.num_hidden:
                x = F.dropout(F.relu(x), self.dropout, self.training)
        return x
