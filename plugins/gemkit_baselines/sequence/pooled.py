"""Histories of one event each: what is left when an encoder pools."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from gemkit.interfaces import Events
from gemkit.nn.jagged import CHUNK, ChunkPlan, chunk_plan, segment_mean


def pooled_plan(lengths: np.ndarray) -> ChunkPlan:
    """The chunks of `Layout` for one event a history. Shape: (U,) lengths before pooling."""
    return chunk_plan(np.ones_like(lengths), CHUNK)


def pooled(events: Events, values: Tensor, plan: ChunkPlan) -> Events:
    """The events with one vector for each history, as old as its events on average.

    Shape: values (U, D).
    """
    histories = values.shape[0]
    return events._replace(
        values=values,
        offsets=torch.arange(histories + 1, device=events.offsets.device),
        ages=segment_mean(events.ages.unsqueeze(-1), events.offsets).squeeze(-1),
        stream=events.stream.new_zeros(histories),
        layout=events.layout._replace(max_length=1, chunks=plan),
    )
