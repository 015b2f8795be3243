"""Target attention: the history as the target item sees it."""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.interfaces import BuildContext, Events, SequenceEncoder
from gemkit.nn.jagged import ChunkPlan, row_index, segment_sum
from gemkit_baselines.sequence.pooled import pooled, pooled_plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class DINConfig(Config):
    """Options of the activation unit."""

    width_field: ClassVar[str | None] = "hidden"

    name: str = "din"
    hidden: tuple[int, ...] = option((36,), "Hidden widths of the activation unit's MLP.", ge=1)
    activation: str = option(
        "prelu",
        "After each hidden width. `dice` needs the statistics of the batch's events, so that in training every "
        "history touches every other; the authors' code has `sigmoid`.",
        choices=("prelu", "dice", "relu", "sigmoid"),
    )
    softmax: bool = option(
        False, "Weights of a history add up to 1, as in the authors' code; the paper leaves them as they are."
    )


class Dice(nn.Module):
    """PReLU whose bend lies where the inputs are, and is as wide as they are spread.

    Paper: Deep Interest Network (arXiv 1706.06978), the data adaptive activation function.

    Shape: (T, E) -> (T, E).
    """

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(dim, eps=1e-8, affine=False)
        self.alpha = nn.Parameter(torch.empty(dim))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.alpha)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[0] > 1:
            normed = self.norm(x)
        else:  # one event has no variance
            normed = F.batch_norm(x, self.norm.running_mean, self.norm.running_var, eps=self.norm.eps)
        p = torch.sigmoid(normed)
        return p * x + (1 - p) * self.alpha * x


class FromOne(nn.Linear):
    """A linear map that begins near one, so that training begins near sum pooling.

    Shape: (T, E) -> (T, 1).
    """

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.ones_(self.bias)


class ActivationUnit(nn.Module):
    """What an event has to do with the target, as a number.

    Shape: event (T, D), target (T, D) -> (T, 1).
    """

    def __init__(self, dim: int, config: DINConfig) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        width = 4 * dim
        for hidden in config.hidden:
            layers += [nn.Linear(width, hidden), make_activation(config.activation, hidden)]
            width = hidden
        # Softmax takes no notice of what is added to all scores.
        last = nn.Linear(width, 1, bias=False) if config.softmax else FromOne(width, 1)
        self.mlp = nn.Sequential(*layers, last)

    def forward(self, event: Tensor, target: Tensor) -> Tensor:
        out: Tensor = self.mlp(torch.cat([target, event, target - event, target * event], dim=-1))
        return out


def make_activation(name: str, dim: int) -> nn.Module:
    """A choice of `DINConfig.activation`."""
    if name == "dice":
        return Dice(dim)
    if name == "prelu":
        return nn.PReLU(dim)
    return nn.ReLU() if name == "relu" else nn.Sigmoid()


@component("sequence", DINConfig)
class DIN(SequenceEncoder):
    """Each history becomes one vector: the sum of its events, weighed by what they have to do with the target item.

    Paper: Deep Interest Network (arXiv 1706.06978), section 4.3, equation 3.
    Differs: the unit sees difference and product of target and event, as the authors' code has it, where the paper
        draws an outer product; the item's tokens, side by side, become one vector by a linear map, as an event's
        fields do in the tokenizer; weights begin near one; CLS tokens pass through; in later layers the sum is over one
        vector.
    """

    shares_histories = False
    shortens = True

    def __init__(self, config: DINConfig, context: BuildContext) -> None:
        super().__init__()
        num_query_tokens = len(context.tokens_of("item") or context.roles)
        self.target = nn.Linear(num_query_tokens * context.dim, context.dim)
        self.unit = ActivationUnit(context.dim, config)
        self.softmax = config.softmax

    def plan(self, lengths: np.ndarray) -> ChunkPlan:
        """The layout of histories of one event each."""
        return pooled_plan(lengths)

    def lengths_out(self, lengths: np.ndarray) -> np.ndarray:
        """One event for each history, an empty one too."""
        return np.ones_like(lengths)

    def forward(self, events: Events, query: Tensor) -> Events:
        """Shape: values (T, D) -> (U, D); query (B, Q, D), one history for each example."""
        values, histories = events.values, events.offsets.shape[0] - 1
        owner = row_index(events.offsets, values.shape[0])
        target = self.target(query.flatten(1)).index_select(0, owner)
        weights = self.unit(values, target)
        if self.softmax:
            weights = segment_softmax(weights, owner, histories)
        return pooled(events, segment_sum(weights * values, owner, histories), events.layout.plan)


def segment_softmax(scores: Tensor, index: Tensor, num_segments: int) -> Tensor:
    """Softmax over the rows of each segment. Shape: (T, 1), (T,) -> (T, 1)."""
    peak = scores.new_full((num_segments,), -torch.inf).scatter_reduce(0, index, scores.detach().squeeze(-1), "amax")
    weights = (scores - peak.index_select(0, index).unsqueeze(-1)).exp()
    return weights / segment_sum(weights, index, num_segments).index_select(0, index)
