"""Target attention: each event is weighed by what it has to do with the target item."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.interfaces import BuildContext, Events, SequenceEncoder
from gemkit.nn.jagged import row_index
from gemkit.nn.layers import mlp


@dataclasses.dataclass(frozen=True, kw_only=True)
class DeepInterestConfig(Config):
    """Options of the activation unit."""

    name: str = "din"
    hidden: tuple[int, ...] = option((36,), "Hidden widths of the activation unit's MLP.", ge=1)


@component("sequence", DeepInterestConfig)
class DeepInterest(SequenceEncoder):
    """Every event is scaled by an activation that an MLP makes of the event and the target.

    Paper: Deep Interest Network (arXiv 1706.06978), section 4.3.
    Differs: the weighted events stay apart instead of being summed, for the readout pools them; the unit sees the
        product and the difference of event and target, as public implementations have it; CLS tokens pass through.
    """

    shares_histories = False

    def __init__(self, config: DeepInterestConfig, context: BuildContext) -> None:
        super().__init__()
        self.unit = mlp(4 * context.dim, config.hidden, 1)

    def forward(self, events: Events, query: Tensor) -> Events:
        """Shape: values (T, D) -> (T, D); query (B, Q, D), with one history for each example."""
        values = events.values
        target = query.mean(1).index_select(0, row_index(events.offsets, values.shape[0]))
        weights = self.unit(torch.cat([values, target, values * target, values - target], dim=1))
        return events._replace(values=values * weights)
