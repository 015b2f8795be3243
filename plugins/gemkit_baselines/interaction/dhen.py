"""DHEN: an ensemble of interaction modules in every layer."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from gemkit.component import NONE, component
from gemkit.config.fields import Config, option, shown
from gemkit.errors import GemkitError
from gemkit.interfaces import BuildContext, InteractionModule
from gemkit.nn.layers import TokenLinear

if TYPE_CHECKING:
    from gemkit.config.run import RunConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class DHENConfig(Config):
    """Options of a DHEN layer."""

    name: str = "dhen"
    members: tuple[Any, ...] = option(
        ("dlrm", "dcnv2"),
        "The ensemble: names of interaction modules, or mappings with a name and options.",
        filled=True,
    )
    ensemble: str = option(
        "concat",
        "How the members' outputs become one: each makes some of the tokens; or all make all tokens, which are added "
        "up, with learned weights if asked for.",
        choices=("concat", "sum", "weighted_sum"),
    )

    def check(self) -> None:
        for i, member in enumerate(self.members):
            name = member.get("name") if isinstance(member, Mapping) else member
            if not isinstance(name, str) or name == NONE:
                raise GemkitError(
                    f"members[{i}] = {shown(member)} names no interaction module",
                    where=f"members[{i}]",
                    allowed="a name, or a mapping with a name and options",
                    fix="members=[dlrm,{name:dcnv2,rank:8}]",
                )

    def check_run(self, run: RunConfig) -> None:
        self.tokens_of_members(run.size.num_tokens)

    def tokens_of_members(self, num_tokens: int) -> list[int]:
        """How many of a layer's `num_tokens` tokens each member makes.

        Raises:
            GemkitError: There are fewer tokens than members that share them.
        """
        count = len(self.members)
        if self.ensemble != "concat":
            return [num_tokens] * count
        if count > num_tokens:
            raise GemkitError(
                f"interaction.members = {count} modules share size.num_tokens = {num_tokens} tokens",
                where="interaction.members",
                allowed=f"at most {num_tokens} members",
                fix=f"size.num_tokens={count}, or interaction.ensemble=sum",
            )
        return [num_tokens // count + (i < num_tokens % count) for i in range(count)]


@component("interaction", DHENConfig)
class DHEN(InteractionModule):
    """Different interaction modules side by side, as one layer.

    `X_out = LN(ensemble(I_1(X), ..., I_k(X)) + shortcut(X))`; the shortcut is X itself, or, where the number of
    tokens changes, a linear map over the token axis.

    Paper: DHEN (arXiv 2203.11014), the equations of a layer and of its shortcut.
    Differs: members are registered modules, with the norms and residuals that they bring along; they make the number
        of tokens that they are asked for, so no linear map follows them.
    """

    def __init__(self, config: DHENConfig, context: BuildContext) -> None:
        super().__init__()
        self.num_tokens_out = context.num_tokens_out
        self.is_concat = config.ensemble == "concat"
        counts = config.tokens_of_members(self.num_tokens_out)
        self.members = nn.ModuleList(
            _member(context, i, member, count)
            for i, (member, count) in enumerate(zip(config.members, counts, strict=True))
        )
        self.weights = MemberWeights(len(counts)) if config.ensemble == "weighted_sum" else None
        same = context.num_tokens_in == self.num_tokens_out
        self.shortcut = nn.Identity() if same else TokenLinear(context.num_tokens_in, self.num_tokens_out)
        self.norm = nn.LayerNorm(context.dim)

    def forward(self, x: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """Shape: x (B, N, D) -> (B, num_tokens_out, D)."""
        outputs = [member(x, earlier) for member in self.members]
        if self.weights is not None:
            outputs = self.weights(outputs)
        tokens = torch.cat(outputs, dim=1) if self.is_concat else torch.stack(outputs).sum(0)
        out: Tensor = self.norm(tokens + self.shortcut(x))
        return out


class MemberWeights(nn.Module):
    """Multiplies each member's output by a learned number that starts at 1. Shape: k x (B, N, D) -> k x (B, N, D)."""

    def __init__(self, count: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(count))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.ones_(self.weight)

    def forward(self, outputs: Sequence[Tensor]) -> list[Tensor]:
        return [w * output for w, output in zip(self.weight, outputs, strict=True)]


def _member(context: BuildContext, index: int, member: Any, num_tokens: int) -> InteractionModule:
    try:
        module: InteractionModule = context.build("interaction", member, num_tokens_out=num_tokens)
    except GemkitError as error:
        name, inner = f"interaction.members[{index}]", error.where or ""
        where = inner.replace("interaction", name, 1) if inner.startswith("interaction") else f"{name}, {inner}"
        what = error.what.removeprefix("interaction.")
        raise GemkitError(f"{name}: {what}", where=where, allowed=error.allowed, fix=error.fix) from error
    return module
