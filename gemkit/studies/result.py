"""What a study found, as data: `report.json` is this, and every other form of a report is made from it."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True, kw_only=True)
class Score:
    """One metric of one variant.

    Attributes:
        by_seed: In the order of `StudyResult.seeds`; None where that run is missing or the metric undefined.
        mean, sd: Over the seeds that have a value; None without any (`sd`: with fewer than two).
    """

    by_seed: tuple[float | None, ...]
    mean: float | None
    sd: float | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class Difference:
    """One metric of a variant minus that of the base, over the seeds that both have.

    Attributes:
        num_seeds: How many those are.
        mean: Mean of the paired differences.
        low, high: Its 95 % interval; None with one seed.
        seeds_part, examples_part: Half-widths from each source of chance alone; None where unknown.
        relative: `mean` divided by the base's mean.
        verdict: "better", "worse" or "not resolved".
        seeds_needed: Seeds that would resolve a difference of this size; None if none would, because the test
            split is too small for it, or if that cannot be said.
    """

    num_seeds: int
    mean: float
    low: float | None
    high: float | None
    seeds_part: float | None
    examples_part: float | None
    relative: float | None
    verdict: str
    seeds_needed: int | None


@dataclasses.dataclass(frozen=True, kw_only=True)
class VariantResult:
    """One variant of the base run.

    Attributes:
        words: What is added to the base's words on the command line.
        matched: Fields that were changed so that it costs what the base costs -> their values.
        failures: Seed -> the error of the run, in a few lines.
        scores: Task -> metric -> score.
        differences: The same for the differences from the base; empty for the base itself.
        params: All parameters; `dense_params` without the embedding tables.
        flops_per_example: Of one training step, forward and backward.
        examples_per_s: Median over the seeds; the machine's load is in it.
        curves: Seed -> rows of metrics.jsonl with the task's validation metrics: step, examples and the metrics.
        config: The composed config as YAML, without the seed.
        config_diff: Unified diff of it against the base's; empty for the base.
    """

    name: str
    words: tuple[str, ...]
    matched: dict[str, Any]
    failures: dict[int, str]
    scores: dict[str, dict[str, Score]]
    differences: dict[str, dict[str, Difference]]
    params: int | None
    dense_params: int | None
    flops_per_example: float | None
    examples_per_s: float | None
    curves: dict[int, list[dict[str, Any]]]
    config: str
    config_diff: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudyResult:
    """A whole study.

    Attributes:
        command: What started it.
        base: Words of the base run; `variants[0]` is the base.
        task, metric: What the verdicts of the summary are about; the other tasks and metrics are there too.
        match: "params", "flops" or None.
        num_examples: Of the test split.
        resampled: What the bootstrap drew: "examples" or "groups" (users).
        notes: Sentences that a reader must know: what failed, what could not be matched, how many comparisons.
        environment: Versions, processor and commit, of the first run.
    """

    name: str
    command: str
    base: tuple[str, ...]
    seeds: tuple[int, ...]
    task: str
    metric: str
    match: str | None
    dataset: str
    num_examples: int
    resampled: str
    variants: tuple[VariantResult, ...]
    notes: tuple[str, ...]
    environment: dict[str, Any]
