"""The learning rate over a run."""

from __future__ import annotations

import math

from gemkit.config.run import OptimizerConfig


def schedule(optimizer: OptimizerConfig, step: int, total_steps: int) -> float:
    """The learning rate of step `step` (from 0) as a fraction of its peak: linear warm-up, then the schedule."""
    if step < optimizer.warmup_steps:
        return (step + 1) / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return 1.0
    done = (step - optimizer.warmup_steps) / max(1, total_steps - optimizer.warmup_steps)
    left = 1.0 - done if optimizer.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return optimizer.final_lr_fraction + (1.0 - optimizer.final_lr_fraction) * left
