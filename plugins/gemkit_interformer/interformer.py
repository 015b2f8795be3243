"""InterFormer's Cross Arch: what each side of a block may see of the other."""

from __future__ import annotations

import dataclasses

import torch
from gemkit_kernels.jagged_pool import jagged_pool
from torch import Tensor, nn

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.config.run import RunConfig
from gemkit.errors import GemkitError
from gemkit.interfaces import BuildContext, CrossFeatureLayer, Events
from gemkit.nn.jagged import newest, segment_mean
from gemkit.nn.layers import PoolingByAttention
from gemkit_interformer.pffn import check_heads, make_pffn
from gemkit_interformer.summary import Gating, TokenSummary

FLOWS = ("sole", "sep", "n2s", "s2n", "int")


@dataclasses.dataclass(frozen=True, kw_only=True)
class InterFormerConfig(Config):
    """Options of one Cross Arch layer."""

    name: str = "interformer"
    flow: str = option(
        "int",
        "Who informs whom: `sole` pools the events early into one token and keeps no sequence side; `sep` none "
        "before the readout; `n2s` tokens inform events; `s2n` events inform tokens; `int` both.",
        choices=FLOWS,
    )
    num_cls: int = option(
        4,
        "n_sum, tokens that summarise x; put beside the events once, as CLS, by the first layer that informs events.",
        ge=1,
        le=1024,
    )
    num_pma: int = option(2, "Learned queries that pool the events.", ge=1, le=1024)
    num_recent: int = option(2, "Newest events that the tokens see as they are.", ge=0, le=1024)
    gating: str = option(
        "printed",
        "`printed`: sigmoid(X * MLP(X)), as in the paper; `gate`: sigmoid(MLP(X)) * X, as in re-implementations.",
        choices=("printed", "gate"),
    )
    pffn: str = option(
        "linear",
        "How the events are personalised: by a (D, D) matrix that one linear map, or an MLP, makes "
        "from X_sum; or by attention without softmax (GDPA).",
        choices=("linear", "mlp", "gdpa"),
    )
    pffn_residual: bool = option(True, "Adds the events to their personalised form, so that layers stack.")
    gdpa_heads: int = option(2, "Heads of GDPA; must divide size.dim.", ge=1, le=1024)
    personalise_from: str = option(
        "user",
        "Tokens that personalise the events. `user` lets the examples of one user at one time share their history "
        "(on MovieLens-1M half the work); `all`, the paper's way, gives each example a copy of its own.",
        choices=("user", "all"),
    )

    def check_run(self, run: RunConfig) -> None:
        if self.pffn == "gdpa" and self.flow in ("n2s", "int"):
            check_heads(self.gdpa_heads, run.size.dim)


@component("cross", InterFormerConfig)
class InterFormer(CrossFeatureLayer):
    """Tokens receive selected events; events are personalised by a summary of the tokens.

    `X_sum = Gating(MLP(X))` over the token axis; `S_sum = Gating([S_CLS || S_PMA || S_recent])` joins the
    tokens; `PFFN(X_sum, S) = f(X_sum) S` changes the events. X_sum of the first layer that informs the events is
    prepended to S once, as CLS.

    Paper: InterFormer (arXiv 2411.09852), section 4, the Cross Arch; GDPA after Kunlun (arXiv 2602.10016).
    Differs: PFFN has a residual and a LayerNorm, which stacking needs and the equations omit; by default
        (`personalise_from=user`) X_sum on its way to the events is made from the user's tokens as the
        tokenizer made them, so that examples can share a history.
    """

    def __init__(self, config: InterFormerConfig, context: BuildContext) -> None:
        super().__init__()
        dim = context.dim
        self.config = config
        to_tokens = config.flow in ("s2n", "int")
        to_events = config.flow in ("n2s", "int")
        self.passes_events = config.flow != "sole"
        self.shares_histories = not to_events or config.personalise_from == "user"
        self.first = context.num_cls == 0
        self.num_cls_added = config.num_cls if to_events and self.first else 0
        num_summary = context.num_cls + self.num_cls_added + config.num_pma + config.num_recent
        self.num_tokens_added = 1 if config.flow == "sole" else num_summary if to_tokens else 0

        if to_events:
            self.from_user = config.personalise_from == "user"
            if self.from_user and not context.tokens_of("user"):
                raise GemkitError(
                    f"cross.personalise_from = user, and the data set '{context.schema.name}' has no user feature",
                    where="cross.personalise_from",
                    fix="cross.personalise_from=all, or give a feature the role 'user'",
                )
            num_tokens = len(context.tokens_of("user")) if self.from_user else context.num_tokens_in
            self.token_summary = TokenSummary(num_tokens, config.num_cls, dim, config.gating)
            self.pffn: nn.Module | None = make_pffn(config.pffn, config.num_cls, dim, config.gdpa_heads)
            self.event_norm = nn.LayerNorm(dim)
        else:
            self.pffn = None
        if to_tokens:
            self.pma: PoolingByAttention | None = PoolingByAttention(dim, config.num_pma)
            self.summary_norm = nn.LayerNorm(dim)
            self.summary_gate = Gating(dim, config.gating)
        else:
            self.pma = None

    def forward(self, x: Tensor, events: Events) -> tuple[Tensor, Events | None]:
        """Shape: x (B, N, D) -> (B, N + num_tokens_added, D); events.values (T, D) -> (T, D)."""
        if not self.passes_events:
            pooled = segment_mean(events.values, events.offsets).index_select(0, events.history_index)
            return torch.cat([x, pooled.unsqueeze(1)], dim=1), None
        summary = None
        if self.pffn is not None:
            summary = self.token_summary(events.owner if self.from_user else x)
            if self.first:
                events = events._replace(cls=torch.cat([events.cls, summary], dim=1))
        if self.pma is not None:
            x = torch.cat([x, self.summarise(events)], dim=1)
        if self.pffn is not None:
            personal = self.pffn(summary, self.event_norm(events.values), events)
            values = events.values + personal if self.config.pffn_residual else personal
            events = events._replace(values=values)
        return x, events

    def summarise(self, events: Events) -> Tensor:
        """S_sum of each example. Shape: events -> (B, S + num_pma + num_recent, D)."""
        assert self.pma is not None
        if events.values.is_cuda:
            pooled = pool_jagged(self.pma, events.values, events.offsets)
        else:  # the batch's own chunks, which the host has made, are quicker on a CPU
            pooled = self.pma(events.values, events.offsets, events.layout.chunks)
        parts = [events.cls, pooled]
        if self.config.num_recent:
            parts.append(newest(events.values, events.offsets, self.config.num_recent))
        summary: Tensor = self.summary_gate(self.summary_norm(torch.cat(parts, dim=1)))
        return summary.index_select(0, events.history_index)


def pool_jagged(pma: PoolingByAttention, values: Tensor, offsets: Tensor) -> Tensor:
    """What `pma` computes, by an operation that needs no chunks.

    Shape: (T, D), (U+1,) -> (U, num_queries, D).
    """
    device = values.device.type
    # Autocast knows products of PyTorch only.
    rows = values.to(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else values
    pooled = jagged_pool(pma.queries.to(rows.dtype), rows, None, offsets, num_heads=1)
    filled = (offsets.diff() > 0).to(values.dtype)[:, None, None]
    out: Tensor = pma.value(pooled) * filled
    return out
