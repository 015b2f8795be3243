"""The plain tokenizer: one token a feature, one vector an event."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.data.batch import Batch, History
from gemkit.interfaces import BuildContext, Events, Tokenizer, Tokens
from gemkit.nn.jagged import segment_mean
from gemkit.nn.layers import mlp
from gemkit_baselines.streams import Alignment, align_streams


@dataclasses.dataclass(frozen=True, kw_only=True)
class PlainTokenizerConfig(Config):
    """Options of the tokenizer."""

    name: str = "plain"
    dense: str = option(
        "mlp",
        "Numbers to one token each: an MLP of the standardised value, or of its sines and cosines at "
        "learned frequencies.",
        choices=("mlp", "periodic"),
    )
    num_frequencies: int = option(16, "Learned frequencies of each number, with `dense=periodic`.", ge=1, le=4096)
    frequency_scale: float = option(1.0, "Standard deviation of the first frequencies.", gt=0, le=1e6)
    event_fusion: str = option(
        "linear",
        "How an event's fields become one vector: a linear map of them side by side, or MaskNet.",
        choices=("linear", "masknet"),
    )
    stream_fusion: str = option(
        "time",
        "How several streams become one history: merged by time, with an embedding of the stream; or the j-th newest "
        "events of all streams side by side, through MaskNet.",
        choices=("time", "masknet"),
    )
    dropout: float = option(0.0, "On tokens and events.", ge=0, lt=1)


class DenseTokens(nn.Module):
    """One token for each number. Shape: (B, F) -> (B, F, D)."""

    def __init__(self, num_features: int, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.empty(num_features, dim))
        self.bias = nn.Parameter(torch.empty(num_features, dim))
        self.out = nn.Linear(dim, dim)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.scale)
        nn.init.normal_(self.bias)

    def forward(self, values: Tensor) -> Tensor:
        out: Tensor = self.out(torch.relu(values.unsqueeze(-1) * self.scale + self.bias))
        return out


class PeriodicTokens(nn.Module):
    """One token for each number, from sines and cosines of it at learned frequencies.

    Paper: On Embeddings for Numerical Features (arXiv 2203.05556), the PLR embedding.

    Shape: (B, F) -> (B, F, D).
    """

    def __init__(self, num_features: int, dim: int, num_frequencies: int, scale: float) -> None:
        super().__init__()
        self.initial_scale = scale
        self.frequencies = nn.Parameter(torch.empty(num_features, num_frequencies))
        self.weight = nn.Parameter(torch.empty(num_features, 2 * num_frequencies, dim))
        self.bias = nn.Parameter(torch.empty(num_features, dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.normal_(self.frequencies, std=self.initial_scale)
        nn.init.normal_(self.weight, std=self.weight.shape[1] ** -0.5)
        nn.init.zeros_(self.bias)

    def forward(self, values: Tensor) -> Tensor:
        angles = 2 * torch.pi * values.unsqueeze(-1) * self.frequencies
        waves = torch.cat([angles.sin(), angles.cos()], dim=-1)
        return torch.relu(torch.einsum("bfk,fkd->bfd", waves, self.weight) + self.bias)


class MaskNetFusion(nn.Module):
    """`MaskNet(S) = MLP_lce(S * MLP_mask(S))` on vectors side by side: an event's fields, or the events of streams.

    Paper: InterFormer (arXiv 2411.09852), preprocessing, after MaskNet (arXiv 2102.07619).

    Shape: (T, F * D) -> (T, D).
    """

    def __init__(self, width: int, dim: int) -> None:
        super().__init__()
        self.mask = mlp(width, (dim,), width)
        self.compress = nn.Linear(width, dim)

    def forward(self, fields: Tensor) -> Tensor:
        out: Tensor = self.compress(fields * self.mask(fields))
        return out


@component("tokenizer", PlainTokenizerConfig)
class PlainTokenizer(Tokenizer):
    """One token for each feature (dense, categorical, bag, vector, in this order) and one vector for each event.

    Bags are mean-pooled, empty ones to zero. Content vectors go through an MLP. An event is the fusion of its
    fields' embeddings plus a stream embedding where the data set has several streams.

    Paper: Wukong (arXiv 2403.02545), section 3.2, for the tokens; InterFormer (arXiv 2411.09852), section 4, for
        streams through MaskNet.
    Differs: one token for each dense feature instead of a common MLP. MaskNet wants streams of one length: the j-th
        newest events stand side by side, zeros where a stream has none left, and the youngest gives the age.
    """

    def __init__(self, config: PlainTokenizerConfig, context: BuildContext) -> None:
        super().__init__()
        schema, dim = context.schema, context.dim
        self.single = [f.name for f in schema.categorical if not f.multi]
        self.bags = [f.name for f in schema.categorical if f.multi]
        self.vector_names = [f.name for f in schema.vectors]
        self.event_keys = [f.key for f in schema.event_fields]
        self.roles = (
            *(f.role for f in schema.dense),
            *(f.role for f in schema.categorical if not f.multi),
            *(f.role for f in schema.categorical if f.multi),
            *(f.role for f in schema.vectors),
        )
        self.user_tokens = [i for i, role in enumerate(self.roles) if role == "user"]
        self.dense = self._dense_tokens(config, len(schema.dense), dim) if schema.dense else None
        self.vectors = nn.ModuleDict({f.name: mlp(f.width, (dim,), dim) for f in schema.vectors})
        self.norm = nn.LayerNorm(dim)
        self.unify: MaskNetFusion | None = None
        if self.event_keys:
            width = len(self.event_keys) * dim
            self.fuse = MaskNetFusion(width, dim) if config.event_fusion == "masknet" else nn.Linear(width, dim)
            self.streams = nn.Embedding(len(schema.streams), dim) if len(schema.streams) > 1 else None
            self.num_streams = len(schema.streams)
            if config.stream_fusion == "masknet" and self.num_streams > 1:
                self.unify = MaskNetFusion(self.num_streams * dim, dim)
        self.dropout = nn.Dropout(config.dropout)

    @staticmethod
    def _dense_tokens(config: PlainTokenizerConfig, num_features: int, dim: int) -> nn.Module:
        if config.dense == "periodic":
            return PeriodicTokens(num_features, dim, config.num_frequencies, config.frequency_scale)
        return DenseTokens(num_features, dim)

    def arrange(self, lengths: np.ndarray, stream: np.ndarray) -> tuple[np.ndarray, Alignment | None]:
        """With `stream_fusion=masknet`, which events stand side by side."""
        return (lengths, None) if self.unify is None else align_streams(lengths, stream, self.num_streams)

    def forward(self, batch: Batch, embedded: Mapping[str, Tensor]) -> Tokens:
        """Shape: x (B, N, D); events.values (T, D), cls (U, 0, D), owner (U, N_user, D)."""
        columns = [embedded[name] for name in self.single]
        columns += [segment_mean(embedded[name], batch.bag_offsets[name]) for name in self.bags]
        columns += [self.vectors[name](batch.vectors[name]) for name in self.vector_names]
        parts = [torch.stack(columns, dim=1)] if columns else []
        if self.dense is not None:
            parts.insert(0, self.dense(batch.dense))
        x = self.dropout(self.norm(torch.cat(parts, dim=1)))
        if batch.history is None:
            return Tokens(x, None)
        return Tokens(x, self._events(batch.history, x, embedded))

    def _events(self, history: History, x: Tensor, embedded: Mapping[str, Tensor]) -> Events:
        values = self.fuse(torch.cat([embedded[key] for key in self.event_keys], dim=1))
        if self.streams is not None:
            values = values + self.streams(history.stream)
        offsets, ages, stream = history.offsets, history.ages, history.stream
        if self.unify is not None:
            alignment: Alignment = history.layout.arrangement
            values, ages = self._unified(values, ages, alignment)
            offsets, stream = alignment.offsets, stream.new_zeros(ages.shape[0])
        owner = x[:, self.user_tokens].index_select(0, history.first_example)
        return Events(
            values=self.dropout(values),
            offsets=offsets,
            ages=ages,
            stream=stream,
            cls=owner.new_zeros(owner.shape[0], 0, owner.shape[2]),
            owner=owner,
            history_index=history.history_index,
            layout=history.layout,
        )

    def _unified(self, values: Tensor, ages: Tensor, alignment: Alignment) -> tuple[Tensor, Tensor]:
        """Shape: (T, D), (T,) -> (T', D), (T',)."""
        assert self.unify is not None
        if values.shape[0] == 0:
            return values, ages
        rows, missing = alignment.gather, ~alignment.present
        side_by_side = values.index_select(0, rows.view(-1)).view(*rows.shape, -1).masked_fill(missing.unsqueeze(-1), 0)
        return self.unify(side_by_side.flatten(1)), ages[rows].masked_fill(missing, torch.inf).amin(1)
