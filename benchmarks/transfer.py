"""What a student gains from a stale teacher, by strategy: paired seeds on the synthetic ads world.

    python benchmarks/transfer.py strategies   each strategy, and the suite, against the student alone
    python benchmarks/transfer.py staleness    distillation and the Student Adapter, 0 to 30 days after the teacher
    python benchmarks/transfer.py bias         a teacher whose calibration is 1.3: what reaches the student
    python benchmarks/transfer.py codes        width and bits of the codes

A seed is a world of its own, a teacher and students of the same seed. Each run that has finished is kept under --work
and not run again. The result goes to benchmarks/results/transfer_<suite>.json: every run's test metrics, and the paired
difference from the student alone with its 95 % interval (Student's t over seeds).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

import transfer_logs
from movielens import paired, summary

from gemkit.config.compose import compose
from gemkit.registry import load_registry
from gemkit.runs.progress import Progress
from gemkit.train import train
from gemkit.transfer.serving import milliseconds

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
METRICS = ("ne", "auc", "logloss", "calibration")

WORLD = (
    *("experiment=adsworld_silent", "data.num_users=12000", "data.examples_per_user=60", "data.days=28"),
    *("data.interest=1", "data.pair=1", "data.quad=0.5", "data.shared=0.5", "data.advertiser=0.5", "data.drift=0.3"),
    *("data.only_tasks=[click]", "optimizer.lr=3e-3", "optimizer.warmup_steps=20", "train.num_threads=1"),
)
TEACHER = ("data.max_history=64", "train.batch_size=512")
STUDENT = (
    *("sequence=none", "cross=none", "size.dim=16", "size.num_blocks=1", "interaction.hidden=[32]", "head.hidden=[32]"),
    *("train.batch_size=256",),
)
TEACHER_DAYS = 11
"""The teacher is trained on as many days, before the one that picks its checkpoint."""

SUITE = ("auxiliary_head", "student_adapter", "representation")


def transfer(*names: str, log: str = "log", **options: Any) -> dict[str, Any]:
    """A variant: these strategies, reading this log."""
    return {"names": names, "log": log, "options": options}


SUITES: dict[str, dict[str, Any]] = {
    "strategies": {
        "alone": transfer(),
        "distill": transfer("distill"),
        "auxiliary_head": transfer("auxiliary_head"),
        "student_adapter": transfer("student_adapter"),
        "student_adapter, gated": transfer("student_adapter", **{"student_adapter.gate": "true"}),
        "representation": transfer("representation"),
        "representation of users": transfer("representation", log="log-user"),
        "the suite": transfer(*SUITE, **{"student_adapter.gate": "true"}),
        "distill, representation": transfer("distill", "representation"),
    },
    "staleness": {
        "alone": transfer(),
        "distill": transfer("distill"),
        "auxiliary_head": transfer("auxiliary_head"),
        "adapter to an auxiliary head": transfer("student_adapter"),
        "adapter to the serving head": transfer("student_adapter", **{"student_adapter.head": "serving"}),
        "adapter to the serving head, gated": transfer(
            "student_adapter", **{"student_adapter.head": "serving", "student_adapter.gate": "true"}
        ),
    },
    "bias": {
        "alone": transfer(),
        "distill": transfer("distill"),
        "distill, biased": transfer("distill", log="log-biased"),
        "auxiliary_head, biased": transfer("auxiliary_head", log="log-biased"),
        "student_adapter, biased": transfer("student_adapter", log="log-biased"),
    },
    "codes": {
        "alone": transfer(),
        **{
            f"{w} numbers of {b} bits": transfer("representation", log=f"log-{w}x{b}")
            for w, b in ((8, 8), (32, 4), (32, 8), (32, 32), (128, 8), (128, 32))
        },
    },
}
LAGS = {"strategies": (2,), "staleness": (0, 2, 7, 14, 30), "bias": (2,), "codes": (2,)}
"""Days between the teacher's last one and the students' first."""

FIRST, TRAIN_DAYS, TEST_DAYS = 14, 7, 3
"""The students' first day, and their days of training and test; the teacher ends as many days earlier as it lags."""

FROZEN = {"staleness": (12, 5, 2)}
"""Suite -> the day at which one teacher is frozen for all lags, so that the students' first day moves; their days."""

LONGER = {"staleness": ("data.days=50", "data.examples_per_user=107")}
"""Suite -> words of a world that has room for it, with as many impressions a day."""


def days(first: int, train_days: int, test_days: int) -> list[str]:
    """Words of a window: training, one day of validation, and the test."""
    valid = first + train_days
    pairs = {"train": (first, valid), "valid": (valid, valid + 1), "test": (valid + 1, valid + 1 + test_days)}
    return [f"data.{name}_days=[{a},{b}]" for name, (a, b) in pairs.items()]


def run(words: Sequence[str], seed: int, folder: Path, root: Path) -> Path:
    """The run folder of these words, after those of the world; it is trained unless it is there."""
    done = sorted(folder.glob("*/metrics.json"))
    if not done:
        fixed = [f"seed={seed}", f"data.seed={seed}", f"data.root={root}", f"runs={folder}"]
        train(compose([*WORLD, *words, *fixed], load_registry()), load_registry(), progress=Progress(quiet=True))
        done = sorted(folder.glob("*/metrics.json"))
    return done[0].parent


