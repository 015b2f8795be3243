"""Surfaces open and close features."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.interfaces import BuildContext, DomainLayer
from gemkit.nn.layers import mlp


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurfaceGatedConfig(Config):
    """Options of the gate."""

    width_field: ClassVar[str | None] = "hidden"

    name: str = "surface_gated"
    hidden: int = option(64, "Hidden width of the gate.", ge=1)


@component("domain", SurfaceGatedConfig)
class SurfaceGated(DomainLayer):
    """Scales every number of the tokens by a gate between 0 and 2 that knows the surface and all tokens.

    `x' = 2 sigmoid(MLP([e_surface || sg(x)])) * x`, with sg the stop of the gradient and one hidden ReLU layer.

    Paper: PEPNet (arXiv 2302.01115): the embedding part, EPNet, with its Gate NU and gamma = 2.
    Differs: the surface is all that is known of the domain, its embedding is as wide as a token; the parameter part,
        PPNet, is left out.
    """

    def __init__(self, config: SurfaceGatedConfig, context: BuildContext) -> None:
        super().__init__()
        width = context.num_tokens_in * context.dim
        self.surfaces = nn.Embedding(len(context.schema.surfaces), context.dim)
        self.gate = mlp(context.dim + width, (config.hidden,), width)

    def forward(self, x: Tensor, surface: Tensor) -> Tensor:
        """Shape: x (B, N, D), surface (B,) -> (B, N, D)."""
        known = torch.cat([self.surfaces(surface), x.detach().flatten(1)], dim=1)
        gated: Tensor = 2 * self.gate(known).sigmoid().view_as(x) * x
        return gated
