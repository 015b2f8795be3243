"""How long training waits for data: the default model on histories of a thousand events.

    python benchmarks/data_wait.py [--workers 1]

A synthetic log of users with 1,000 events and more is written as Parquet, built, and trained on by the default model
with `data.max_history=1000`. `data_wait` is the time in which the training loop had no batch, as a share of the time
of the steps; the target is less than 5 %. The result goes to benchmarks/results/data_wait.json.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from gemkit.runs.environment import describe_environment

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "data_wait.json"
NUM_USERS, NUM_ITEMS, EVENTS_PER_USER, EXAMPLES_PER_USER = 1500, 20_000, 1500, 4
LIMIT = 0.05


def write_logs(folder: Path) -> None:
    """The newest two thirds of each user's time have the examples, so that most histories are full."""
    rng = np.random.default_rng(1)
    year_s = 365 * 86400
    user = np.repeat(np.arange(NUM_USERS), EVENTS_PER_USER)
    kinds = pa.array(["view", "click", "buy"]).take(pa.array(rng.choice(3, len(user), p=[0.8, 0.18, 0.02])))
    time = 1_700_000_000 + rng.integers(0, year_s, len(user))
    item = rng.integers(0, NUM_ITEMS, len(user))
    pq.write_table(pa.table({"user": user, "time": time, "item": item, "kind": kinds}), folder / "events.parquet")
    user = np.repeat(np.arange(NUM_USERS), EXAMPLES_PER_USER)
    time = 1_700_000_000 + rng.integers(2 * year_s // 3, year_s, len(user))
    columns = {"user": user, "time": time, "item": rng.integers(0, NUM_ITEMS, len(user))}
    columns |= {"hour": time // 3600 % 24, "click": (rng.random(len(user)) < 0.2).astype(np.int8)}
    pq.write_table(pa.table(columns), folder / "examples.parquet")


def train(folder: Path, workers: int, kind: str, steps: int) -> dict[str, Any]:
    """Metrics of a run's training."""
    command = [str(Path(sys.executable).with_name("gemkit")), "train", "data=table"]
    command += [f"data.examples={folder}/examples.parquet", f"data.events={folder}/events.parquet"]
    command += [f"data.root={folder}/datasets", f"runs={folder}/runs-{kind}-{workers}", "data.max_history=1000"]
    command += ["data.user=user", "data.timestamp=time", "data.stream=kind", "data.tasks=[{name: click}]"]
    command += ["data.categorical=[{name: item, role: item}, {name: user, role: user}, {name: hour}]"]
    command += ["data.event_fields=[{name: item}]", f"train.max_steps={steps}", "train.batch_size=256"]
    command += [f"loader.workers={workers}", f"loader.worker_kind={kind}", "train.num_threads=2"]
    subprocess.run(command, check=True, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "2"})
    (run,) = (folder / f"runs-{kind}-{workers}").glob("*/metrics.json")
    found: dict[str, Any] = json.loads(run.read_text(encoding="utf-8"))["train"]
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=12)
    options = parser.parse_args()
    runs = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_logs(folder)
        for kind, workers in (("thread", 0), ("thread", 1), ("process", 1)):
            runs[f"{workers} {kind}" if workers else "none"] = train(folder, workers, kind, options.steps)
    report = {"max_history": 1000, "batch_size": 256, "limit": LIMIT, "runs": runs}
    report["environment"] = describe_environment()
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for way, found in runs.items():
        rate, wall_s = found["examples_per_s"], found["wall_s"]
        print(f"{way:10} waits {found['data_wait']:.2%} of {wall_s:.0f} s, {rate:.0f} examples/s")
    sys.exit(runs["1 thread"]["data_wait"] > LIMIT)


if __name__ == "__main__":
    main()
