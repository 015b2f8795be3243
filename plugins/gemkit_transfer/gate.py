"""A gate that closes where a soft label is worse than what the student has without it."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


class Gate(nn.Module):
    """A weight from 0 to 1 for each task, from the loglosses of a target and of a rival on held-out labels.

    Both are averaged over the batches that training has not seen before, each judged before the student learns from
    it: progressive validation, on the newest data that there are. The gate is open while the target is not worse, and
    closes in proportion to its disadvantage; it is shut at `tolerance` (a share of the rival's logloss). In later
    epochs, when nothing is held out any more, it stays as it is.

    Differs: not in ExFM.

    Args:
        half_life: Batches after which a batch counts half.
    """

    target: Tensor
    rival: Tensor
    count: Tensor

    def __init__(self, num_tasks: int, tolerance: float, half_life: float) -> None:
        super().__init__()
        self.tolerance, self.keep = tolerance, 2 ** (-1 / half_life)
        for name in ("target", "rival", "count"):
            self.register_buffer(name, torch.zeros(num_tasks))

    @torch.no_grad()
    def observe(self, target: Tensor, rival: Tensor, seen: Tensor) -> None:
        """Adds a batch: mean loglosses, and the weight of the labels behind them. Shape: (P,) each."""
        # Weighted by how many labels there were: a conversion is rare, and some batches have none.
        for total, value in ((self.target, target * seen), (self.rival, rival * seen), (self.count, seen)):
            total.mul_(self.keep).add_((1 - self.keep) * value)

    def forward(self) -> Tensor:
        """Shape: (P,)."""
        excess = (self.target - self.rival) / self.rival.clamp(min=1e-12)
        opening = (1 - excess / self.tolerance).clamp(0, 1)
        return torch.where(self.count > 0, opening, torch.ones_like(opening))


def named(prefix: str, values: Tensor, tasks: tuple[str, ...]) -> dict[str, float]:
    """Numbers for a report, one a task: ``transfer/<prefix>/<task>``."""
    rows = zip(tasks, values.tolist(), strict=True)
    return {f"transfer/{prefix}/{task}": value for task, value in rows if math.isfinite(value)}
