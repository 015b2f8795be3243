"""Time as numbers of buckets that grow with it: a minute matters among minutes, a month among months."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

LONGEST_S = 10 * 365 * 86400
"""Ten years: where the last bucket ends."""


def age_bucket(ages: Tensor, buckets: int) -> Tensor:
    """Log-spaced buckets from one second to ten years. Shape: (...) seconds -> (...) int64."""
    scaled = torch.log(ages.clamp(min=1.0)) / math.log(LONGEST_S)
    return (scaled * buckets).long().clamp(0, buckets - 1)


class AgeEmbedding(nn.Embedding):
    """A learned vector for each bucket of age.

    Shape: (T,) seconds -> (T, D).
    """

    def forward(self, ages: Tensor) -> Tensor:
        return super().forward(age_bucket(ages, self.num_embeddings))