def one_seed(suite: str, seed: int, lag: int, work: Path) -> dict[str, Any]:
    """The teacher, its logs, and all students of one seed."""
    root, longer = work / "datasets", list(LONGER.get(suite, ()))
    if suite in FROZEN:
        last, train_days, test_days = FROZEN[suite]
        first, own = last + lag, work / f"seed{seed}-{suite}"
        students = own / f"lag{lag}"
    else:
        first, train_days, test_days = FIRST, TRAIN_DAYS, TEST_DAYS
        last, own = first - lag, work / f"seed{seed}-lag{lag}-from{first}"  # the teacher's valid day is the one before
        students = own
    teacher = run([*TEACHER, *longer, *days(last - TEACHER_DAYS - 1, TEACHER_DAYS, 1)], seed, own / "teacher", root)
    wanted = {variant["log"] for variant in SUITES[suite].values() if variant["names"]}
    for log in sorted(wanted):
        transfer_logs.answer(teacher, own / log, (first, first + train_days) if suite in FROZEN else None)
    found: dict[str, Any] = {"teacher": facts(teacher)}
    for name, variant in SUITES[suite].items():
        words = [*STUDENT, *longer, *days(first, train_days, test_days)]
        if variant["names"]:
            words += [f"transfer=[{','.join(variant['names'])}]", f"transfer.log={own / variant['log']}"]
            words += [f"transfer.parts.{key}={value}" for key, value in variant["options"].items()]
        found[name] = facts(run(words, seed, students / name.replace(" ", "_").replace(",", ""), root))
    return found


def facts(folder: Path) -> dict[str, Any]:
    """Metrics of a finished run, and what it costs in service, measured once."""
    metrics = json.loads((folder / "metrics.json").read_text(encoding="utf-8"))
    measured = folder / "serving.json"
    if not measured.is_file():
        measured.write_text(json.dumps(milliseconds(folder, load_registry())), encoding="utf-8")
    test = {name: metrics["test"]["click"][name] for name in METRICS}
    cost = {name: metrics["train"][name] for name in ("params", "flops_per_example")}
    return {"test": test, **cost, "ms_per_1000": json.loads(measured.read_text(encoding="utf-8"))}


def collected(suite: str, seeds: Sequence[int], lag: int, found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Means, spreads and paired differences over seeds."""
    report: dict[str, Any] = {}
    for name in ["teacher", *SUITES[suite]]:
        entry: dict[str, Any] = {
            "test": {},
            "params": found[0][name]["params"],
            "flops_per_example": found[0][name]["flops_per_example"],
            "ms_per_1000": mean(one[name]["ms_per_1000"] for one in found),
        }
        for metric in METRICS:
            values = [one[name]["test"][metric] for one in found]
            row: dict[str, Any] = {"by_seed": values, **summary(values)}
            if name not in ("teacher", "alone") and len(seeds) > 1:
                row["difference_from_alone"] = paired(values, [one["alone"]["test"][metric] for one in found])
            entry["test"][metric] = row
        report[name] = entry
    return {"lag_days": lag, "variants": report}


def main() -> None:
    """Runs a suite and writes its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    parser.add_argument("--jobs", type=int, default=2, help="seeds at once, one thread each")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "transfer")
    parser.add_argument("--child", type=int, nargs=2, metavar=("SEED", "LAG"), help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        seed, lag = options.child
        found = one_seed(options.suite, seed, lag, options.work)
        out = options.work / f"{options.suite}-seed{seed}-lag{lag}.json"
        out.write_text(json.dumps(found), encoding="utf-8")
        return
    options.work.mkdir(parents=True, exist_ok=True)
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda seed: all_lags(options, seed), options.seeds))
    report: dict[str, Any] = {"suite": options.suite, "seeds": options.seeds, "lags": []}
    for lag in LAGS[options.suite]:
        found = [
            json.loads((options.work / f"{options.suite}-seed{seed}-lag{lag}.json").read_text(encoding="utf-8"))
            for seed in options.seeds
        ]
        report["lags"].append(collected(options.suite, options.seeds, lag, found))
    path = RESULTS / f"transfer_{options.suite}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for one in report["lags"]:
        print(f"lag {one['lag_days']} days")
        for name, entry in one["variants"].items():
            row = entry["test"]["ne"]
            difference = row.get("difference_from_alone")
            shown = f"{difference['mean']:+.4f} +- {difference['ci95']:.4f}" if difference else ""
            print(
                f"  {name:36} NE {row['mean']:.4f}  {shown:20} calibration {entry['test']['calibration']['mean']:.3f}"
            )
    print(path)


def all_lags(options: argparse.Namespace, seed: int) -> None:
    """One seed, lag after lag, each in a process of its own."""
    for lag in LAGS[options.suite]:
        words = [sys.executable, __file__, options.suite, "--work", str(options.work), "--child", str(seed), str(lag)]
        subprocess.run(words, env=os.environ | {"OMP_NUM_THREADS": "1"}, check=True, stdout=subprocess.DEVNULL)


if __name__ == "__main__":
    main()
