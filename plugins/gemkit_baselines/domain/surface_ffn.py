"""A feed-forward layer whose weights belong to the surface, around shared ones."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.interfaces import BuildContext, DomainLayer
from gemkit_baselines.surfaces import surface_blocks


@dataclasses.dataclass(frozen=True, kw_only=True)
class SurfaceFFNConfig(Config):
    """Options of the layer."""

    width_field: ClassVar[str | None] = "hidden"

    name: str = "surface_ffn"
    hidden: int = option(64, "Hidden width.", ge=1)
    dropout: float = option(0.0, "After the hidden layer.", ge=0, lt=1)


class StarLinear(nn.Module):
    """`(W * W_s) x + b + b_s`: shared weights times, element by element, those of a surface.

    Shape: (blocks, n, dim_in), owner (blocks,) -> (blocks, n, dim_out).
    """

    def __init__(self, num_surfaces: int, dim_in: int, dim_out: int) -> None:
        super().__init__()
        self.shared = nn.Linear(dim_in, dim_out)
        # W_s is kept as its difference from one: then weight decay draws surfaces together, not W to zero.
        self.weight = nn.Parameter(torch.empty(num_surfaces, dim_out, dim_in))
        self.bias = nn.Parameter(torch.empty(num_surfaces, dim_out))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.weight)
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor, owner: Tensor) -> Tensor:
        weight = (self.shared.weight * (1 + self.weight)).index_select(0, owner)
        bias = (self.shared.bias + self.bias).index_select(0, owner)
        return torch.baddbmm(bias.unsqueeze(1), x, weight.transpose(1, 2))


@component("domain", SurfaceFFNConfig)
class SurfaceFFN(DomainLayer):
    """`LN(x + FFN_s(x))`: a feed-forward layer on every token, with weights of the example's surface.

    Its two linear maps are `(W * W_s) x + b + b_s`, a ReLU between them. W and b are shared, W_s and b_s the surface's.
    All surfaces start equal, W_s at one and b_s at zero.

    Paper: STAR (arXiv 2101.11427), the star topology of its fully-connected layers.
    Differs: it works on tokens, with a residual and a LayerNorm in the place of partitioned batch normalisation; the
        auxiliary network, which knows the surface alone, is left out.
    """

    def __init__(self, config: SurfaceFFNConfig, context: BuildContext) -> None:
        super().__init__()
        self.num_surfaces = len(context.schema.surfaces)
        self.dropout = config.dropout
        self.up = StarLinear(self.num_surfaces, context.dim, config.hidden)
        self.down = StarLinear(self.num_surfaces, config.hidden, context.dim)
        self.norm = nn.LayerNorm(context.dim)

    def forward(self, x: Tensor, surface: Tensor) -> Tensor:
        """Shape: x (B, N, D), surface (B,) -> (B, N, D)."""
        blocks = surface_blocks(surface, self.num_surfaces)
        packed = blocks.pack(x)
        hidden = F.dropout(F.relu(self.up(packed.flatten(1, 2), blocks.owner)), self.dropout, self.training)
        adapted = blocks.unpack(self.down(hidden, blocks.owner).view_as(packed))
        out: Tensor = self.norm(x + adapted)
        return out
