"""DCN-V2: explicit crosses of the whole input vector, beside or below a deep network."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor, nn

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.errors import GemkitError
from gemkit.interfaces import BuildContext, InteractionModule
from gemkit_baselines.interaction.tokens import ToTokens, hidden_layers

NONLINEAR = {"tanh": torch.tanh, "relu": torch.relu}


@dataclasses.dataclass(frozen=True, kw_only=True)
class DCNv2Config(Config):
    """Options of a DCN-V2 layer."""

    name: str = "dcnv2"
    width_field: ClassVar[str | None] = "hidden"
    num_layers: int = option(2, "Cross layers.", ge=1, le=64)
    rank: int | None = option(64, "Rank of a cross layer's matrix; null: a full matrix.", ge=1, le=65536)
    num_experts: int = option(1, "Low-rank experts, mixed by a gate; 1: no mixture.", ge=1, le=256)
    expert_activation: str = option(
        "tanh", "Inside an expert. The paper leaves it open, public code has either.", choices=("tanh", "relu")
    )
    structure: str = option(
        "stacked", "The deep network reads the crosses, or the input beside them.", choices=("stacked", "parallel")
    )
    hidden: tuple[int, ...] = option((256,), "Widths of the deep network; []: crosses alone.", ge=1)
    dropout: float = option(0.0, "After each hidden layer.", ge=0, lt=1)

    def check(self) -> None:
        if self.num_experts > 1 and self.rank is None:
            raise GemkitError(
                f"num_experts = {self.num_experts} are low-rank experts, and rank is null",
                where="rank",
                allowed=">= 1",
                fix="name a rank, or num_experts=1",
            )


class CrossLayer(nn.Module):
    """`x_0 * (W x + b) + x`, W a full matrix or, with a rank, `U V^T`.

    Paper: DCN-V2 (arXiv 2008.13535), sections 3.2 and 3.5.

    Shape: x_0 (B, W), x (B, W) -> (B, W).
    """

    def __init__(self, width: int, rank: int | None) -> None:
        super().__init__()
        self.down = nn.Identity() if rank is None else nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(width if rank is None else rank, width)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        return torch.addcmul(x, x0, self.up(self.down(x)))


class MixtureCrossLayer(nn.Module):
    """`sum_i G_i(x) E_i(x) + x`, with `E_i(x) = x_0 * (U_i g(C_i g(V_i^T x)) + b)` and G a softmax over experts.

    Paper: DCN-V2 (arXiv 2008.13535), section 3.5.
    Differs: one bias b for all experts, as public implementations have it.

    Shape: x_0 (B, W), x (B, W) -> (B, W).
    """

    def __init__(self, width: int, rank: int, num_experts: int, activation: str) -> None:
        super().__init__()
        self.shape, self.activation = (num_experts, rank), NONLINEAR[activation]
        self.down = nn.Linear(width, num_experts * rank, bias=False)
        self.core = nn.Parameter(torch.empty(num_experts, rank, rank))
        self.up = nn.Linear(num_experts * rank, width)
        self.gate = nn.Linear(width, num_experts, bias=False)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        bound = self.core.shape[-1] ** -0.5
        nn.init.uniform_(self.core, -bound, bound)

    def forward(self, x0: Tensor, x: Tensor) -> Tensor:
        inner = self.activation(self.down(x)).unflatten(-1, self.shape)
        inner = self.activation(torch.einsum("ber,eqr->beq", inner, self.core))
        # The gates add up to 1 and everything that follows is linear: weighing the inner vectors is enough.
        weighted = inner * self.gate(x).softmax(-1).unsqueeze(-1)
        return torch.addcmul(x, x0, self.up(weighted.flatten(1)))


@component("interaction", DCNv2Config)
class DCNv2(InteractionModule):
    """Cross layers on the flattened tokens and a deep network, one on top of the other or side by side.

    Stacked: `X_out = LN(reshape(W MLP(cross(flatten(X)))))`; parallel: `W [cross(x) || MLP(x)]` inside.

    Paper: DCN-V2 (arXiv 2008.13535), sections 3.2 to 3.5.
    Differs: a layer's x_0 is its own input, so that stacked layers cross crosses. It ends in tokens instead of a
        logit, with LayerNorm. Low rank is the default, for the full matrix has (N D)^2 weights; the mixture's experts
        need one.
    """

    def __init__(self, config: DCNv2Config, context: BuildContext) -> None:
        super().__init__()
        self.num_tokens_out = context.num_tokens_out
        width = context.num_tokens_in * context.dim
        self.cross = nn.ModuleList(_cross_layer(config, width) for _ in range(config.num_layers))
        self.deep = hidden_layers(width, config.hidden, config.dropout)
        self.is_parallel = config.structure == "parallel" and bool(config.hidden)
        deep_width = config.hidden[-1] if config.hidden else width
        self.out = ToTokens(deep_width + width * self.is_parallel, self.num_tokens_out, context.dim)

    def forward(self, x: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """Shape: x (B, N, D) -> (B, num_tokens_out, D)."""
        x0 = crossed = x.flatten(1)
        for layer in self.cross:
            crossed = layer(x0, crossed)
        deep = torch.cat([crossed, self.deep(x0)], dim=1) if self.is_parallel else self.deep(crossed)
        out: Tensor = self.out(deep)
        return out


def _cross_layer(config: DCNv2Config, width: int) -> nn.Module:
    if config.num_experts > 1 and config.rank is not None:
        return MixtureCrossLayer(width, config.rank, config.num_experts, config.expert_activation)
    return CrossLayer(width, config.rank)
