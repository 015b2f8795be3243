"""What the encoders with softmax attention share: one pre-norm layer, the ages of events, the options."""

from __future__ import annotations

import dataclasses
from abc import abstractmethod
from typing import ClassVar

from torch import Tensor, nn
from torch.nn import functional as F

from gemkit.config.fields import Config, option
from gemkit.config.run import RunConfig
from gemkit.interfaces import BuildContext, Events, SequenceEncoder
from gemkit.nn.ages import AgeEmbedding
from gemkit.nn.attention import QKNorm, check_head_width
from gemkit.nn.layers import mlp


@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionConfig(Config):
    """Options that these encoders share; the defaults are the pyramid's."""

    width_field: ClassVar[str | None] = "ffn_ratio"

    num_heads: int = option(2, "H, attention heads; size.dim / H must be even.", ge=1, le=1024)
    qk_norm: bool = option(False, "RMSNorm of each head's queries and keys, before rotary positions.")
    ffn_ratio: float = option(
        1.0, "Hidden width of the feed-forward after attention, in units of D; 0: none.", ge=0, le=64
    )
    age_buckets: int = option(
        32, "Log-spaced buckets of event age, embedded in the first layer; 0: none.", ge=0, le=4096
    )
    dropout: float = option(0.0, "On the attention's and the feed-forward's outputs.", ge=0, lt=1)

    def check_run(self, run: RunConfig) -> None:
        check_head_width(self.num_heads, run.size.dim)


class AttentionEncoder(SequenceEncoder):
    """Attention, which a subclass defines, and a feed-forward, over the events and CLS tokens of each history."""

    def __init__(self, config: AttentionConfig, context: BuildContext) -> None:
        super().__init__()
        dim = context.dim
        check_head_width(config.num_heads, dim)
        self.num_heads, self.dropout = config.num_heads, config.dropout
        self.ages = AgeEmbedding(config.age_buckets, dim) if config.age_buckets and context.layer == 0 else None
        self.norm = nn.LayerNorm(dim)
        self.qkv = nn.Linear(dim, 3 * dim)
        self.qk_norm = QKNorm(config.num_heads, dim // config.num_heads) if config.qk_norm else None
        self.out = nn.Linear(dim, dim)
        hidden = round(config.ffn_ratio * dim)
        self.ffn_norm = nn.LayerNorm(dim) if hidden else None
        self.ffn = mlp(dim, (hidden,), dim) if hidden else None

    @abstractmethod
    def attend(self, qkv: Tensor, cls: Tensor, events: Events) -> tuple[Tensor, Tensor]:
        """Mixes the values of each history.

        Args:
            qkv: Queries, keys and values of the events, side by side.
            cls: Those of the CLS tokens.

        Shape: (T, 3 D), cls (U, S, 3 D) -> (T, D), (U, S, D).
        """

    def forward(self, events: Events, query: Tensor) -> Events:
        """Shape: values (T, D) -> (T, D), cls (U, S, D) -> (U, S, D)."""
        values, cls = events.values, events.cls
        if self.ages is not None:
            values = values + self.ages(events.ages)
        mixed, mixed_cls = self.attend(self._project(values), self._project(cls), events)
        return events._replace(values=self._add(values, mixed), cls=self._add(cls, mixed_cls))

    def _project(self, x: Tensor) -> Tensor:
        qkv: Tensor = self.qkv(self.norm(x))
        return qkv if self.qk_norm is None else self.qk_norm(qkv)

    def _add(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + F.dropout(self.out(mixed), self.dropout, self.training)
        if self.ffn is not None and self.ffn_norm is not None:
            x = x + F.dropout(self.ffn(self.ffn_norm(x)), self.dropout, self.training)
        return x
