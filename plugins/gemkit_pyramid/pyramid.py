"""Pyramid-parallel encoder: chunks at the bottom, summaries above, the whole journey at the top."""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import numpy as np
import torch
from gemkit_kernels.chunk_attention import chunk_attention
from gemkit_kernels.jagged_attention import jagged_attention
from gemkit_kernels.jagged_pool import jagged_pool
from torch import Tensor, nn
from torch.nn import functional as F

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.config.run import RunConfig
from gemkit.interfaces import BuildContext, Events, SequenceEncoder
from gemkit.nn.ages import AgeEmbedding
from gemkit.nn.attention import SelfAttention, check_head_width
from gemkit.nn.jagged import ChunkPlan, chunk_plan, from_chunks, to_chunks
from gemkit.nn.layers import mlp
from gemkit.nn.packed import pack, unpack


@dataclasses.dataclass(frozen=True, kw_only=True)
class PyramidConfig(Config):
    """Options of one pyramid layer."""

    name: str = "pyramid"
    chunk_sizes: tuple[int, ...] = option(
        (16,), "Slots of a chunk: of events at the bottom, then of summaries at each level up.", ge=2, le=4096
    )
    num_summaries: int = option(2, "m, learned summaries of each chunk.", ge=1, le=1024)
    num_heads: int = option(2, "H, attention heads; size.dim / H must be even.", ge=1, le=1024)
    qk_norm: bool = option(False, "RMSNorm of each head's queries and keys, as the post of 2026-08-03 names it.")
    position: str = option(
        "rotary",
        "How attention knows distances: rotary positions, or a learned bias for each head and distance. The posts say "
        "neither.",
        choices=("rotary", "bias"),
    )
    num_parallel: int = option(
        1, "P, attention modules side by side at each chunk level; their outputs add up.", ge=1, le=64
    )
    ffn_ratio: float = option(
        1.0, "Hidden width of the feed-forward after attention, in units of D; 0: none.", ge=0, le=64
    )
    align: str = option(
        "newest",
        "Which end of the history its full chunks start from. `oldest` keeps chunks fixed as events "
        "arrive (cacheable).",
        choices=("newest", "oldest"),
    )
    age_buckets: int = option(
        32, "Log-spaced buckets of event age, embedded in the first layer; 0: none.", ge=0, le=4096
    )
    dropout: float = option(0.0, "On the attention's and the feed-forward's outputs.", ge=0, lt=1)

    def check_run(self, run: RunConfig) -> None:
        check_head_width(self.num_heads, run.size.dim)


TOP_POSITIONS = 128
"""Distances of summaries at the top that a learned bias tells apart."""


class Chunks(NamedTuple):
    """The chunks of one level.

    Attributes:
        starts: (K+1,) int32, the first row of each chunk, and the number of rows.
        slots: The same chunks as regular shapes.
    """

    starts: Tensor
    slots: ChunkPlan


class PyramidPlan(NamedTuple):
    """Index tensors of one batch: the chunks of each level, and one chunk a history for the top."""

    levels: tuple[Chunks, ...]
    top: ChunkPlan


