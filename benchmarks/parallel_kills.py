"""Kill -9 at random moments on four processes: does torchrun bring the run back, to the same end?

    python benchmarks/parallel_kills.py [--kills 20] [--seed 1]

A short run of `parallel=hsdp` on four processes, two groups of which hold all tables once each and average them every
third step, with a checkpoint every second step that is written while training goes on. One process, chosen by chance,
is killed at a random moment: while the processes start, train, save or evaluate; torchrun starts all four again
(`--max-restarts`), and they go on with the run's folder. The history, the metrics and the weights at the end are
compared with those of a run that nobody killed. The result goes to benchmarks/results/parallel_kills.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from gemkit.runs import checkpoint, keeping
from gemkit.runs.folder import RunFolder

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results" / "parallel_kills.json"
PROCESSES = 4
OVERRIDES = (
    *("parallel=hsdp", "parallel.dp_shard=2", "parallel.replicate_below=10", "tokenizer.dropout=0.1"),
    *("parallel.sparse_groups=2", "parallel.sparse_average_every=3"),
    *("train.epochs=8", "train.checkpoint_every=2", "train.async_checkpoints=true", "train.batch_size=64"),
)
TIMES = {
    *("examples_per_s", "wall_s", "data_wait", "matmul_peak_flops_per_s", "mfu", "start_s", "effective_time"),
    *("checkpoint_wait_s", "checkpoints", "busy_s", "rank_busy_s", "balance"),
}


def child(data: Path, runs: Path) -> None:
    """What each process runs."""
    from gemkit.registry import load_registry
    from gemkit.testing.runs import silent, tiny_run
    from gemkit.train import train

    torch.set_num_threads(1)
    train(tiny_run(data, *OVERRIDES, f"runs={runs}"), load_registry(), progress=silent())


def start(data: Path, runs: Path, restarts: int) -> subprocess.Popen[str]:
    """Starts torchrun in a session of its own."""
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={PROCESSES}"]
    words += [f"--max-restarts={restarts}", __file__, "--child", str(data), str(runs)]
    variables = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONWARNINGS": "ignore"}
    log = runs.with_suffix(".log").open("w")
    return subprocess.Popen(words, env=variables, start_new_session=True, stdout=log, stderr=log, text=True)


def workers(agent: int) -> list[int]:
    """Processes that torchrun has started."""
    tasks = Path(f"/proc/{agent}/task")
    children = [int(pid) for task in tasks.glob("*/children") for pid in task.read_text().split()]
    found = []
    for pid in children:
        with contextlib.suppress(OSError):  # it has just died
            if b"--child" in Path(f"/proc/{pid}/cmdline").read_bytes():
                found.append(pid)
    return found


def kill_some(agent: subprocess.Popen[str], runs: Path, kills: int, rng: random.Random) -> list[dict[str, Any]]:
    """Kills one worker after the other; what was there when each died."""
    told: list[dict[str, Any]] = []
    before: set[int] = set()
    while len(told) < kills and agent.poll() is None:
        fresh = [pid for pid in workers(agent.pid) if pid not in before]
        if len(fresh) < PROCESSES:
            time.sleep(0.05)
            continue
        before |= set(fresh)
        training = rng.random() < 0.8  # else while they start
        if training:
            rows = steps(runs)
            _until(lambda rows=rows: steps(runs) > rows or agent.poll() is not None)
            _wait(rng.uniform(0, 2.0), agent)
        else:
            _wait(rng.uniform(0, 5.0), agent)
        victim = rng.choice(fresh)
        try:
            os.kill(victim, signal.SIGKILL)
        except ProcessLookupError:
            continue
        told.append({"rank": fresh.index(victim), "while": "training" if training else "starting", "step": steps(runs)})
        print(len(told), told[-1], flush=True)
    return told


def steps(runs: Path) -> int:
    """Rows of training in the history."""
    folders = [path for path in runs.glob("*") if path.is_dir() and not path.name.startswith(".")]
    return len(RunFolder(folders[0]).rows()) if folders else 0


def compared(runs: Path, others: Path) -> dict[str, Any]:
    """Whether history, metrics and weights are the same."""
    one, other = (RunFolder.open(next(p for p in r.iterdir() if p.is_dir())) for r in (runs, others))
    first, second = (checkpoint.load(f.checkpoints / keeping.BEST)[0] for f in (one, other))
    return {
        "same_history": _without_times(one.rows()) == _without_times(other.rows()),
        "same_metrics": _without_times(one.metrics()) == _without_times(other.metrics()),
        "same_weights": sorted(first) == sorted(second) and all(torch.equal(first[n], second[n]) for n in first),
        "steps": one.metrics()["train"]["steps"],
        "parts_left": len(list((one.checkpoints / checkpoint.PARTS).iterdir())),
    }


def _without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _without_times(v) for k, v in value.items() if k not in TIMES}
    return [_without_times(v) for v in value] if isinstance(value, list) else value


def _until(reached: Callable[[], bool]) -> None:
    while not reached():
        time.sleep(0.02)


def _wait(seconds: float, agent: subprocess.Popen[str]) -> None:
    end = time.monotonic() + seconds
    _until(lambda: time.monotonic() > end or agent.poll() is not None)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=20)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--child", nargs=2, type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        child(*options.child)
        return
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        for name in ("whole", "killed"):
            (root / name).mkdir()
        whole = start(root / "data", root / "whole", restarts=0)
        assert whole.wait() == 0, (root / "whole.log").read_text()[-3000:]
        began = time.monotonic()
        agent = start(root / "data", root / "killed", restarts=options.kills + 2)
        kills = kill_some(agent, root / "killed", options.kills, random.Random(options.seed))
        code = agent.wait()
        result = {"processes": PROCESSES, "seed": options.seed, "kills": kills, "exit_code": code}
        if code:
            print((root / "killed.log").read_text()[-5000:])
        else:
            result |= compared(root / "killed", root / "whole")
        result["seconds"] = time.monotonic() - began
    RESULTS.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    print(json.dumps({k: v for k, v in result.items() if k != "kills"}))


if __name__ == "__main__":
    main()
