"""What it gains to keep examples that share a history together: step time with loader.group=history beside none.

    python benchmarks/data_grouping.py [--steps 40] [gemkit train's words]

Two trainings of the default run (MovieLens-1M), one thread, in turn within one process: a step of one, a step of the
other, on batches that are made beforehand. CPU time; medians over the steps after the first five. Batches hold the
same number of examples; those of `history` have fewer distinct histories to encode. The result goes to
benchmarks/results/data_grouping.json.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import tempfile
import time
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")

import numpy as np

from gemkit.config.compose import compose
from gemkit.data.batch import Batch
from gemkit.registry import load_registry
from gemkit.runs.clock import Clock
from gemkit.runs.environment import describe_environment
from gemkit.testing.runs import silent
from gemkit.train import Training

RESULTS = Path(__file__).resolve().parent / "results" / "data_grouping.json"
WARM_UP = 5


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=40)
    options, words = parser.parse_known_args()
    registry = load_registry()
    with tempfile.TemporaryDirectory() as folder, contextlib.ExitStack() as resources:
        trainings: dict[str, Training] = {}
        batches: dict[str, list[Batch]] = {}
        for group in ("history", "none"):
            overrides = [f"runs={folder}/{group}", f"loader.group={group}", "loader.workers=0", "train.num_threads=1"]
            run = compose([*words, *overrides], registry)
            trainings[group] = Training(run, registry, None, silent(), ["gemkit"], resources)
            trainings[group].clock = Clock(0.0, 0)  # which `fit` starts
            trainings[group].model.dense.train()
            batches[group] = list(itertools.islice(trainings[group].loader.epoch(0), WARM_UP + options.steps))
        step_ms: dict[str, list[float]] = {group: [] for group in trainings}
        for i in range(min(map(len, batches.values()))):
            for group in sorted(trainings, reverse=bool(i % 2)):  # each goes first every other time
                started = time.process_time()
                trainings[group].step([batches[group][i]])
                step_ms[group].append(1e3 * (time.process_time() - started))
    sides: dict[str, Any] = {
        group: {
            "median_step_ms": float(np.median(step_ms[group][WARM_UP:])),
            "examples_per_batch": float(np.mean([b.size for b in batches[group]])),
            "histories_per_batch": float(np.mean([len(b.history.offsets) - 1 for b in batches[group] if b.history])),
            "events_per_batch": float(np.mean([len(b.history.ages) for b in batches[group] if b.history])),
        }
        for group in trainings
    }
    ratio = sides["none"]["median_step_ms"] / sides["history"]["median_step_ms"]
    report = {"words": words, "steps": options.steps, "groups": sides, "speedup": ratio}
    report["environment"] = describe_environment()
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for group, side in sides.items():
        print(
            f"{group:8} {side['median_step_ms']:7.1f} ms a step, {side['examples_per_batch']:.0f} examples, "
            f"{side['histories_per_batch']:.0f} histories, {side['events_per_batch']:.0f} events"
        )
    print(f"keeping histories together: x{ratio:.2f}")


if __name__ == "__main__":
    main()
