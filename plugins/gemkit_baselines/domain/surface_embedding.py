"""Surfaces: telling the tokens where an example was shown."""

from __future__ import annotations

import dataclasses

from torch import Tensor, nn

from gemkit.component import component
from gemkit.config.fields import Config
from gemkit.interfaces import BuildContext, DomainLayer


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurfaceEmbeddingConfig(Config):
    """A surface embedding has no options."""

    name: str = "surface_embedding"


@component("domain", SurfaceEmbeddingConfig)
class SurfaceEmbedding(DomainLayer):
    """Adds a learned vector of the example's surface to every token.

    Paper: none; the plainest domain adaptation. It starts at zero, as if it were not there.
    """

    def __init__(self, config: SurfaceEmbeddingConfig, context: BuildContext) -> None:
        super().__init__()
        self.surfaces = ZeroEmbedding(len(context.schema.surfaces), context.dim)

    def forward(self, x: Tensor, surface: Tensor) -> Tensor:
        """Shape: x (B, N, D), surface (B,) -> (B, N, D)."""
        out: Tensor = x + self.surfaces(surface).unsqueeze(1)
        return out


class ZeroEmbedding(nn.Embedding):
    """An embedding that starts at zero."""

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
