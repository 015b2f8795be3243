"""What a scaling study found, as data: `scale.json` is this, and every other form of a report is made from it."""

from __future__ import annotations

import dataclasses
from typing import Any

from gemkit.studies.result import Score


@dataclasses.dataclass(frozen=True, kw_only=True)
class Point:
    """One architecture at one size.

    Attributes:
        rung: From 1.
        words: What it adds to the base's words.
        score: The metric over the seeds.
        flops_per_example: Of one training step, forward and backward.
        examples: Seen in training, repetitions counted.
        params: All parameters; `dense_params` without the embedding tables.
        examples_per_s: Median over the seeds; the machine's load is in it.
        failures: Seed -> the error of the run, in a few lines.
        config: The composed config as YAML, without the seed.
    """

    name: str
    rung: int
    words: tuple[str, ...]
    score: Score
    flops_per_example: float | None
    examples: int | None
    params: int | None
    dense_params: int | None
    examples_per_s: float | None
    failures: dict[int, str]
    config: str

    @property
    def training_flops(self) -> float | None:
        """Of the whole training."""
        if self.flops_per_example is None or self.examples is None:
            return None
        return self.flops_per_example * self.examples

    def cost(self, axis: str) -> float | None:
        """``flops_per_example`` or ``training_flops``."""
        found: float | None = getattr(self, axis)
        return found


@dataclasses.dataclass(frozen=True, kw_only=True)
class Interval:
    """A 95 % interval; None: it has no end on that side."""

    low: float | None
    high: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class CurvePoint:
    """A law and its band at one cost.

    Attributes:
        band: None where there is no interval.
        inside: Whether the ladder reaches this cost; else it is extrapolated.
    """

    cost: float
    value: float
    band: Interval | None
    inside: bool


@dataclasses.dataclass(frozen=True, kw_only=True)
class Fit:
    """The law of an architecture, `floor + scale * (cost / unit)^-alpha`.

    Attributes:
        unit: The cheapest cost of the ladder.
        floor_interval: None if the floor was not fitted, or without intervals.
        alpha_interval: None without intervals: there is no repetition to tell chance by.
        resolved: Whether the interval of alpha excludes 0; None without one.
        seed_sd: Standard deviation of runs about their size's mean; None with one seed.
        scatter_sd: That of sizes about the law beyond what seeds explain, median of what is likely; None without more
            sizes than parameters.
        misfit: Probability that seeds alone would scatter the sizes about the law as much as here; None if that
            cannot be told.
        curve: In order of cost.
    """

    floor: float
    scale: float
    alpha: float
    unit: float
    floor_interval: Interval | None
    alpha_interval: Interval | None
    resolved: bool | None
    seed_sd: float | None
    scatter_sd: float | None
    misfit: float | None
    curve: tuple[CurvePoint, ...]

    def at(self, cost: float) -> float:
        """What the law says of a cost."""
        power: float = (cost / self.unit) ** -self.alpha
        return self.floor + self.scale * power


@dataclasses.dataclass(frozen=True, kw_only=True)
class ArchResult:
    """One architecture.

    Attributes:
        words: What it adds to the base's words, at every size.
        points: From the first rung to the last.
        fit: None if there is none; then `obstacle` says why.
    """

    name: str
    words: tuple[str, ...]
    points: tuple[Point, ...]
    fit: Fit | None
    obstacle: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class EqualQuality:
    """What one level of the metric costs one architecture, as a multiple of what it costs another.

    Attributes:
        ratio: `other`'s cost divided by `arch`'s.
        interval: None where a law has no interval.
    """

    value: float
    ratio: float
    interval: Interval | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Comparison:
    """Costs of two architectures at equal quality, as far as both ladders reach.

    Attributes:
        levels: At the worst value that both reached, in the middle, and at the best; empty if they cannot be compared.
        obstacle: Why not.
    """

    arch: str
    other: str
    levels: tuple[EqualQuality, ...]
    obstacle: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class ScaleResult:
    """A whole ladder.

    Attributes:
        command: What started it.
        base: Words of the base run.
        rungs: Words of each size.
        metric: "ne" or "logloss".
        cost: "flops_per_example" or "training_flops".
        floor_from: "fitted", "given" or "data".
        known_floor: The metric of the true probabilities, where the data set knows them.
        num_examples: Of the test split.
        notes: Sentences that a reader must know.
        environment: Versions, processor and commit, of the first run.
    """

    name: str
    command: str
    base: tuple[str, ...]
    rungs: tuple[tuple[str, ...], ...]
    seeds: tuple[int, ...]
    task: str
    metric: str
    cost: str
    floor_from: str
    known_floor: float | None
    dataset: str
    num_examples: int
    archs: tuple[ArchResult, ...]
    comparisons: tuple[Comparison, ...]
    notes: tuple[str, ...]
    environment: dict[str, Any]
