"""Paired seeds on the synthetic ads world: conversions that come late; one model for all surfaces, or one for each.

    python benchmarks/worlds.py late_labels   labels as known when training ends, by what the head makes of them
    python benchmarks/worlds.py surfaces      a model of three surfaces against a model for each, by what they share

A seed is a world of its own and a model's. Each run that has finished is kept under --work and not run again. The
result goes to benchmarks/results/<suite>.json: test metrics by seed, and paired differences from each world's first
variant with their 95 % interval (Student's t over seeds).
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from movielens import RESULTS, paired, summary
from once import ROOT, trained

MODEL = (
    *("sequence=none", "cross=none", "size.dim=16", "size.num_blocks=2", "interaction.hidden=[64]"),
    *("train.batch_size=256", "optimizer.lr=3e-3", "optimizer.warmup_steps=20", "train.num_threads=1"),
)
LATE_WORLD = (
    *("experiment=adsworld_silent", "data.num_users=12000", "data.examples_per_user=60", "data.days=28"),
    *("data.interest=1", "data.pair=1", "data.quad=0.5", "data.shared=0.5", "data.advertiser=0.5"),
    *("data.click_rate=0.3", "data.mean_delay_s=259200", "data.only_tasks=[conversion]"),
    "data.test_days=[14,20]",
)
"""The middle advertiser's conversions come three days after the click, mean."""
LATE_DAYS = ("data.train_days=[0,13]", "data.valid_days=[13,14]")
KNOWN = "data.labels_as_of=14"
SURFACES = ("feed", "stories", "search")
SURFACE_WORLD = (
    *("experiment=adsworld_silent", "data.num_users=12000", "data.examples_per_user=40", "data.days=14"),
    *("data.pair=1", "data.advertiser=0.5"),
)
SURFACE_VARIANTS = {
    "one model": ("data.only_tasks=[click]",),
    "one model, surface_gated": ("data.only_tasks=[click]", "domain=surface_gated"),
    "one model, a head for each": ("data.only_tasks=[click]", "head=per_surface"),
    "one model, both tasks": (),
    "a model for each": ("data.only_tasks=[click]",),
}
APART = "a model for each"
"""The variant that is trained once for each surface, on its examples alone."""

SUITES: dict[str, dict[str, Any]] = {
    "late_labels": {
        "task": "conversion",
        "seeds": [1, 2, 3, 4, 5],
        "worlds": {"late conversions": LATE_WORLD},
        "variants": {
            "final labels": LATE_DAYS,
            "naive": (*LATE_DAYS, KNOWN),
            "naive, ripe labels": ("data.train_days=[0,6]", "data.valid_days=[6,7]", KNOWN),
            "delayed_feedback": (*LATE_DAYS, KNOWN, "head.late_labels=delayed_feedback"),
            "windows": (*LATE_DAYS, KNOWN, "head.late_labels=windows", "head.windows_s=[43200,172800,432800,864000]"),
        },
    },
    "surfaces": {
        "task": "click",
        "seeds": [1, 2, 3],
        "worlds": {
            "alike": (*SURFACE_WORLD, "data.shared=1"),
            "half": (*SURFACE_WORLD, "data.shared=0.7", "data.private=0.7"),
            "different": (*SURFACE_WORLD, "data.private=1"),
        },
        "variants": SURFACE_VARIANTS,
    },
}
METRICS = ("logloss", "auc", "calibration")


def metrics_of(words: Sequence[str], seed: int, folder: Path, root: Path, task: str) -> dict[str, Any]:
    """Test metrics of a task, by surface too, of a run with these words; it is trained unless it is there."""
    done = trained([*words, f"seed={seed}", f"data.seed={seed}", f"data.root={root}"], folder)
    found: dict[str, Any] = json.loads((done / "metrics.json").read_text(encoding="utf-8"))["test"][task]
    return found


def one(suite: str, world: str, variant: str, seed: int, work: Path) -> dict[str, float]:
    """A variant's metrics with one seed; of several models, means over all of their examples."""
    facts = SUITES[suite]
    words = [*facts["worlds"][world], *MODEL, *facts["variants"][variant]]
    name = f"{world}/{variant}".replace(" ", "_").replace(",", "")  # a comma in a word is a list's
    folder, root, task = work / suite / name / f"seed{seed}", work / "datasets", facts["task"]
    if variant != APART:
        found = metrics_of(words, seed, folder, root, task)
        return {name: found[name] for name in METRICS} | {"examples": found["examples"]}
    found_by = [metrics_of([*words, f"data.only_surfaces=[{s}]"], seed, folder / s, root, task) for s in SURFACES]
    examples = sum(found["examples"] for found in found_by)
    positives = sum(found["positives"] for found in found_by)
    return {
        "logloss": sum(found["logloss"] * found["examples"] for found in found_by) / examples,
        "calibration": sum(found["calibration"] * found["positives"] for found in found_by) / positives,
        "examples": examples,
    }


def collected(suite: str, world: str, seeds: Sequence[int], work: Path) -> dict[str, Any]:
    """A world's variants: means, spreads, paired differences from the first. AUC over models apart means nothing."""
    variants = list(SUITES[suite]["variants"])
    found = {name: [one(suite, world, name, seed, work) for seed in seeds] for name in variants}
    report: dict[str, Any] = {}
    for name, by_seed in found.items():
        report[name] = {}
        for metric in METRICS:
            if metric not in by_seed[0]:
                continue
            values = [row[metric] for row in by_seed]
            row: dict[str, Any] = {"by_seed": values, **summary(values)}
            if name != variants[0] and len(seeds) > 1:
                row["difference"] = paired(values, [r[metric] for r in found[variants[0]]])
            report[name][metric] = row
    return report


def main() -> None:
    """Runs a suite and writes its result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--seeds", type=int, nargs="+", help="in place of the suite's own")
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "worlds")
    options = parser.parse_args()
    facts = SUITES[options.suite]
    options.seeds = options.seeds or facts["seeds"]
    jobs = [(world, name, seed) for seed in options.seeds for world in facts["worlds"] for name in facts["variants"]]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        list(pool.map(lambda job: one(options.suite, *job, options.work), jobs))
    worlds = {world: collected(options.suite, world, options.seeds, options.work) for world in facts["worlds"]}
    report = {"task": facts["task"], "seeds": options.seeds, "worlds": worlds}
    path = RESULTS / f"{options.suite}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for world, variants in worlds.items():
        print(world)
        for name, row in variants.items():
            difference = row["logloss"].get("difference")
            shown = f"{difference['mean']:+.5f} +- {difference['ci95']:.5f}" if difference else ""
            print(
                f"  {name:28} logloss {row['logloss']['mean']:.5f} {shown:22} calibration "
                f"{row['calibration']['mean']:.3f}"
            )
    print(path)


if __name__ == "__main__":
    main()
