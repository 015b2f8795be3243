"""How evenly a batch's events lie on the ranks: contiguous shares beside balanced ones, on 8 simulated ranks.

    python benchmarks/data_balance.py

Ranks wait for the one with most events, so the measure is max / mean of events per rank, in each batch. Histories are
log-normal (mean about 430 events, windows of 2,048), of as many users as there are groups; a group is the examples of
one user at one time, whose history a batch holds once. The result goes to benchmarks/results/data_balance.json.
"""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from gemkit.data.balance import deal
from gemkit.runs.environment import describe_environment

RESULTS = Path(__file__).resolve().parent / "results" / "data_balance.json"
RANKS, WINDOW, MEAN, SIGMA, BATCHES = 8, 2048, 430, 1.0, 500


def batch(rng: np.random.Generator, examples: int, group: float) -> tuple[np.ndarray, np.ndarray]:
    """Lengths and keys of a shuffled batch: group sizes are geometric."""
    keys = np.cumsum(rng.random(examples) < 1 / group)
    # The window cuts the tail off, so the mean before it is a little higher.
    lengths = rng.lognormal(np.log(1.07 * MEAN) - SIGMA**2 / 2, SIGMA, int(keys[-1]) + 1)
    return np.minimum(lengths, WINDOW).astype(np.int64)[keys], keys


def measure(examples_per_rank: int, group: float) -> dict[str, Any]:
    rng = np.random.default_rng(1)
    plain, balanced, times_ms, means = [], [], [], []
    for _ in range(BATCHES):
        lengths, keys = batch(rng, RANKS * examples_per_rank, group)
        started = time.process_time()
        shares = deal(lengths, RANKS, keys)
        times_ms.append(1e3 * (time.process_time() - started))
        means.append(lengths.mean())
        plain.append(imbalance(lengths, keys, np.array_split(np.arange(len(lengths)), RANKS)))
        balanced.append(imbalance(lengths, keys, shares))
    return {
        "examples_per_rank": examples_per_rank,
        "examples_per_history": group,
        "mean_history": float(np.mean(means)),
        "max_over_mean": {"contiguous": summary(plain), "balanced": summary(balanced)},
        "ms_per_batch": float(np.median(times_ms)),
    }


def imbalance(lengths: np.ndarray, keys: np.ndarray, shares: list[np.ndarray]) -> float:
    """Events of the rank that has most, over the mean of all ranks; a history counts once on each rank."""
    events = [lengths[s[np.unique(keys[s], return_index=True)[1]]].sum() for s in shares]
    return float(max(events) / np.mean(events))


def summary(ratios: list[float]) -> dict[str, float]:
    return {"mean": float(np.mean(ratios)), "p99": float(np.quantile(ratios, 0.99)), "worst": max(ratios)}


def main() -> None:
    cases = [measure(size, group) for size in (64, 256, 1024) for group in (1.0, 2.1)]
    report = {"ranks": RANKS, "window": WINDOW, "batches": BATCHES, "cases": cases}
    report["environment"] = describe_environment()
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print("examples/rank  examples/history  mean history   contiguous (worst)   balanced (worst)   ms/batch")
    for case in cases:
        plain, balanced = case["max_over_mean"]["contiguous"], case["max_over_mean"]["balanced"]
        print(
            f"{case['examples_per_rank']:13} {case['examples_per_history']:17} {case['mean_history']:13.0f} "
            f"{plain['mean']:11.4f} ({plain['worst']:.3f}) {balanced['mean']:10.5f} ({balanced['worst']:.4f}) "
            f"{case['ms_per_batch']:10.2f}"
        )


if __name__ == "__main__":
    main()
