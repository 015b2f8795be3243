"""Factorization machines."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import ClassVar

from torch import Tensor, nn

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.interfaces import BuildContext, InteractionModule
from gemkit.nn.layers import TokenLinear, token_linear


@dataclasses.dataclass(frozen=True, kw_only=True)
class FMConfig(Config):
    """Options of a layer of factorization machines."""

    name: str = "fm"
    width_field: ClassVar[str | None] = "num_machines"
    num_machines: int = option(32, "Factorization machines side by side.", ge=1, le=4096)


@component("interaction", FMConfig)
class FM(InteractionModule):
    """Factorization machines of second order, side by side: a linear part and all pairwise interactions of tokens.

    `X_out = LN(W X + C B)`, where row k of B is `sum over i < j of (u_ki x_i) * (u_kj x_j)`.

    Paper: Rendle, Factorization Machines (ICDM 2010), equation 1, and lemma 3.1 for a cost of O(N D) a machine:
        `sum over i < j of a_i * a_j = ((sum a_i)^2 - sum a_i^2) / 2`. Token x_i is the paper's v_i, and u_ki the value
        that feature i has in machine k.
    Differs: a token keeps the D products that the paper's dot product adds up; there are several machines, mapped to
        tokens linearly. The head, which the paper does not have, is an MLP unless `head.hidden=[]`.
    """

    def __init__(self, config: FMConfig, context: BuildContext) -> None:
        super().__init__()
        self.num_tokens_out = context.num_tokens_out
        self.linear = TokenLinear(context.num_tokens_in, self.num_tokens_out)
        self.machines = TokenLinear(context.num_tokens_in, config.num_machines)
        self.combine = TokenLinear(config.num_machines, self.num_tokens_out)
        self.norm = nn.LayerNorm(context.dim)

    def forward(self, x: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """Shape: x (B, N, D) -> (B, num_tokens_out, D)."""
        squares = self.combine(self.machines(x).square())
        # The machines' sums of squares are linear in x^2: C (U^2 x^2) = (C U^2) x^2 needs no row for each machine.
        own_squares = token_linear(self.combine.weight @ self.machines.weight.square(), x.square())
        out: Tensor = self.norm(self.linear(x) + 0.5 * (squares - own_squares))
        return out
