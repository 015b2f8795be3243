"""Dilated convolutions over a history: each layer doubles how far an event sees back."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.interfaces import BuildContext, Events, SequenceEncoder
from gemkit.nn.jagged import row_index


@dataclasses.dataclass(frozen=True, kw_only=True)
class NextItNetConfig(Config):
    """Options of one residual block."""

    name: str = "nextitnet"
    dilation: int = option(1, "Events between two taps of the first convolution; the second has twice as many.", ge=1)
    kernel_size: int = option(3, "Taps of a convolution.", ge=1, le=64)


@component("sequence", NextItNetConfig)
class NextItNet(SequenceEncoder):
    """`X + ReLU(LN(W2(ReLU(LN(W1 X)))))`, W1 and W2 causal convolutions with dilation d and 2 d.

    Paper: NextItNet (arXiv 1808.05163), the residual block of two dilated convolutions.
    Differs: layer i multiplies the dilation by 4^i, and after 4 layers begins anew; CLS tokens pass through.
    """

    def __init__(self, config: NextItNetConfig, context: BuildContext) -> None:
        super().__init__()
        dim, first = context.dim, config.dilation * 4 ** (context.layer % 4)
        self.dilations = (first, 2 * first)
        self.kernel_size = config.kernel_size
        self.convolutions = nn.ModuleList(nn.Linear(config.kernel_size * dim, dim) for _ in self.dilations)
        self.norms = nn.ModuleList(nn.LayerNorm(dim) for _ in self.dilations)

    def forward(self, events: Events, query: Tensor) -> Events:
        """Shape: values (T, D) -> (T, D)."""
        x, total = events.values, events.values.shape[0]
        row = torch.arange(total, device=x.device)
        first = events.offsets[:-1].index_select(0, row_index(events.offsets, total))
        for dilation, convolve, norm in zip(self.dilations, self.convolutions, self.norms, strict=True):
            taps = [row - i * dilation for i in range(self.kernel_size)]
            # What lies before the first event of a history is zero, whoever's events stand there.
            seen = [x.index_select(0, t.clamp(min=0)).masked_fill((t < first).unsqueeze(1), 0.0) for t in taps]
            x = torch.relu(norm(convolve(torch.cat(seen, dim=1))))
        return events._replace(values=events.values + x)
