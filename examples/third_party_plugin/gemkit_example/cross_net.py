"""DCN V2's cross layer on all tokens side by side."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from torch import Tensor, nn

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.interfaces import BuildContext, InteractionModule


@dataclasses.dataclass(frozen=True, kw_only=True)
class CrossNetConfig(Config):
    """Options of one cross layer."""

    name: str = "cross_net"
    rank: int = option(32, "Rank of the weight matrix over all tokens side by side.", ge=1)


@component("interaction", CrossNetConfig)
class CrossNet(InteractionModule):
    """`x0 * (U V^T x0 + b) + x0` on the flattened tokens, then a linear map to the tokens that are wanted.

    Paper: DCN V2 (arXiv 2008.13535), equation 1, with the low-rank weight of section 4.2.
    Differs: x0 is this block's own input, because blocks only hand on their outputs.
    """

    def __init__(self, config: CrossNetConfig, context: BuildContext) -> None:
        super().__init__()
        self.num_tokens_out = context.num_tokens_out
        width = context.num_tokens_in * context.dim
        self.down = nn.Linear(width, config.rank, bias=False)
        self.up = nn.Linear(config.rank, width)
        self.compress = nn.Linear(context.num_tokens_in, context.num_tokens_out)
        self.norm = nn.LayerNorm(context.dim)

    def forward(self, x: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """Shape: x (B, N, D) -> (B, num_tokens_out, D)."""
        flat = x.flatten(1)
        crossed = (flat * self.up(self.down(flat)) + flat).view_as(x)
        out: Tensor = self.norm(self.compress(crossed.transpose(1, 2)).transpose(1, 2))
        return out
