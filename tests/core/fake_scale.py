"""A scaling result as a ladder would have made it, from laws that are known: for tests of reports."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Sequence

import numpy as np

from gemkit.studies.scaling.fit import compare, fit_law
from gemkit.studies.scaling.result import ArchResult, Point, ScaleResult
from gemkit.studies.statistics import score

FLOOR = 0.85
LAWS = {"wukong": (0.030, 0.34, 1.0), "dcnv2": (0.030, 0.34, 1.7), "dlrm": (0.030, 0.34, 3.0)}
"""Name -> scale at the cheapest cost, alpha, and how many times as much it takes for the same value."""
STEP = 4.0
ENVIRONMENT = {"gemkit": "0.1.0", "python": "3.13.1", "cpu": "some processor", "threads": 1}


def planted(name: str, cost: float) -> float:
    """The law of an architecture, in NE."""
    scale, alpha, times = LAWS[name]
    return float(FLOOR + scale * (cost / times / 1e5) ** -alpha)


@functools.lru_cache
def fake_scale(
    names: tuple[str, ...] = tuple(LAWS),
    num_rungs: int = 5,
    num_seeds: int = 3,
    noise: float = 0.0006,
    known: bool = True,
) -> ScaleResult:
    """A ladder of so many rungs; each costs `STEP` times the one before it."""
    rng = np.random.default_rng(3)
    floor = FLOOR if known else None
    archs, fitted = [], {}
    limits = (5e4, 2e5 * STEP ** (num_rungs - 1) * 1.4)
    for k, name in enumerate(names):
        costs = [1e5 * STEP**i * (1 + 0.2 * k) for i in range(num_rungs)]
        runs = [[planted(name, c) + noise * rng.standard_normal() for _ in range(num_seeds)] for c in costs]
        fitted[name] = fit_law(costs, runs, floor, limits, k)
        points = [_point(name, i, cost, by_seed) for i, (cost, by_seed) in enumerate(zip(costs, runs, strict=True), 1)]
        archs.append(
            ArchResult(
                name=name, words=(f"interaction={name}",), points=tuple(points), fit=fitted[name].fit, obstacle=""
            )
        )
    comparisons = [compare(a, fitted[a], b, fitted[b], "NE") for a, b in itertools.combinations(names, 2)]
    return ScaleResult(
        name="interactions",
        command="gemkit scale adsworld_interactions",
        base=("data=adsworld", "sequence=none", "cross=none"),
        rungs=tuple((f"size.dim={16 * i}", f"train.max_steps={100 * i}") for i in range(1, num_rungs + 1)),
        seeds=tuple(range(1, num_seeds + 1)),
        task="click",
        metric="ne",
        cost="flops_per_example",
        floor_from="data" if known else "fitted",
        known_floor=FLOOR,
        dataset="adsworld",
        num_examples=20_000,
        archs=tuple(archs),
        comparisons=tuple(comparisons),
        notes=("Invented, for a look at the report.",),
        environment=ENVIRONMENT,
    )


def _point(name: str, rung: int, cost: float, by_seed: Sequence[float]) -> Point:
    return Point(
        name=f"{name} rung {rung}",
        rung=rung,
        words=(f"interaction={name}", f"size.dim={16 * rung}", f"train.max_steps={100 * rung}"),
        score=score(by_seed),
        flops_per_example=cost,
        examples=100_000 * rung,
        params=1_000_000 * rung,
        dense_params=10_000 * rung**2,
        examples_per_s=30_000 / rung,
        failures={},
        config=f"interaction:\n  name: {name}\nsize:\n  dim: {16 * rung}\n",
    )
