"""FinalMLP: two MLPs that see differently gated features, fused bilinearly."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.interfaces import BuildContext, InteractionModule
from gemkit.nn.layers import mlp
from gemkit_baselines.interaction.tokens import ToTokens, hidden_layers


@dataclasses.dataclass(frozen=True, kw_only=True)
class FinalMLPConfig(Config):
    """Options of a FinalMLP layer."""

    name: str = "finalmlp"
    width_field: ClassVar[str | None] = "hidden"
    hidden: tuple[int, ...] = option((256,), "Hidden widths of the first stream, below its output.", ge=1)
    hidden2: tuple[int, ...] | None = option(None, "Those of the second stream; null: as the first.", ge=1)
    num_heads: int = option(8, "Pieces of the streams' outputs that are multiplied with each other.", ge=1, le=1024)
    head_dim: int = option(8, "Width of a piece; a stream ends in num_heads * head_dim numbers.", ge=1, le=4096)
    gating: str = option(
        "roles",
        "What gates the features: in the first layer the user's tokens for one stream and the item's for the other, "
        "a learned vector elsewhere and where there are none; always learned vectors; or nothing.",
        choices=("roles", "learned", "none"),
    )
    gate_hidden: tuple[int, ...] = option((64,), "Hidden widths of a gate.", ge=1)
    dropout: float = option(0.0, "After each layer of a stream.", ge=0, lt=1)


class FeatureGate(nn.Module):
    """`2 sigmoid(MLP(context)) * flatten(X)`, context being some of the tokens, or a learned vector.

    Paper: FinalMLP (arXiv 2304.00902), stream-specific feature selection.

    Shape: x (B, N, D) -> (B, N * D).
    """

    positions: Tensor

    def __init__(self, num_tokens: int, dim: int, hidden: Sequence[int], positions: Sequence[int]) -> None:
        super().__init__()
        self.register_buffer("positions", torch.tensor(positions, dtype=torch.int64), persistent=False)
        self.context = None if positions else nn.Parameter(torch.empty(1, dim))
        self.mlp = mlp(max(1, len(positions)) * dim, hidden, num_tokens * dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        if self.context is not None:
            nn.init.normal_(self.context)

    def forward(self, x: Tensor) -> Tensor:
        context = x.index_select(1, self.positions).flatten(1) if self.context is None else self.context
        return 2 * torch.sigmoid(self.mlp(context)) * x.flatten(1)


@component("interaction", FinalMLPConfig)
class FinalMLP(InteractionModule):
    """Two streams, each an MLP on gated features, and the bilinear fusion of what they say.

    `X_out = LN(reshape(b + W_1 o_1 + W_2 o_2 + sum over heads h of o_1h^T W_h o_2h))`.

    Paper: FinalMLP (arXiv 2304.00902), stream-specific feature selection and stream-level interaction aggregation.
    Differs: as many outputs as the tokens have numbers instead of one logit, with LayerNorm. Tokens have roles in the
        first layer only, so later gates are learned vectors, as the paper's are where no context is chosen.
    """

    def __init__(self, config: FinalMLPConfig, context: BuildContext) -> None:
        super().__init__()
        self.num_tokens_out = context.num_tokens_out
        self.heads = (config.num_heads, config.head_dim)
        self.stream1 = _stream(config, context, "user", config.hidden)
        self.stream2 = _stream(config, context, "item", config.hidden if config.hidden2 is None else config.hidden2)
        width = config.num_heads * config.head_dim
        self.out = ToTokens(2 * width + width * config.head_dim, self.num_tokens_out, context.dim)

    def forward(self, x: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """Shape: x (B, N, D) -> (B, num_tokens_out, D)."""
        first, second = self.stream1(x), self.stream2(x)
        # One linear map of the sum's terms side by side is the sum of their linear maps.
        products = first.unflatten(-1, self.heads).unsqueeze(-1) * second.unflatten(-1, self.heads).unsqueeze(-2)
        out: Tensor = self.out(torch.cat([first, second, products.flatten(1)], dim=1))
        return out


def _stream(config: FinalMLPConfig, context: BuildContext, role: str, hidden: tuple[int, ...]) -> nn.Sequential:
    n, d = context.num_tokens_in, context.dim
    positions = context.tokens_of(role) if config.gating == "roles" and context.layer == 0 else []
    gate = nn.Flatten() if config.gating == "none" else FeatureGate(n, d, config.gate_hidden, positions)
    return nn.Sequential(gate, *hidden_layers(n * d, (*hidden, config.num_heads * config.head_dim), config.dropout))
