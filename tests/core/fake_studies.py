"""A study as an ablation leaves it, without training anything: random numbers of realistic size."""

from __future__ import annotations

import dataclasses
import difflib
import math
import random
import statistics
from collections.abc import Sequence
from typing import Any

from gemkit.metrics.names import HIGHER_IS_BETTER
from gemkit.studies.result import Difference, Score, StudyResult, VariantResult

# Name -> (words, how much AUC above the base, FLOPs/example, parameters).
VARIANTS = {
    "base": ((), 0.0, 2.4e6, 1_412_096),
    "dcnv2": (("interaction=dcnv2",), -0.0004, 1.7e6, 1_388_800),
    "dlrm": (("interaction=dlrm",), -0.0046, 1.1e6, 1_301_504),
    "autoint": (("interaction=autoint",), -0.0011, 3.9e6, 1_420_288),
    "masknet": (("interaction=masknet",), 0.0024, 5.2e6, 1_744_896),
    "finalmlp": (("interaction=finalmlp",), 0.0009, 1.9e6, 1_394_944),
    "none": (("interaction=none",), -0.0188, 0.6e6, 1_280_000),
}
ENVIRONMENT = {
    "gemkit": "0.5.0",
    "git": {"commit": "ce2df59a0b1c2d3e4f50617283940516a7b8c9d0", "dirty": False},
    "python": "3.11.9",
    "platform": "Linux-6.1-x86_64",
    "packages": {"torch": "2.13.0", "numpy": "2.4.6"},
    "cpu": "Imaginary CPU @ 2.50GHz",
    "cores": 2,
    "threads": 1,
    "gpus": [],
}


def fake_study(
    variants: dict[str, tuple[tuple[str, ...], float, float, int]] = VARIANTS,
    *,
    num_seeds: int = 5,
    metric: str = "auc",
    tasks: Sequence[str] = ("rating",),
    metrics: Sequence[str] = ("auc", "logloss", "ne", "gauc_impressions"),
    seed: int = 0,
    **changes: Any,
) -> StudyResult:
    """A study over `variants`, the first of which is the base."""
    rng = random.Random(seed)
    seeds = tuple(range(num_seeds))
    luck = [rng.gauss(0, 0.0012) for _ in seeds]  # a seed's, shared by all variants
    runs = {name: [effect + z + rng.gauss(0, 0.0007) for z in luck] for name, (_, effect, _, _) in variants.items()}
    base = next(iter(variants))
    found = []
    for name, (words, _, flops, params) in variants.items():
        scores = {task: {m: score([_value(m, x) for x in runs[name]]) for m in metrics} for task in tasks}
        bases = {task: {m: score([_value(m, x) for x in runs[base]]) for m in metrics} for task in tasks}
        config = _config(words)
        found.append(
            VariantResult(
                name=name,
                words=words,
                matched={},
                failures={},
                scores=scores,
                differences={}
                if name == base
                else {t: {m: difference(m, scores[t][m], bases[t][m]) for m in metrics} for t in tasks},
                params=params,
                dense_params=params // 9,
                flops_per_example=flops,
                examples_per_s=2.6e10 / (flops + 3e6) * rng.uniform(0.95, 1.05),
                curves={s: _curve(metric, x, rng) for s, x in zip(seeds, runs[name], strict=True)},
                config=config,
                config_diff="" if name == base else _diff(_config(()), config),
            )
        )
    return dataclasses.replace(
        StudyResult(
            name="interactions",
            command="gemkit ablate data=movielens1m --toggle interaction=dcnv2,dlrm,autoint,masknet,finalmlp --seeds 5",
            base=("data=movielens1m", "interaction=wukong", "sequence=none"),
            seeds=seeds,
            task=tasks[0],
            metric=metric,
            match=None,
            dataset="movielens1m",
            num_examples=73_902,
            resampled="groups",
            variants=tuple(found),
            notes=("6 comparisons at 95 %: one in twenty would look resolved by chance alone.",),
            environment=ENVIRONMENT,
        ),
        **changes,
    )


def score(values: Sequence[float | None]) -> Score:
    known = [value for value in values if value is not None]
    return Score(
        by_seed=tuple(values),
        mean=statistics.fmean(known) if known else None,
        sd=statistics.stdev(known) if len(known) > 1 else None,
    )


def difference(metric: str, variant: Score, base: Score) -> Difference:
    """The paired difference with a normal interval: good enough to look at."""
    pairs = [a - b for a, b in zip(variant.by_seed, base.by_seed, strict=True) if a is not None and b is not None]
    mean = statistics.fmean(pairs)
    assert base.mean is not None
    if len(pairs) == 1:
        alone = {"low": None, "high": None, "seeds_part": None, "seeds_needed": None}
        return Difference(
            num_seeds=1, mean=mean, examples_part=0.0004, relative=mean / base.mean, verdict="not resolved", **alone
        )
    seeds_part, examples_part = 1.96 * statistics.stdev(pairs) / math.sqrt(len(pairs)), 0.0003
    half = math.hypot(seeds_part, examples_part)
    better = (mean > 0) == HIGHER_IS_BETTER[metric]
    resolved = abs(mean) > half
    needed = None
    if not resolved and abs(mean) > examples_part:
        needed = math.ceil(len(pairs) * seeds_part**2 / (mean**2 - examples_part**2))
    return Difference(
        num_seeds=len(pairs),
        mean=mean,
        low=mean - half,
        high=mean + half,
        seeds_part=seeds_part,
        examples_part=examples_part,
        relative=mean / base.mean,
        verdict="not resolved" if not resolved else "better" if better else "worse",
        seeds_needed=needed,
    )


def many(num: int) -> dict[str, tuple[tuple[str, ...], float, float, int]]:
    """That many variants, some with long names."""
    rng = random.Random(1)
    found = {"base": VARIANTS["base"]}
    kinds = ["interaction=dcnv2", "cross.flow=sole", "sequence=hstu", "interaction.rank=64,interaction.num_layers=8"]
    for i in range(1, num):
        word = f"{kinds[i % 4]}{'' if i < 5 else f',dim={8 * i}'}"
        flops = 10 ** rng.uniform(5.6, 7.2)
        found[word] = ((word,), 0.003 * math.log10(flops / 2.4e6) + rng.gauss(0, 0.0015), flops, int(flops / 2 + 1e6))
    return found


def _value(metric: str, x: float) -> float:
    """The metric of a run that lies `x` of AUC above the usual."""
    usual = {"auc": 0.7931, "gauc_impressions": 0.7712, "logloss": 0.5312, "ne": 0.8014}[metric]
    return usual + x if HIGHER_IS_BETTER[metric] else usual - 0.9 * x


def _curve(metric: str, x: float, rng: random.Random) -> list[dict[str, Any]]:
    rows = []
    for i in range(1, 13):
        learned = x - 0.09 * math.exp(-i / 2.2) + rng.gauss(0, 0.0008)
        rows.append({"step": 100 * i, "examples": 51_200 * i, metric: _value(metric, learned)})
    return rows


def _config(words: Sequence[str]) -> str:
    chosen = dict(word.split("=", 1) for word in words if word.count("=") == 1)
    name = chosen.get("interaction", "wukong")
    lines = [
        "data:",
        "  name: movielens1m",
        "interaction:",
        f"  name: {name}",
        "  num_layers: 3",
        "optimizer:",
        "  lr: 0.001",
    ]
    return "\n".join(lines) + "\n"


def _diff(before: str, after: str) -> str:
    lines = difflib.unified_diff(before.splitlines(), after.splitlines(), "base", "variant", n=3, lineterm="")
    return "\n".join(lines)
