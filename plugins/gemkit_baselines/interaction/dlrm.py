"""DLRM's dot interaction."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.interfaces import BuildContext, InteractionModule
from gemkit_baselines.interaction.tokens import ToTokens, hidden_layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class DLRMConfig(Config):
    """Options of a DLRM layer."""

    name: str = "dlrm"
    width_field: ClassVar[str | None] = "hidden"
    hidden: tuple[int, ...] = option((256,), "Hidden widths of the top MLP.", ge=1)
    self_products: bool = option(False, "Products of tokens with themselves too, an option of the published code.")
    dropout: float = option(0.0, "After each hidden layer.", ge=0, lt=1)


@component("interaction", DLRMConfig)
class DLRM(InteractionModule):
    """Dot products of all pairs of tokens, beside the tokens themselves, into an MLP.

    `X_out = LN(reshape(MLP([flatten(X) || x_i . x_j / sqrt(D) for i < j])))`.

    Paper: DLRM (arXiv 1906.00091), section 2.2: products of all pairs, concatenated to the dense vector, top MLP.
    Differs: all tokens go beside the products, not one: in a stack no token stands for the dense features. Products
        are divided by sqrt(D), so that those of normalised tokens are as large as the tokens' numbers. The MLP ends in
        tokens instead of a logit, with LayerNorm.
    """

    pairs: Tensor

    def __init__(self, config: DLRMConfig, context: BuildContext) -> None:
        super().__init__()
        n, d = context.num_tokens_in, context.dim
        self.num_tokens_out = context.num_tokens_out
        row, column = torch.triu_indices(n, n, offset=0 if config.self_products else 1)
        self.register_buffer("pairs", row * n + column, persistent=False)
        self.hidden = hidden_layers(n * d + len(row), config.hidden, config.dropout)
        width = config.hidden[-1] if config.hidden else n * d + len(row)
        self.out = ToTokens(width, self.num_tokens_out, d)

    def forward(self, x: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """Shape: x (B, N, D) -> (B, num_tokens_out, D)."""
        # Pairs are selected from the flattened matrix: indexing both of its axes costs a third more.
        products = torch.bmm(x, x.transpose(1, 2)).flatten(1).index_select(1, self.pairs)
        products = products * x.shape[-1] ** -0.5
        out: Tensor = self.out(self.hidden(torch.cat([x.flatten(1), products], dim=1)))
        return out
