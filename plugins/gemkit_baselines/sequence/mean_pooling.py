"""The plainest history: its mean."""

from __future__ import annotations

import dataclasses

import numpy as np
import torch
from torch import Tensor

from gemkit.component import component
from gemkit.config.fields import Config
from gemkit.interfaces import BuildContext, Events, SequenceEncoder
from gemkit.nn.jagged import CHUNK, ChunkPlan, chunk_plan, segment_mean


@dataclasses.dataclass(frozen=True, kw_only=True)
class MeanPoolingConfig(Config):
    """Mean pooling has no options."""

    name: str = "mean_pooling"


@component("sequence", MeanPoolingConfig)
class MeanPooling(SequenceEncoder):
    """Each history becomes one vector, the mean of its events; zero for an empty history.

    Paper: the history of YouTube's deep recommender (Covington et al., RecSys 2016), section 3.2.
    Differs: CLS tokens pass through; in later layers the mean of one vector is that vector.
    """

    shortens = True

    def __init__(self, config: MeanPoolingConfig, context: BuildContext) -> None:
        super().__init__()

    def plan(self, lengths: np.ndarray) -> ChunkPlan:
        """The layout of histories of one event each."""
        return chunk_plan(np.ones_like(lengths), CHUNK)

    def forward(self, events: Events, query: Tensor) -> Events:
        """Shape: values (T, D) -> (U, D), one event for each history."""
        histories = events.offsets.shape[0] - 1
        offsets = torch.arange(histories + 1, device=events.offsets.device)
        return events._replace(
            values=segment_mean(events.values, events.offsets),
            offsets=offsets,
            ages=segment_mean(events.ages.unsqueeze(-1), events.offsets).squeeze(-1),
            stream=events.stream.new_zeros(histories),
            layout=events.layout._replace(max_length=1, chunks=events.layout.plan),
        )
