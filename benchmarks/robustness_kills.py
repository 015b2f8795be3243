"""Kill -9 at random moments: does a run that is resumed each time end with the same bits?

    python benchmarks/robustness_kills.py --count 50 --seed 1

A short run on a synthetic data set, with a checkpoint every second step, is started as a process of its own and killed
at a random moment: while it starts, trains, validates or evaluates; three in ten are aimed at a checkpoint that is
half written. It is resumed and killed again
until it ends; then its weights, optimisers, random streams, history and metrics are compared with those of a run that
nothing interrupted, bit for bit (times apart). Runs are started until `--count` kills have happened. The result goes to
benchmarks/results/robustness_kills.json.
"""

from __future__ import annotations

import argparse
import json
import random
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "robustness_kills.json"
OVERRIDES = (
    *("train.epochs=4", "train.log_every=3", "train.eval_every=5", "train.checkpoint_every=2"),
    *("train.batch_size=64", "tokenizer.dropout=0.1", "train.num_threads=1"),
)
TIMES = {
    *("examples_per_s", "wall_s", "data_wait", "train_s", "wait_s", "matmul_peak_flops_per_s", "mfu"),
    *("start_s", "effective_time", "checkpoint_wait_s", "checkpoints", "busy_s"),
}


def child(data: Path, runs: Path, resume: Path | None) -> None:
    """What the processes that are killed run."""
    from gemkit.registry import load_registry
    from gemkit.testing.runs import silent, tiny_run
    from gemkit.train import train

    train(tiny_run(data, *OVERRIDES, f"runs={runs}"), load_registry(), resume, progress=silent())


def start(data: Path, runs: Path) -> subprocess.Popen[bytes]:
    """Starts a run in `runs`, or goes on with the one that is there."""
    found = [path for path in runs.glob("*") if not path.name.startswith(".")]
    words = [sys.executable, __file__, "--child", str(data), str(runs), *(str(path) for path in found)]
    return subprocess.Popen(words, stderr=subprocess.PIPE)


def until_training(runs: Path, process: subprocess.Popen[bytes], rows: int) -> None:
    """Waits until the process has added to the history."""
    while process.poll() is None and len(history(runs)) <= rows:
        time.sleep(0.005)


def until_writing(runs: Path, process: subprocess.Popen[bytes]) -> None:
    """Waits until a file in the checkpoints folder is half written: a moment that chance alone hardly finds."""
    while process.poll() is None and not half_written(runs):
        pass


def half_written(runs: Path) -> list[Path]:
    return list(runs.glob("[!.]*/checkpoints/.*.tmp"))


def history(runs: Path) -> list[str]:
    return [line for path in runs.glob("[!.]*/metrics.jsonl") for line in path.read_text().splitlines()]


def finish(process: subprocess.Popen[bytes]) -> None:
    _, errors = process.communicate()
    if process.returncode:
        raise RuntimeError(f"the run ended with {process.returncode}: {errors.decode()[-2000:]}")


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES and k != "runs"}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def contents(runs: Path) -> tuple[dict[str, torch.Tensor], Any]:
    """Every tensor of both checkpoints, and everything else that a run leaves, times apart."""
    from gemkit.runs import checkpoint
    from gemkit.runs.folder import RunFolder

    (path,) = (p for p in runs.iterdir() if not p.name.startswith("."))
    folder = RunFolder.open(path)
    tensors: dict[str, torch.Tensor] = {}
    rest: dict[str, Any] = {"metrics": folder.metrics(), "history": folder.rows()}
    for file in sorted(folder.checkpoints.iterdir()):
        found, rest[file.name] = checkpoint.load(file)
        tensors |= {f"{file.name}/{name}": value for name, value in found.items()}
    return tensors, without_times(rest)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--count", type=int, default=50)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--out", type=Path, default=RESULTS)
    parser.add_argument("--child", nargs="+", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(options.child[0], options.child[1], options.child[2] if len(options.child) > 2 else None)
        return
    pick = random.Random(options.seed)
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        data, whole = folder / "data", folder / "whole"
        started = time.monotonic()
        process = start(data, whole)
        until_training(whole, process, 0)
        startup_s = time.monotonic() - started
        finish(process)
        training_s = time.monotonic() - started - startup_s
        expected = contents(whole)
        kills = {"while starting": 0, "while training": 0, "while writing a checkpoint": 0, "after the last step": 0}
        resumes, runs_done, same = 0, 0, 0
        while sum(kills.values()) < options.count:
            runs_done += 1
            runs = folder / f"run{runs_done}"
            while True:
                rows = len(history(runs))
                process = start(data, runs)
                resumes += rows > 0
                phase = pick.choices(["while starting", "while training", "while writing a checkpoint"], [15, 55, 30])[
                    0
                ]
                if phase == "while starting":
                    time.sleep(pick.uniform(0, startup_s))
                else:
                    until_training(runs, process, rows)
                    time.sleep(pick.uniform(0, training_s / 4))
                if phase == "while writing a checkpoint":
                    until_writing(runs, process)
                if sum(kills.values()) >= options.count or process.poll() is not None:
                    finish(process)
                    break
                process.send_signal(signal.SIGKILL)
                process.communicate()
                if half_written(runs):
                    phase = "while writing a checkpoint"
                elif phase != "while starting" and any(
                    '"split": "valid"' in row and f'"step": {last_step(expected)}' in row for row in history(runs)
                ):
                    phase = "after the last step"
                elif phase == "while writing a checkpoint":
                    phase = "while training"  # it came too late for the file
                kills[phase] += 1
                print(f"kill {sum(kills.values())}: {phase}, {len(history(runs))} rows of history", flush=True)
            tensors, rest = contents(runs)
            equal = rest == expected[1] and tensors.keys() == expected[0].keys()
            equal = equal and all(torch.equal(value, expected[0][key]) for key, value in tensors.items())
            same += equal
            print(f"run {runs_done}: {'the same bits' if equal else 'DIFFERENT'}", flush=True)
            if not equal:
                print("\n".join(differences(expected, (tensors, rest))[:20]), flush=True)
    report = {
        "seed": options.seed,
        "steps": last_step(expected),
        "kills": sum(kills.values()),
        "kills_by_phase": kills,
        "runs": runs_done,
        "runs_with_the_same_bits": same,
        "tensors_compared": len(expected[0]),
    }
    options.out.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(report, indent=2))
    sys.exit(same != runs_done)


def differences(expected: tuple[dict[str, torch.Tensor], Any], found: tuple[dict[str, torch.Tensor], Any]) -> list[str]:
    """What differs, by name."""
    (a, rest_a), (b, rest_b) = expected, found
    names = [n for n in sorted(a.keys() | b.keys()) if n not in a or n not in b or not torch.equal(a[n], b[n])]
    return [*names, *(key for key in sorted(rest_a.keys() | rest_b.keys()) if rest_a.get(key) != rest_b.get(key))]


def last_step(expected: tuple[dict[str, torch.Tensor], Any]) -> int:
    return int(expected[1]["metrics"]["train"]["steps"])


if __name__ == "__main__":
    main()
