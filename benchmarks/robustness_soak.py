"""Ten thousand steps in one process: does memory stay flat?

    python benchmarks/robustness_soak.py

A small run on a synthetic data set that validates, writes checkpoints and rows of history all along. Resident memory,
threads and open files are read every 500 steps; the result goes to benchmarks/results/robustness_soak.json.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import json
import os
import sys
import tempfile
import threading
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "robustness_soak.json"
EVERY = 500
LIMIT = 0.02


def reading(step: int) -> dict[str, int]:
    """What this process holds now."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    files = sum(1 for _ in Path("/proc/self/fd").iterdir())
    resident = pages * os.sysconf("SC_PAGE_SIZE")
    return {"step": step, "resident_bytes": resident, "threads": threading.active_count(), "open_files": files}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=10_000)
    options = parser.parse_args()
    from gemkit.registry import load_registry
    from gemkit.testing.runs import silent, tiny_run
    from gemkit.train import Training

    readings: list[dict[str, int]] = []
    with tempfile.TemporaryDirectory() as name, contextlib.ExitStack() as resources:
        overrides = ["train.epochs=100000", f"train.max_steps={options.steps}", "train.eval_every=250"]
        overrides += ["train.checkpoint_every=100", "train.log_every=10", "train.num_threads=1"]
        run = tiny_run(Path(name), *overrides)
        training = Training(run, load_registry(), None, silent(), ["gemkit", "train"], resources)
        step = training.step

        def counted(batches: Any) -> Any:
            loss = step(batches)
            if training.state.step % EVERY == 0:
                gc.collect()
                readings.append(reading(training.state.step))
                print(readings[-1], flush=True)
            return loss

        training.step = counted  # type: ignore[method-assign]
        training.fit()
    first, last = readings[0], readings[-1]
    growth = last["resident_bytes"] / first["resident_bytes"] - 1
    report = {"steps": options.steps, "growth_since_step_500": growth, "limit": LIMIT, "readings": readings}
    RESULTS.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(f"resident memory: {growth:+.2%} from step {first['step']:,} to step {last['step']:,}")
    sys.exit(growth > LIMIT)


if __name__ == "__main__":
    main()
