"""The whole architecture on one screen.

embedded features -> tokenizer -> x (B, N, D), events (jagged)
each block: cross (what each side may see of the other), then interaction and sequence side by side
readout of both sides -> head
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gemkit.config.run import RunConfig
from gemkit.data.batch import Batch, Layout
from gemkit.data.collate import plain_layout
from gemkit.data.schema import Schema
from gemkit.errors import GemkitError
from gemkit.interfaces import BuildContext, CrossFeatureLayer, Events, InteractionModule, Outputs, SequenceEncoder
from gemkit.nn.jagged import newest
from gemkit.nn.layers import PoolingByAttention

if TYPE_CHECKING:
    from gemkit.registry import Registry


class Block(nn.Module):
    """One layer of each side, and what they exchange. Any of the three may be None."""

    def __init__(
        self,
        cross: CrossFeatureLayer | None,
        interaction: InteractionModule | None,
        sequence: SequenceEncoder | None,
    ) -> None:
        super().__init__()
        self.cross, self.interaction, self.sequence = cross, interaction, sequence

    def forward(
        self, x: Tensor, events: Events | None, query: Tensor, earlier: list[Tensor]
    ) -> tuple[Tensor, Events | None]:
        """Shape: x (B, N, D) -> (B, N', D); events.values (T, D) -> (T, D)."""
        eventless = self.training and events is not None and events.values.shape[0] == 0
        if self.cross is not None and events is not None:
            x, events = self.cross(x, events)
        y = x if self.interaction is None else self.interaction(x, earlier)
        if self.sequence is not None and events is not None:
            events = self.sequence(events, query)
        return (y + reached(self) if eventless else y), events


def reached(*modules: nn.Module | None) -> Tensor:
    """Zero, with a gradient of zero for every parameter.

    Where no history has an event, some parameters are not used. With several processes all must have a gradient for
    the same ones, or they wait for each other.

    Shape: ().
    """
    parameters = [p for module in modules if module is not None for p in module.parameters()]
    return torch.stack([p.flatten()[:0].sum() for p in parameters]).sum()


class Readout(nn.Module):
    """What the head sees: all tokens, and of the events the CLS tokens, two pooled vectors and the newest two.

    Paper: the head of InterFormer (arXiv 2411.09852) reads `[X_sum || S_sum]` of the last layer.
    Differs: x is flattened, as in Wukong (arXiv 2403.02545), not summarised again.
    """

    pooled = 2
    recent = 2

    def __init__(self, num_tokens: int, num_cls: int, dim: int, with_events: bool) -> None:
        super().__init__()
        self.pool = PoolingByAttention(dim, self.pooled) if with_events else None
        self.norm = nn.LayerNorm(dim) if with_events else None
        self.width = dim * (num_tokens + ((num_cls + self.pooled + self.recent) if with_events else 0))

    def forward(self, x: Tensor, events: Events | None) -> Tensor:
        """Shape: x (B, N, D) -> (B, R)."""
        if self.pool is None or self.norm is None or events is None:
            return x.flatten(1)
        summary = torch.cat(
            [
                events.cls,
                self.pool(events.values, events.offsets, events.layout.chunks),
                newest(events.values, events.offsets, self.recent),
            ],
            dim=1,
        )
        summary = self.norm(summary).index_select(0, events.history_index)
        return torch.cat([x, summary], dim=1).flatten(1)


class GEM(nn.Module):
    """The dense part of a model: everything but the embedding tables, which the parallel backend owns."""

    def __init__(self, run: RunConfig, schema: Schema, registry: Registry) -> None:
        super().__init__()
        dim = run.size.dim
        if not run.reads_events:
            schema = dataclasses.replace(schema, event_fields=())
        context = BuildContext(dim=dim, schema=schema, build=registry.build)
        make = registry.build
        self.tokenizer = make("tokenizer", run.tokenizer, context)
        roles = self.tokenizer.roles
        context = dataclasses.replace(context, roles=roles, num_tokens_in=len(roles))
        self.domain = None if run.domain is None else make("domain", run.domain, context)
        self.query_tokens = context.tokens_of("item") or list(range(len(roles)))

        self.reads_events = run.reads_events
        if self.reads_events and not schema.has_events:
            name = next(block.sequence.name for block in run.blocks if block.sequence is not None)
            raise GemkitError(
                f"sequence={name} needs histories, and the data set '{schema.name}' has none",
                where="sequence",
                fix="sequence=none",
            )
        blocks, has_events = [], self.reads_events
        self._shares_histories = True
        for layer, part in enumerate(run.blocks):
            context = dataclasses.replace(context, layer=layer, num_tokens_out=part.num_tokens)
            cross = interaction = sequence = None
            if part.cross is not None and has_events:
                cross = make("cross", part.cross, context)
                context = dataclasses.replace(
                    context,
                    num_tokens_in=context.num_tokens_in + cross.num_tokens_added,
                    num_cls=context.num_cls + cross.num_cls_added,
                )
                has_events = cross.passes_events
                self._shares_histories &= cross.shares_histories
            if part.interaction is not None:
                interaction = make("interaction", part.interaction, context)
                context = dataclasses.replace(context, num_tokens_in=interaction.num_tokens_out)
            if part.sequence is not None and has_events:
                sequence = make("sequence", part.sequence, context)
                self._shares_histories &= sequence.shares_histories
            blocks.append(Block(cross, interaction, sequence))
        self.blocks = nn.ModuleList(blocks)
        self._planners, self._plan_of = _planners(blocks, [part.sequence for part in run.blocks])
        self.readout = Readout(context.num_tokens_in, context.num_cls, dim, has_events)
        self.head = make("head", run.head, dataclasses.replace(context, readout_dim=self.readout.width))
        self.recomputed = tuple(range(len(blocks))) if run.train.checkpoint_activations else ()
        """Blocks whose activations are not kept but computed again in backward."""

    def forward(self, batch: Batch, embedded: Mapping[str, Tensor], taps: tuple[str, ...] = ()) -> Outputs:
        """
        Args:
            embedded: Feature key -> (n, D), from the embedding tables.
            taps: Inner tensors to return: ``block<i>.x``.

        Shape: logits (B, P), readout (B, R).
        """
        x, events = self.tokenizer(batch, embedded)
        eventless = events is not None and events.values.shape[0] == 0
        query = x[:, self.query_tokens]
        if self.domain is not None:
            x = self.domain(x, batch.surface)
        earlier: list[Tensor] = []
        tapped: dict[str, Tensor] = {}
        plans: Any = None if batch.history is None else batch.history.layout.plan
        for i, block in enumerate(self.blocks):
            if events is not None and self._plan_of[i] is not None:
                events = events._replace(layout=events.layout._replace(plan=plans[self._plan_of[i]]))
            if i in self.recomputed and self.training:
                x, events = checkpoint(block, x, events, query, list(earlier), use_reentrant=False)
            else:
                x, events = block(x, events, query, earlier)
            earlier.append(x)
            if f"block{i}.x" in taps:
                tapped[f"block{i}.x"] = x
        readout = self.readout(x, events)
        if self.training and eventless:
            readout = readout + reached(self.tokenizer, self.readout)
        scores = self.head(readout, batch)
        return Outputs(self.head.logits(scores), readout, tapped, scores)

    def check_taps(self, taps: tuple[str, ...]) -> None:
        """
        Raises:
            GemkitError: A name is that of no inner tensor.
        """
        known = [f"block{i}.x" for i in range(len(self.blocks))]
        for name in taps:
            if name not in known:
                raise GemkitError(
                    f"the transfer strategy taps '{name}', which this model does not have",
                    where="transfer",
                    allowed=", ".join(known),
                    fix="use a student with more blocks (size.num_blocks), or another tap",
                )

    @property
    def shares_histories(self) -> bool:
        """Whether examples of one user at one time may share the encoding of their history."""
        return self._shares_histories

    def layout(self, lengths: np.ndarray, stream: np.ndarray) -> Layout:
        """The host work for the histories of one batch, from their lengths (U,) and the streams (T,) of their events.

        Its plan is a tuple: one for all blocks that can share it, each of which receives its own.
        """
        lengths, arrangement = self.tokenizer.arrange(lengths, stream)
        plans = []
        for shortened_by, encoder in self._planners:
            seen = lengths
            for shorter in shortened_by:
                seen = shorter.lengths_out(seen)
            plans.append(encoder.plan(seen))
        return plain_layout(lengths)._replace(plan=tuple(plans), arrangement=arrangement)


Planner = tuple[tuple[SequenceEncoder, ...], SequenceEncoder]
"""The encoders that shorten histories before it, and the encoder that plans."""


def _planners(blocks: list[Block], configs: list[Any]) -> tuple[list[Planner], list[int | None]]:
    """Who plans, and which plan each block uses: those with the same encoder for the same lengths share one."""
    planners: list[Planner] = []
    keys: list[Any] = []
    plan_of: list[int | None] = []
    shortened_by: tuple[SequenceEncoder, ...] = ()
    for block, config in zip(blocks, configs, strict=True):
        if block.sequence is None:
            plan_of.append(None)
            continue
        key = (config, len(shortened_by))
        if key not in keys:
            keys.append(key)
            planners.append((shortened_by, block.sequence))
        plan_of.append(keys.index(key))
        if block.sequence.shortens:
            shortened_by += (block.sequence,)
    return planners, plan_of
