"""The plainest history: its mean."""

from __future__ import annotations

import dataclasses

import numpy as np
from torch import Tensor

from gemkit.component import component
from gemkit.config.fields import Config
from gemkit.interfaces import BuildContext, Events, SequenceEncoder
from gemkit.nn.jagged import ChunkPlan, segment_mean
from gemkit_baselines.sequence.pooled import pooled, pooled_plan


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
        return pooled_plan(lengths)

    def lengths_out(self, lengths: np.ndarray) -> np.ndarray:
        """One event for each history, an empty one too."""
        return np.ones_like(lengths)

    def forward(self, events: Events, query: Tensor) -> Events:
        """Shape: values (T, D) -> (U, D), one event for each history."""
        return pooled(events, segment_mean(events.values, events.offsets), events.layout.plan)
