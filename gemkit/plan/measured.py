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


def fixed_and_rate(small: tuple[int, float], large: tuple[int, float]) -> tuple[float, float]:
    """Splits the step of one process that communicates with nobody.

    Args:
        small, large: Examples of a batch, and the seconds of its step.

    Returns:
        Seconds that a step takes however few the examples, 0 at least, and examples a second beside that: for
        `fixed_ms` and `local_mfu`.

    Raises:
        ValueError: The larger batch took no longer.
    """
    (few, short_s), (many, long_s) = small, large
    if many <= few or long_s <= short_s:
        raise ValueError(f"{many} examples took {long_s} s and {few} took {short_s} s: no rate follows")
    each_s = (long_s - short_s) / (many - few)
    fixed_s = max(0.0, long_s - many * each_s)
    return fixed_s, many / (long_s - fixed_s)


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
