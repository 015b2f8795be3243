"""Paired seeds on MovieLens-1M: which sentence wins, and by how much more than seed noise.

    python benchmarks/movielens.py histories        # full model, sequence=none, cross=none, mean pooling
    python benchmarks/movielens.py histories_of_32  # the same with 32 events of history instead of 48
    python benchmarks/movielens.py autoint          # the Wukong model on the published AutoInt split

Each variant is trained with each seed by the command line, one thread a run, `--jobs` runs at once; a run that has
finished is not run again. Results go to benchmarks/results/<name>.json: every run's test metrics, mean and standard
deviation over seeds, and the paired difference from the first variant with its 95 % confidence interval.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
from pathlib import Path
from statistics import mean, stdev
from typing import Any

from once import ROOT, trained

RESULTS = ROOT / "benchmarks" / "results"

ABLATIONS: dict[str, list[str]] = {
    "full": [],
    "sequence=none": ["sequence=none"],
    "cross=none": ["cross=none"],
    "sequence=mean_pooling": ["sequence=mean_pooling"],
}
SUITES: dict[str, dict[str, list[str]]] = {
    "histories": ABLATIONS,
    "histories_of_32": {name: ["data.max_history=32", *words] for name, words in ABLATIONS.items()},
    "autoint": {"wukong": ["experiment=movielens1m_autoint"]},
}
METRICS = ("auc", "logloss", "ne", "gauc_impressions", "calibration", "ece")
T_95 = {1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262}
"""Student's t, 97.5 % quantile, by degrees of freedom."""


def train(name: str, overrides: list[str], seed: int, runs: Path) -> dict[str, Any]:
    """Trains one variant with one seed, unless its folder is there; returns its metrics.json."""
    folder = runs / name.replace("=", "_") / f"seed{seed}"
    done = trained([*overrides, f"seed={seed}", "train.num_threads=1"], folder)
    metrics: dict[str, Any] = json.loads((done / "metrics.json").read_text(encoding="utf-8"))
    metrics["environment"] = json.loads((done / "environment.json").read_text(encoding="utf-8"))
    return metrics


def summary(values: list[float]) -> dict[str, float]:
    """Mean and standard deviation over seeds."""
    return {"mean": mean(values), "sd": stdev(values) if len(values) > 1 else 0.0}


def paired(values: list[float], baseline: list[float]) -> dict[str, float]:
    """Mean difference from the baseline over the same seeds, and the half-width of its 95 % interval."""
    differences = [v - b for v, b in zip(values, baseline, strict=True)]
    spread = stdev(differences) if len(differences) > 1 else float("nan")
    return {"mean": mean(differences), "ci95": T_95[len(differences) - 1] * spread / len(differences) ** 0.5}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "benchmarks")
    options = parser.parse_args()
    variants = SUITES[options.suite]
    # Seed by seed, so that the variants of one seed run side by side.
    jobs = [(name, seed) for seed in options.seeds for name in variants]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        runs = options.runs / options.suite
        found = list(pool.map(lambda job: train(job[0], variants[job[0]], job[1], runs), jobs))
    results = dict(zip(jobs, found, strict=True))

    first = next(iter(variants))
    tasks = list(results[first, options.seeds[0]]["test"])
    environment = results[first, options.seeds[0]]["environment"]
    report: dict[str, Any] = {
        "suite": options.suite,
        "seeds": options.seeds,
        "torch": environment["packages"]["torch"],
        "cpu": environment.get("cpu"),
        "commits": sorted({json.dumps(found["environment"].get("git")) for found in results.values()}),
        "variants": {},
    }
    for name, overrides in variants.items():
        by_seed = [results[name, seed] for seed in options.seeds]
        entry: dict[str, Any] = {
            "command": " ".join(["gemkit train", *overrides]),
            "params": by_seed[0]["train"]["params"],
            "examples_per_s_one_thread": mean(r["train"]["examples_per_s"] for r in by_seed),
            "test": {},
        }
        for task in tasks:
            rows = {}
            for metric in METRICS:
                values = [r["test"][task].get(metric) for r in by_seed]
                if None in values:
                    continue
                rows[metric] = {"by_seed": values, **summary(values)}
                if name != first:
                    baseline = [results[first, seed]["test"][task][metric] for seed in options.seeds]
                    rows[metric]["difference_from_first"] = paired(values, baseline)
            entry["test"][task] = rows
        report["variants"][name] = entry
    RESULTS.mkdir(parents=True, exist_ok=True)
    path = RESULTS / f"movielens1m_{options.suite}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, entry in report["variants"].items():
        for task, rows in entry["test"].items():
            cells = []
            for metric in ("auc", "logloss", "ne"):
                row = rows[metric]
                cell = f"{metric} {row['mean']:.4f} +- {row['sd']:.4f}"
                if difference := row.get("difference_from_first"):
                    cell += f" ({difference['mean']:+.4f} +- {difference['ci95']:.4f})"
                cells.append(cell)
            print(f"{name:24} {task:6} {'  '.join(cells)}")
    print(path)


if __name__ == "__main__":
    main()
