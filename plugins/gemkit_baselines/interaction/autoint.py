"""AutoInt: tokens attend to tokens."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.interfaces import BuildContext, InteractionModule
from gemkit.nn.layers import TokenLinear


@dataclasses.dataclass(frozen=True, kw_only=True)
class AutoIntConfig(Config):
    """Options of an AutoInt layer."""

    name: str = "autoint"
    width_field: ClassVar[str | None] = "head_dim"
    num_layers: int = option(1, "Interacting layers.", ge=1, le=64)
    num_heads: int = option(2, "Heads of an interacting layer.", ge=1, le=256)
    head_dim: int = option(32, "d', width of a head.", ge=1, le=4096)
    scaled: bool = option(
        True, "Divide scores by the root of head_dim. The paper does not, nor has it norms; public code does either."
    )
    residual: bool = option(True, "A linear map of the input is added to what was attended to.")


class InteractingLayer(nn.Module):
    """`ReLU(concat over heads of softmax(Q K^T) V + W_res X)`.

    Paper: AutoInt (arXiv 1810.11921), section 4.4.

    Shape: (B, N, D_in) -> (B, N, num_heads * head_dim).
    """

    def __init__(self, dim: int, config: AutoIntConfig) -> None:
        super().__init__()
        self.heads = (config.num_heads, config.head_dim)
        self.scale = config.head_dim**-0.5 if config.scaled else 1.0
        self.parts = 4 if config.residual else 3
        self.project = nn.Linear(dim, self.parts * config.num_heads * config.head_dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v, *skip = self.project(x).chunk(self.parts, dim=-1)
        q, k, v = (t.unflatten(-1, self.heads).transpose(1, 2) for t in (q, k, v))
        mixed = F.scaled_dot_product_attention(q, k, v, scale=self.scale).transpose(1, 2).flatten(2)
        return torch.relu(mixed + skip[0] if skip else mixed)


@component("interaction", AutoIntConfig)
class AutoInt(InteractionModule):
    """Multi-head self-attention over tokens.

    `X_out = LN(W_tokens E W_dim)`, E the output of the interacting layers.

    Paper: AutoInt (arXiv 1810.11921), section 4.4.
    Differs: scores are scaled, because normalised tokens would saturate the softmax; `scaled=false` is as printed. The
        last interacting layer's output is mapped back to D and, where it changes, to the number of tokens, with
        LayerNorm, so that layers stack: the paper's three layers are size.num_blocks=3. AutoInt+ has an MLP beside
        them, gemkit one behind them: the head's.
    """

    def __init__(self, config: AutoIntConfig, context: BuildContext) -> None:
        super().__init__()
        n, d, inner = context.num_tokens_in, context.dim, config.num_heads * config.head_dim
        self.num_tokens_out = context.num_tokens_out
        self.layers = nn.Sequential(*(InteractingLayer(inner if i else d, config) for i in range(config.num_layers)))
        self.linear = nn.Linear(inner, d, bias=False)
        self.compress = nn.Identity() if n == self.num_tokens_out else TokenLinear(n, self.num_tokens_out)
        self.norm = nn.LayerNorm(d)

    def forward(self, x: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """Shape: x (B, N, D) -> (B, num_tokens_out, D)."""
        out: Tensor = self.norm(self.compress(self.linear(self.layers(x))))
        return out
