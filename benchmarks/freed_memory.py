"""Training on a CPU, with freed memory kept by the process and with it given back to the kernel.

    python benchmarks/freed_memory.py

Two experiments, each with what gemkit does (`kept`) and with glibc left as it is (`given back`: MALLOC_PERTURB_=0 says
so without changing anything), in turn, one thread each. Of every process: examples a second of its training steps, the
processor time of all of it, the kernel's share, page faults, and peak memory. The result, benchmarks/results/
freed_memory.json, has medians over rounds; ratios are those of one round.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import measure

EXPERIMENTS = {
    "without histories": ["experiment=movielens1m_autoint", "train.max_steps=60"],
    "with histories": ["data=adsworld", "data.num_users=1000", "train.batch_size=256", "train.max_steps=60"],
}
WAYS = {"given back": {"MALLOC_PERTURB_": "0"}, "kept": {}}
FACTS = ("examples_per_s", "cpu_s", "kernel_s", "page_faults", "peak_mb")


def one(words: list[str], environment: dict[str, str]) -> dict[str, float]:
    """Facts of one run of the command line."""
    clean = {k: v for k, v in os.environ.items() if not k.startswith("MALLOC_") and k != "GLIBC_TUNABLES"}
    with tempfile.TemporaryDirectory() as runs:
        command = [str(Path(sys.executable).with_name("gemkit")), "train", *words, "train.num_threads=1"]
        process = subprocess.Popen(
            [*command, f"runs={runs}"],
            env=clean | environment | {"OMP_NUM_THREADS": "1"},
            stdout=subprocess.DEVNULL,
        )
        _, status, used = os.wait4(process.pid, 0)
        if status:
            raise SystemExit(f"{' '.join(command)} ended with status {os.waitstatus_to_exitcode(status)}")
        (metrics,) = Path(runs).glob("*/metrics.json")
        speed = json.loads(metrics.read_text(encoding="utf-8"))["train"]["examples_per_s"]
    cpu_s, peak_mb = used.ru_utime + used.ru_stime, used.ru_maxrss * 1024 / 1e6
    return dict(zip(FACTS, (speed, cpu_s, used.ru_stime, used.ru_minflt, peak_mb), strict=True))


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    rounds = parser.parse_args().rounds
    experiments = {}
    for name, words in EXPERIMENTS.items():
        one(words, {})  # builds the data set
        found: dict[str, list[dict[str, float]]] = {way: [] for way in WAYS}
        for _ in range(rounds):
            for way, environment in WAYS.items():
                found[way].append(one(words, environment))
        ways = {
            way: {fact: statistics.median(row[fact] for row in rows) for fact in FACTS} for way, rows in found.items()
        }
        ratios = {
            fact: [kept[fact] / back[fact] for kept, back in zip(found["kept"], found["given back"], strict=True)]
            for fact in FACTS
        }
        experiments[name] = {"words": words, "ways": ways, "kept_over_given_back": ratios}
        print(name, json.dumps(ways, indent=2), json.dumps(ratios, indent=2))
    measure.write("freed_memory", {"rounds": rounds, "threads": 1, "experiments": experiments, **measure.machine()})


if __name__ == "__main__":
    main()
