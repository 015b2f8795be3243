"""A plan beside what was measured on as many processes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from gemkit.plan.plan import Plan


@dataclasses.dataclass(frozen=True, kw_only=True)
class Measured:
    """A run: how many processes it had, and the seconds of a step."""

    world_size: int
    step_s: float


@dataclasses.dataclass(frozen=True, kw_only=True)
class Compared:
    """One world size.

    Attributes:
        error: planned / measured - 1.
        measured_scaling, planned_scaling: Examples a second of each process, over those of the smallest world size.
    """

    world_size: int
    measured_s: float
    planned_s: float
    measured_scaling: float
    planned_scaling: float

    @property
    def error(self) -> float:
        return self.planned_s / self.measured_s - 1


def local_mfu(examples_per_s: float, flops_per_example: float, peak_flop_per_s: float) -> float:
    """What to assume, from the speed of one process that communicates with nobody."""
    return examples_per_s * flops_per_example / peak_flop_per_s


def compare(measured: Sequence[Measured], plans: Sequence[Plan]) -> list[Compared]:
    """Pairs runs and plans by world size; the local batch must be the same in all. Others are left out."""
    planned = {plan.mesh.world_size: plan.step.total for plan in plans}
    both = sorted((m for m in measured if m.world_size in planned), key=lambda m: m.world_size)
    return [
        Compared(
            world_size=m.world_size,
            measured_s=m.step_s,
            planned_s=planned[m.world_size],
            measured_scaling=both[0].step_s / m.step_s,
            planned_scaling=planned[both[0].world_size] / planned[m.world_size],
        )
        for m in both
    ]
