"""How long a run takes to its first step with an empty compile cache, with a kept one, and with one that was unpacked.

    python benchmarks/start_speed.py [--rounds 2]

Twelve blocks of the default components on a small synthetic data set, `train.compile=true`; a process for each start,
`gemkit cache pack` and `unpack` in between. The sides take turns, and ratios are of one round. Others use the machine
too, so the parts are in processor time, of the process and of the C++ compilers that it starts (one at a time:
TORCHINDUCTOR_COMPILE_THREADS=1); the time on the clock stands beside it. The result goes to
benchmarks/results/start_speed.json.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import machine, median_ratio, write

SIZE = ("size.dim=32", "size.num_blocks=12", "size.num_tokens=16", "train.batch_size=256")
SIDES = ("cold", "kept", "unpacked")


def first_step(folder: Path, *overrides: str) -> None:
    """Trains one step and prints where the time went: what the child process does."""
    from gemkit.registry import load_registry
    from gemkit.runs.startup import StartClock
    from gemkit.testing.runs import silent, tiny_run
    from gemkit.train import Training

    class OneStep(Training):
        def validate_if_due(self) -> None:
            """A start is over before the first validation."""

    registry, clock = load_registry(), StartClock(0.0, lambda: sum(os.times()[:4]))
    run = tiny_run(folder, *SIZE, "train.max_steps=1", *overrides, registry=registry)
    with contextlib.ExitStack() as resources:
        OneStep(run, registry, None, silent(), ["gemkit", "train"], resources, clock).fit()
    print(json.dumps(clock.report()["start_s"]))


def start(folder: Path, cache: Path, compiled: bool = True) -> dict[str, float]:
    """The parts of one start in a process of its own, in processor time, and its time on the clock."""
    began_s = time.perf_counter()
    command = [sys.executable, __file__, "--child", str(folder), f"train.compile={str(compiled).lower()}"]
    command += [f"train.compile_cache={cache}"]
    done = subprocess.run(command, env=_environment(), capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found | {"clock": time.perf_counter() - began_s}


def move(cache: Path, to: Path) -> None:
    """Packs a cache, and unpacks it elsewhere."""
    archive, gemkit = cache.with_suffix(".zip"), [sys.executable, "-m", "gemkit.cli.main", "cache"]
    subprocess.run([*gemkit, "pack", str(archive), "--folder", str(cache)], env=_environment(), check=True)
    subprocess.run([*gemkit, "unpack", str(archive), "--folder", str(to), "--trust"], env=_environment(), check=True)


def _environment() -> dict[str, str]:
    ours = {k: v for k, v in os.environ.items() if k not in ("TORCHINDUCTOR_CACHE_DIR", "TRITON_CACHE_DIR")}
    return ours | {"OMP_NUM_THREADS": "1", "TORCHINDUCTOR_COMPILE_THREADS": "1"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--child", nargs="+", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.child:
        first_step(Path(args.child[0]), *args.child[1:])
        return
    starts: dict[str, list[dict[str, float]]] = {side: [] for side in ("uncompiled", *SIDES)}
    with tempfile.TemporaryDirectory() as name:
        data = Path(name) / "data"
        start(data, Path(name), compiled=False)  # builds the data set
        for number in range(args.rounds):
            cache, elsewhere = Path(name) / f"cache{number}", Path(name) / f"elsewhere{number}"
            starts["uncompiled"].append(start(data, cache, compiled=False))
            for side in SIDES:
                if side == "unpacked":
                    move(cache, elsewhere)
                starts[side].append(start(data, elsewhere if side == "unpacked" else cache))
                print(side, json.dumps(starts[side][-1]), flush=True)
            write("start_speed", report(starts))


def report(starts: dict[str, list[dict[str, float]]]) -> dict[str, Any]:
    """Medians, and ratios of cold to warm."""

    def times(side: str, part: str) -> list[float]:
        return [row[part] for row in starts[side]]

    parts = list(starts["cold"][0])
    return {
        "machine": machine(),
        "size": SIZE,
        "rounds": len(starts["cold"]),
        "median_s": {side: {p: statistics.median(times(side, p)) for p in parts} for side in starts},
        "cold_over": {
            side: {p: median_ratio(times("cold", p), times(side, p)) for p in ("total", "compile", "clock")}
            for side in SIDES[1:]
        },
        "starts": starts,
    }


if __name__ == "__main__":
    main()
