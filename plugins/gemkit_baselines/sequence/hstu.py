"""Attention without softmax, whose strength is how much there is of something."""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.interfaces import BuildContext, Events, SequenceEncoder
from gemkit.nn.ages import AgeEmbedding, age_bucket
from gemkit_baselines.sequence.buckets import BucketPlan, bucket_plan, from_buckets, to_buckets, valid_slots

TILE = 256
"""Events whose scores are made at a time: they fit a cache, and a causal mask leaves out what is newer."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class HSTUConfig(Config):
    """Options of one layer."""

    width_field: ClassVar[str | None] = "expansion"

    name: str = "hstu"
    num_heads: int = option(2, "H, attention heads.", ge=1, le=1024)
    expansion: float = option(
        1.0, "Width of U, V, Q and K each, over all heads, in units of D; rounded to whole heads.", gt=0, le=64
    )
    causal: bool = option(True, "Events see themselves and older ones only; CLS tokens see all, and all see them.")
    scale: str = option(
        "none",
        "What scores are divided by before SiLU: nothing, as printed, or the square root of a head's width, as "
        "torch-rechub has it.",
        choices=("none", "sqrt"),
    )
    length: int | None = option(
        None,
        "n, by which attention is divided; null: the tokens of each history. Code that pads has the padded length.",
        ge=1,
    )
    num_positions: int = option(
        256, "Distances in events with a bias of their own; farther ones share the last. 0: no bias.", ge=0, le=65536
    )
    time_buckets: int = option(64, "Log-spaced buckets of the time between two events; 0: no bias.", ge=0, le=4096)
    age_buckets: int = option(
        32, "Log-spaced buckets of event age, embedded in the first layer; 0: none.", ge=0, le=4096
    )
    dropout: float = option(0.0, "Before the last linear map.", ge=0, lt=1)


class RelativeBias(nn.Module):
    """rab: one number for the distance of two events in the sequence, and one for that in time.

    Shape: distance (L, M) in events, query minus key, and between_s (R, L, M) seconds -> (1 or R, L, M).
    """

    def __init__(self, num_positions: int, time_buckets: int) -> None:
        super().__init__()
        self.position = nn.Parameter(torch.empty(2 * num_positions - 1)) if num_positions else None
        self.time = nn.Parameter(torch.empty(time_buckets)) if time_buckets else None
        self.reset_parameters()

    def reset_parameters(self) -> None:
        for table in self.parameters(recurse=False):
            nn.init.normal_(table, std=0.02)

    def forward(self, distance: Tensor, between_s: Tensor) -> Tensor:
        parts = []
        if self.position is not None:
            last = self.position.shape[0] // 2
            parts.append(_look_up(self.position, distance.clamp(-last, last) + last).unsqueeze(0))
        if self.time is not None:
            parts.append(_look_up(self.time, age_bucket(between_s, self.time.shape[0])))
        return sum(parts[1:], parts[0])


def _look_up(table: Tensor, index: Tensor) -> Tensor:
    # A tenth of the time of `F.embedding`, whose gradient is added row by row.
    return table.index_select(0, index.view(-1)).view(index.shape)


@component("sequence", HSTUConfig)
class HSTU(SequenceEncoder):
    """Gated attention whose weights are SiLU of the scores, so that they say how much, not only which share.

    `U, V, Q, K = SiLU(f1(LN(X)))`; `A V = SiLU(Q K^T + rab) V / n`; `Y = X + f2(LN(A V) * U)`.

    Paper: Actions Speak Louder than Words (arXiv 2402.17152), section 3: its three sub-layers.
    Differs: LayerNorm before f1 and the residual are those of the authors' code; n is the history's own number of
        tokens, not a padded one; rab is the same for all heads; CLS tokens are tokens without rab; the target is not in
        the sequence, so the age of an event is added in the first layer. Not fused: memory O(L^2), time too.
    """

    def __init__(self, config: HSTUConfig, context: BuildContext) -> None:
        super().__init__()
        dim, heads = context.dim, config.num_heads
        head_dim = max(round(config.expansion * dim / heads), 1)
        self.num_heads, self.causal, self.length, self.dropout = heads, config.causal, config.length, config.dropout
        self.scale = 1 / math.sqrt(head_dim) if config.scale == "sqrt" else 1.0
        self.ages = AgeEmbedding(config.age_buckets, dim) if config.age_buckets and context.layer == 0 else None
        self.norm = nn.LayerNorm(dim)
        self.uvqk = nn.Linear(dim, 4 * heads * head_dim)
        has_bias = bool(config.num_positions or config.time_buckets)
        self.bias = RelativeBias(config.num_positions, config.time_buckets) if has_bias else None
        self.mixed_norm = nn.LayerNorm(heads * head_dim)
        self.out = nn.Linear(heads * head_dim, dim)

    def plan(self, lengths: np.ndarray) -> BucketPlan:
        """Histories of about one length side by side."""
        return bucket_plan(lengths)

    def forward(self, events: Events, query: Tensor) -> Events:
        """Shape: values (T, D) -> (T, D), cls (U, S, D) -> (U, S, D)."""
        plan: BucketPlan = events.layout.plan
        values, cls = events.values, events.cls
        if self.ages is not None:
            values = values + self.ages(events.ages)
        u, vqk = self._project(values)
        cls_u, cls_vqk = self._project(cls)
        buckets, valid = to_buckets(vqk, cls_vqk, plan), valid_slots(plan)
        ages = to_buckets(events.ages.unsqueeze(-1), cls.new_zeros(cls.shape[0], 0, 1), plan)
        mixed = [self._attend(b, v, a.squeeze(-1)) for b, v, a in zip(buckets, valid, ages, strict=True)]
        mixed_values, mixed_cls = from_buckets(mixed, plan)
        return events._replace(values=self._add(values, u, mixed_values), cls=self._add(cls, cls_u, mixed_cls))

    def _project(self, x: Tensor) -> tuple[Tensor, Tensor]:
        uvqk = F.silu(self.uvqk(self.norm(x)))
        width = uvqk.shape[-1] // 4
        return uvqk[..., :width], uvqk[..., width:]

    def _attend(self, vqk: Tensor, valid: Tensor, ages: Tensor) -> Tensor:
        """Shape: (R, L + S, 3 H E), valid (R, L), ages (R, L) -> (R, L + S, H E)."""
        rows, tokens, width = vqk.shape
        length = ages.shape[1]
        heads = vqk.view(rows, tokens, 3, self.num_heads, width // 3 // self.num_heads).permute(2, 0, 3, 1, 4)
        (v, cls_v), (q, cls_q), (k, cls_k) = (x.split([length, tokens - length], dim=2) for x in heads)
        tiles = []
        for start in range(0, length, TILE):
            end = min(start + TILE, length)
            last = end if self.causal else length
            weights = self._weights(q[:, :, start:end], k[:, :, :last], valid[:, :last], ages, start)
            tiles.append(weights @ v[:, :, :last])
        # Nothing is shared out among the keys, so events and CLS tokens add up.
        mixed = torch.cat(tiles, dim=2) + F.silu(q @ cls_k.transpose(2, 3) * self.scale) @ cls_v
        seen = F.silu(cls_q @ k.transpose(2, 3) * self.scale).masked_fill(~valid[:, None, None, :], 0.0)
        mixed_cls = seen @ v + F.silu(cls_q @ cls_k.transpose(2, 3) * self.scale) @ cls_v
        n = self.length or (valid.sum(-1) + tokens - length).clamp(min=1)[:, None, None, None]
        return (torch.cat([mixed, mixed_cls], dim=2) / n).transpose(1, 2).flatten(2)

    def _weights(self, q: Tensor, k: Tensor, valid: Tensor, ages: Tensor, start: int) -> Tensor:
        """`SiLU(Q K^T + rab)` of the events from `start` on, zero where a key is not seen.

        Shape: q (R, H, L', E), k (R, H, M, E), valid (R, M), ages (R, L) -> (R, H, L', M).
        """
        scores = q @ k.transpose(2, 3) * self.scale
        query, key = start + torch.arange(q.shape[2], device=q.device), torch.arange(k.shape[2], device=q.device)
        distance = query.unsqueeze(1) - key
        if self.bias is not None:
            between_s = (ages[:, None, : k.shape[2]] - ages[:, start : start + q.shape[2], None]).abs()
            scores = scores + self.bias(distance, between_s).unsqueeze(1)
        visible = valid.unsqueeze(1)
        if self.causal:
            visible = visible & (distance >= 0)
        return F.silu(scores).masked_fill(~visible.unsqueeze(1), 0.0)

    def _add(self, x: Tensor, u: Tensor, mixed: Tensor) -> Tensor:
        y: Tensor = self.out(F.dropout(self.mixed_norm(mixed) * u, self.dropout, self.training))
        return x + y