class Summarise(nn.Module):
    """Learned queries pool each chunk into m summaries.

    Shape: (T, D) -> (K, m, D).
    """

    def __init__(self, dim: int, num_summaries: int) -> None:
        super().__init__()
        self.queries = nn.Parameter(torch.empty(num_summaries, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.queries, std=self.queries.shape[1] ** -0.5)

    def forward(self, values: Tensor, chunks: Chunks) -> Tensor:
        if values.is_cuda:
            return jagged_pool(self.queries.to(values.dtype), values, None, chunks.starts, num_heads=1)
        # Chunks of one shape, whose places are known already, are faster on a CPU.
        slots = to_chunks(values, chunks.slots)
        scores = slots @ self.queries.t() / math.sqrt(slots.shape[-1])
        weights = scores.masked_fill(~chunks.slots.valid.unsqueeze(-1), -torch.inf).softmax(dim=1)
        return torch.bmm(weights.transpose(1, 2), slots)


class ChunkAttention(SelfAttention):
    """Self-attention inside chunks of jagged rows.

    Shape: (T, D) -> (T, D).
    """

    def forward(self, x: Tensor, chunks: Chunks) -> Tensor:  # type: ignore[override]
        if self.bias is not None:  # the kernels know no learned bias
            slots = chunks.slots
            return from_chunks(super().forward(to_chunks(x, slots), slots.valid), slots)
        gains = None if self.qk_norm is None else torch.stack([self.qk_norm.query.weight, self.qk_norm.key.weight])
        size = chunks.slots.gather.shape[1]
        mixed, _ = chunk_attention(self.qkv(x), chunks.starts, size, self.num_heads, norm_gains=gains)
        out: Tensor = self.out(mixed)
        return out


class ChunkLevel(nn.Module):
    """Attention inside chunks, feed-forward, and the chunks' summaries; and the way back down."""

    def __init__(self, config: PyramidConfig, dim: int, size: int) -> None:
        super().__init__()
        positions = size if config.position == "bias" else 0
        self.attention = nn.ModuleList(
            ChunkAttention(dim, config.num_heads, config.qk_norm, positions) for _ in range(config.num_parallel)
        )
        self.norm = nn.LayerNorm(dim)
        hidden = round(config.ffn_ratio * dim)
        self.ffn = mlp(dim, (hidden,), dim) if hidden else None
        self.ffn_norm = nn.LayerNorm(dim) if hidden else None
        self.summarise = Summarise(dim, config.num_summaries)
        self.down = nn.Linear(dim, dim)
        self.gate = nn.Linear(dim, dim)
        self.num_summaries = config.num_summaries
        self.dropout = config.dropout

    def up(self, values: Tensor, chunks: Chunks) -> tuple[Tensor, Tensor]:
        """Shape: (T, D) -> (T, D), summaries (K * m, D)."""
        normed = self.norm(values)
        for attend in self.attention:
            values = values + F.dropout(attend(normed, chunks), self.dropout, self.training)
        if self.ffn is not None and self.ffn_norm is not None:
            values = values + F.dropout(self.ffn(self.ffn_norm(values)), self.dropout, self.training)
        summaries: Tensor = self.summarise(values, chunks)
        return values, summaries.flatten(0, 1)

    def back(self, values: Tensor, summaries: Tensor, chunks: Chunks) -> Tensor:
        """Adds to each row its chunk's summary as the levels above have changed it.

        Shape: (T, D), (K * m, D) -> (T, D).
        """
        context = summaries.view(-1, self.num_summaries, summaries.shape[-1]).mean(1)
        update = torch.sigmoid(self.gate(context)) * self.down(context)
        of_slots = update.unsqueeze(1).expand(*chunks.slots.gather.shape, -1)
        return values + from_chunks(of_slots, chunks.slots)


class TopLevel(nn.Module):
    """Full attention over one history's summaries and its CLS tokens.

    Shape: (M, D), cls (U, S, D) -> the same.
    """

    def __init__(self, config: PyramidConfig, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(dim)
        positions = TOP_POSITIONS if config.position == "bias" else 0
        self.attention = SelfAttention(dim, config.num_heads, config.qk_norm, positions)
        self.cls_first = config.align == "oldest"

    def forward(self, summaries: Tensor, cls: Tensor, plan: ChunkPlan) -> tuple[Tensor, Tensor]:
        if summaries.is_cuda and self.attention.bias is None and not self.cls_first:
            return self.jagged(summaries, cls, plan)
        present = plan.valid.new_ones(cls.shape[:2])
        # CLS tokens stand at the end that is not padded: their distance to the summaries, which is what rotary
        # positions see, then does not depend on the longest history of the batch.
        parts, valid = [to_chunks(summaries, plan), cls], [plan.valid, present]
        if self.cls_first:
            parts, valid = parts[::-1], valid[::-1]
        tokens = torch.cat(parts, dim=1)
        mixed = tokens + self.attention(self.norm(tokens), torch.cat(valid, dim=1))
        first, second = mixed.split([part.shape[1] for part in parts], dim=1)
        rows, cls = (second, first) if self.cls_first else (first, second)
        return from_chunks(rows, plan), cls

    def jagged(self, summaries: Tensor, cls: Tensor, plan: ChunkPlan) -> tuple[Tensor, Tensor]:
        """`forward` without padding, for GPUs: rotary positions, CLS tokens after the newest summary."""
        offsets = F.pad(plan.valid.sum(1).cumsum(0), (1, 0))
        tokens, ends = pack(summaries, cls, offsets)
        attend = self.attention
        qkv = attend.qkv(self.norm(tokens))
        if attend.qk_norm is not None:
            qkv = attend.qk_norm(qkv)
        longest = plan.gather.shape[1] + cls.shape[1]
        mixed = tokens + attend.out(jagged_attention(qkv, ends, longest, attend.num_heads))
        return unpack(mixed, offsets, cls.shape[1])


@component("sequence", PyramidConfig)
class PyramidEncoder(SequenceEncoder):
    """History in chunks, all of them in parallel; summaries carry the whole journey back to every event.

    Level 0 attends inside non-overlapping chunks of each user's history. Learned queries pool each chunk into
    m summaries, the sequence of the next level; full attention (with the CLS tokens) at the top. On the way
    down each event receives its chunk's summary, gated, so that after one layer every event has seen the whole
    history at cost O(T * chunk). One vector per event comes out.

    Paper: Meta's GEM posts of 2025-11-10 and 2026-08-03, which describe the idea without equations.
    Differs: all shapes are our reading: pre-norm residuals, rotary positions inside chunks, log-bucketed age
        added in the first layer, gating per chunk.
    """

    def __init__(self, config: PyramidConfig, context: BuildContext) -> None:
        super().__init__()
        dim = context.dim
        check_head_width(config.num_heads, dim)
        self.config = config
        self.levels = nn.ModuleList(ChunkLevel(config, dim, size) for size in config.chunk_sizes)
        self.top = TopLevel(config, dim)
        self.ages = AgeEmbedding(config.age_buckets, dim) if config.age_buckets and context.layer == 0 else None

    def plan(self, lengths: np.ndarray) -> PyramidPlan:
        """Chunks of every level, and one padded row of top-level summaries for each history."""
        levels = []
        for size in self.config.chunk_sizes:
            # Slots that no history of the batch fills would only take memory; whole 16s keep shapes few.
            size = min(size, max(16, -(-int(lengths.max(initial=0)) // 16) * 16))
            slots = chunk_plan(lengths, size, self.config.align)
            starts = np.concatenate(([0], np.cumsum(slots.valid.numpy().sum(1)))).astype(np.int32)
            levels.append(Chunks(torch.from_numpy(starts), slots))
            lengths = slots.counts.numpy() * self.config.num_summaries
        top = chunk_rows(lengths, self.config.align)
        return PyramidPlan(tuple(levels), top)

    def forward(self, events: Events, query: Tensor) -> Events:
        """Shape: values (T, D) -> (T, D), cls (U, S, D) -> (U, S, D)."""
        plan: PyramidPlan = events.layout.plan
        values = events.values
        if self.ages is not None:
            values = values + self.ages(events.ages)
        levels: list[Any] = [*self.levels]
        stack = []
        for level, chunks_of in zip(levels, plan.levels, strict=True):
            rows, values = level.up(values, chunks_of)
            stack.append(rows)
        values, cls = self.top(values, events.cls, plan.top)
        for level, chunks_of, rows in zip(reversed(levels), reversed(plan.levels), reversed(stack), strict=True):
            values = level.back(rows, values, chunks_of)
        return events._replace(values=values, cls=cls)


def chunk_rows(lengths: np.ndarray, align: str) -> ChunkPlan:
    """One chunk for each history, as wide as the longest; an empty history owns an all-invalid one.

    Shape: gather (U, longest).
    """
    width = max(int(lengths.max(initial=0)), 1)
    offsets = np.concatenate(([0], np.cumsum(lengths)))
    padding = (width - lengths) if align == "newest" else np.zeros_like(lengths)
    slot = np.arange(width)[None, :] - padding[:, None]
    valid = (slot >= 0) & (slot < lengths[:, None])
    gather = np.where(valid, offsets[:-1, None] + slot, 0)
    return ChunkPlan(
        torch.from_numpy(gather),
        torch.from_numpy(valid),
        torch.from_numpy(np.flatnonzero(valid)),
        torch.arange(len(lengths)),
        torch.ones(len(lengths), dtype=torch.int64),
    )
