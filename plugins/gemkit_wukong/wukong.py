"""One Wukong layer: a FactorizationMachineBlock beside a LinearCompressBlock."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

import torch
from gemkit_kernels.fm_block import fm_block
from torch import Tensor, nn
from torch.nn import functional as F

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.config.run import RunConfig
from gemkit.errors import GemkitError
from gemkit.interfaces import BuildContext, InteractionModule
from gemkit.nn.layers import TokenLinear, mlp

PARTS = ("fm", "linear", "residual")
"""What a layer adds up."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class WukongConfig(Config):
    """Options of one Wukong layer."""

    name: str = "wukong"
    width_field: ClassVar[str | None] = "hidden"
    num_fm_tokens: int | None = option(
        None, "n_F, tokens out of the FM block; null: half of size.num_tokens, rounded up.", ge=1, le=4096
    )
    rank: int = option(16, "k, columns of the projection Y in X (X^T Y).", ge=1, le=4096)
    hidden: tuple[int, ...] = option((256,), "Hidden widths of the FM block's MLP.", ge=1)
    projection: str = option(
        "static", "Y is a parameter, or made from the compressed input by an MLP.", choices=("static", "attentive")
    )
    fmb_activation: str = option(
        "none",
        "After the FM block's MLP. Public implementations disagree; the paper prints none.",
        choices=("none", "relu"),
    )
    residual_bias: bool = option(False, "A bias in the residual's token compression.")
    cross_layer_attention: bool = option(False, "Tokens also attend to the tokens of all earlier layers.")
    dropout: float = option(0.0, "After each hidden layer of the FM block's MLP.", ge=0, lt=1)
    without: tuple[str, ...] = option(
        (),
        "Parts that are left out, as in the paper's ablation: the FM block, the linear compression, the residual.",
        choices=PARTS,
    )

    def check(self) -> None:
        if {"fm", "linear"} <= set(self.without):
            raise GemkitError("a layer without fm and linear has no output", where="without", allowed="one of the two")

    def check_run(self, run: RunConfig) -> None:
        self.fm_tokens(run.size.num_tokens)

    def fm_tokens(self, num_tokens: int) -> int:
        """n_F of a layer that `num_tokens` tokens leave; the part that stays alone makes all of them.

        Raises:
            GemkitError: It leaves no token for the linear compression.
        """
        if {"fm", "linear"} & set(self.without):
            return num_tokens if "linear" in self.without else 0
        num_fm = self.num_fm_tokens or (num_tokens + 1) // 2
        if num_fm < num_tokens:
            return num_fm
        if self.num_fm_tokens is None or num_tokens == 1:
            raise GemkitError(
                f"size.num_tokens = {num_tokens} leaves no token for interaction=wukong's linear compression",
                where="size.num_tokens",
                allowed=">= 2",
            )
        raise GemkitError(
            f"interaction.num_fm_tokens = {num_fm} leaves no token for the linear compression",
            where="interaction.num_fm_tokens",
            allowed=f"1 to {num_tokens - 1} (size.num_tokens is {num_tokens})",
            fix="lower it, or raise size.num_tokens",
        )


class FactorizationMachineBlock(nn.Module):
    """`reshape(MLP(LN(flatten(X (X^T Y)))), (n_F, D))`.

    Paper: Wukong (arXiv 2403.02545), section 3.4, the optimised FM of section 3.6: cost O(N k D).
    Differs: `attentive` makes Y (N, k) from two token-compressed views of X; the paper leaves shapes open.
    """

    def __init__(self, config: WukongConfig, num_tokens: int, dim: int, num_fm_tokens: int) -> None:
        super().__init__()
        self.num_fm_tokens = num_fm_tokens
        self.attentive = config.projection == "attentive"
        if self.attentive:
            self.compress = TokenLinear(num_tokens, config.rank)
            self.attend = mlp(dim, (dim,), num_tokens)
        else:
            self.projection = TokenLinear(num_tokens, config.rank)
        self.norm = nn.LayerNorm(num_tokens * config.rank)
        self.mlp = mlp(num_tokens * config.rank, config.hidden, num_fm_tokens * dim, config.dropout)
        self.activation = F.relu if config.fmb_activation == "relu" else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (B, N, D) -> (B, n_F, D)."""
        y = self.attend(self.compress(x)).softmax(-1) if self.attentive else self.projection.weight
        products = fm_block(x, y, self.norm.weight, self.norm.bias)
        tokens = self.activation(self.mlp(products))
        return tokens.view(x.shape[0], self.num_fm_tokens, tokens.shape[1] // self.num_fm_tokens)


class LinearCompressBlock(TokenLinear):
    """`W_L X`: keeps the orders of interaction that the layer received.

    Paper: Wukong (arXiv 2403.02545), section 3.5.

    Shape: (B, N, D) -> (B, n_L, D).
    """


class CrossLayerAttention(nn.Module):
    """Tokens of this layer (queries) attend to the tokens of all earlier layers (keys and values).

    Paper: named, not specified, in Meta's GEM post of 2025-11-10.
    Differs: our reading: one head, residual and LayerNorm.
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(dim, dim) for _ in range(3))
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """Shape: (B, N, D) -> (B, N, D)."""
        memory = torch.cat(list(earlier), dim=1)
        mixed = F.scaled_dot_product_attention(self.query(x), self.key(memory), self.value(memory))
        out: Tensor = self.norm(x + mixed)
        return out


@component("interaction", WukongConfig)
class Wukong(InteractionModule):
    """Stacked factorization machines: layer i carries interactions of order 1 to 2^i.

    `X_out = LN(concat(FMB(X), LCB(X)) + X)`, with X linearly compressed over the token axis where the
    number of tokens changes.

    Paper: Wukong (arXiv 2403.02545), equation 1 and sections 3.4 to 3.6.
    Differs: cross-layer attention is an option, off by default; `without` leaves parts out, as section 5 of the paper
        does, and the part that stays makes all tokens.
    """

    def __init__(self, config: WukongConfig, context: BuildContext) -> None:
        super().__init__()
        self.num_tokens_out = context.num_tokens_out
        num_fm = config.fm_tokens(self.num_tokens_out)
        n, d = context.num_tokens_in, context.dim
        self.fm = FactorizationMachineBlock(config, n, d, num_fm) if num_fm else None
        self.linear = LinearCompressBlock(n, self.num_tokens_out - num_fm) if num_fm < self.num_tokens_out else None
        self.residual: nn.Module | None = nn.Identity()
        if "residual" in config.without:
            self.residual = None
        elif n != self.num_tokens_out:
            self.residual = TokenLinear(n, self.num_tokens_out, config.residual_bias)
        self.norm = nn.LayerNorm(d)
        self.attention = CrossLayerAttention(d) if config.cross_layer_attention and context.layer > 0 else None

    def forward(self, x: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """Shape: x (B, N, D) -> (B, num_tokens_out, D)."""
        tokens = torch.cat([part(x) for part in (self.fm, self.linear) if part is not None], dim=1)
        out: Tensor = self.norm(tokens if self.residual is None else tokens + self.residual(x))
        if self.attention is not None and earlier:
            out = self.attention(out, earlier)
        return out
