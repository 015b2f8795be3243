"""MaskNet: feed-forward layers whose input is multiplied by a mask made from the example."""

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
class MaskNetConfig(Config):
    """Options of a MaskNet layer."""

    name: str = "masknet"
    width_field: ClassVar[str | None] = "blocks"
    structure: str = option(
        "serial", "Mask blocks on top of each other, or side by side.", choices=("serial", "parallel")
    )
    blocks: tuple[int, ...] = option((128, 128), "Output width of each mask block.", ge=1, filled=True)
    reduction: float = option(
        1.0, "Hidden width of the mask's MLP, relative to the width of what is masked.", gt=0, le=64
    )
    hidden: tuple[int, ...] = option((), "Widths of the MLP on parallel blocks.", ge=1)
    dropout: float = option(0.0, "After each mask block and hidden layer.", ge=0, lt=1)


class MaskBlock(nn.Module):
    """`ReLU(LN(W (mask(e) * v)))`, mask an MLP of one hidden layer: the instance-guided mask.

    Paper: MaskNet (arXiv 2102.07619), sections 3.2 and 3.3.

    Shape: e (B, E), v (B, W_in) -> (B, W_out).
    """

    def __init__(self, width_e: int, width_in: int, width_out: int, config: MaskNetConfig) -> None:
        super().__init__()
        self.mask = mlp(width_e, (max(1, round(config.reduction * width_in)),), width_in)
        self.linear = nn.Linear(width_in, width_out, bias=False)
        self.norm = nn.LayerNorm(width_out)
        self.dropout = nn.Dropout(config.dropout)

    def forward(self, e: Tensor, v: Tensor) -> Tensor:
        out: Tensor = self.dropout(torch.relu(self.norm(self.linear(self.mask(e) * v))))
        return out


@component("interaction", MaskNetConfig)
class MaskNet(InteractionModule):
    """Mask blocks, each guided by all tokens.

    Serial: block i reads block i - 1, the first one the normalised tokens. Parallel: every block reads the
    normalised tokens, and an MLP reads all blocks.

    Paper: MaskNet (arXiv 2102.07619), sections 3.3 and 3.4.
    Differs: the LayerNorm of the embeddings has one gain and bias for all tokens. It ends in tokens instead of a
        logit, with LayerNorm.
    """

    def __init__(self, config: MaskNetConfig, context: BuildContext) -> None:
        super().__init__()
        self.num_tokens_out = context.num_tokens_out
        self.is_serial = config.structure == "serial"
        n, widths = context.num_tokens_in * context.dim, config.blocks
        self.norm = nn.LayerNorm(context.dim)
        inputs = (n, *widths[:-1]) if self.is_serial else (n,) * len(widths)
        self.blocks = nn.ModuleList(MaskBlock(n, i, o, config) for i, o in zip(inputs, widths, strict=True))
        width = widths[-1] if self.is_serial else sum(widths)
        self.hidden = hidden_layers(width, () if self.is_serial else config.hidden, config.dropout)
        if config.hidden and not self.is_serial:
            width = config.hidden[-1]
        self.out = ToTokens(width, self.num_tokens_out, context.dim)

    def forward(self, x: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """Shape: x (B, N, D) -> (B, num_tokens_out, D)."""
        e, v = x.flatten(1), self.norm(x).flatten(1)
        if self.is_serial:
            for block in self.blocks:
                v = block(e, v)
        else:
            v = self.hidden(torch.cat([block(e, v) for block in self.blocks], dim=1))
        out: Tensor = self.out(v)
        return out
