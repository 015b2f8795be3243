"""The optimiser of the dense part."""

from __future__ import annotations

import torch
from torch import nn

from gemkit.config.run import OptimizerConfig


def adamw(dense: nn.Module, optimizer: OptimizerConfig) -> torch.optim.AdamW:
    """AdamW with weight decay on matrices alone, fused."""
    matrices = [p for p in dense.parameters() if p.ndim >= 2]
    others = [p for p in dense.parameters() if p.ndim < 2]
    groups = [
        {"params": matrices, "weight_decay": optimizer.weight_decay},
        {"params": others, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [g for g in groups if g["params"]],
        lr=optimizer.lr,
        betas=(optimizer.beta1, optimizer.beta2),
        eps=optimizer.eps,
        fused=True,
    )
