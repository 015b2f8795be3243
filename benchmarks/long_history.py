"""Histories of 2,000 events on the synthetic ads world: the pyramid against full attention, paired seeds.

    python benchmarks/long_history.py

What is to be found are some 40 searches, older than the newest 20 events, among 2,000. Every variant is trained for
some epochs on a short window of each history and for one more on the long one, with `train.start_from`: on the long
window alone, a signal in two events of a hundred takes too many steps to begin with. The result, benchmarks/results/
long_history.json, has each run's test metrics and cost, and the paired difference from full attention over the seeds
with which both have found the signal, with its 95 % interval (Student's t). Runs that have finished are kept under
--work and not run again.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import json
from pathlib import Path
from typing import Any

from movielens import RESULTS, paired, summary
from once import ROOT, trained

WORLD = (
    *("experiment=adsworld_silent", "data.num_users=6000", "data.examples_per_user=20", "data.ads_per_request=20"),
    *("data.mean_history=2000", "data.shortest_history=500", "data.old_events=3", "data.click_rate=0.3"),
    *("data.only_tasks=[click]", "optimizer.lr=3e-3", "optimizer.warmup_steps=50"),
    *("train.batch_size=128", "train.num_threads=1"),
)
SHORT, LONG = 256, 2000
"""Events of the two stages."""
EPOCHS = 2
"""Of the first stage."""
GATE = "cross.gating=gate"
PYRAMID = "sequence.chunk_sizes=[64,16]"
VARIANTS: dict[str, tuple[tuple[str, ...], int, int]] = {
    "full attention": (("sequence=transformer", GATE), SHORT, LONG),
    "pyramid": ((PYRAMID, GATE), SHORT, LONG),
    "pyramid, newest 20 events": ((PYRAMID, GATE), 20, 20),
    "no history": (("sequence=none", "cross=none"), 1, 1),
}
"""Name -> words, and the window of each stage."""
FOUND = 0.5
"""Share of the signal from which a run has found it: those that have not are near 0."""
METRICS = ("ne", "auc", "learned", "logloss")


def one(name: str, seed: int, work: Path) -> dict[str, Any]:
    """A variant with one seed: what it found, and what its second stage cost."""
    own, short, long = VARIANTS[name]
    words = [*WORLD, *own, f"seed={seed}", f"data.root={work / 'datasets'}"]
    folder = work / name.replace(" ", "_").replace(",", "") / f"seed{seed}"
    first = trained([*words, f"data.max_history={short}", f"train.epochs={EPOCHS}"], folder / "short")
    second = trained(
        [*words, f"data.max_history={long}", "train.epochs=1", f"train.start_from={first}"], folder / "long"
    )
    metrics = json.loads((second / "metrics.json").read_text(encoding="utf-8"))
    test, cost = metrics["test"]["click"], metrics["train"]
    facts = {key: test[key] for key in METRICS} | {"ne_floor": test["ne_floor"], "auc_best": test["auc_best"]}
    return facts | {key: cost[key] for key in ("flops_per_example", "examples_per_s")}


def main() -> None:
    """Runs all and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=list(range(1, 11)))
    parser.add_argument("--jobs", type=int, default=2, help="runs at once, one thread each")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "long_history")
    options = parser.parse_args()
    jobs = [(name, seed) for seed in options.seeds for name in VARIANTS]
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        rows = dict(zip(jobs, pool.map(lambda job: one(*job, options.work), jobs), strict=True))
    report: dict[str, Any] = {"seeds": options.seeds, "windows": [SHORT, LONG], "epochs": [EPOCHS, 1], "variants": {}}
    for name in VARIANTS:
        found = [rows[name, seed] for seed in options.seeds]
        entry: dict[str, Any] = {}
        for key in found[0]:
            values = [row[key] for row in found]
            entry[key] = {"by_seed": values} | (summary(values) if None not in values else {})
        pairs = [(rows[name, seed], rows["full attention", seed]) for seed in options.seeds]
        both = [(a["ne"], b["ne"]) for a, b in pairs if min(a["learned"], b["learned"]) > FOUND]
        entry["found"] = sum(row["learned"] > FOUND for row in found)
        compared = name != "full attention" and len(both) > 1
        entry["ne_difference"] = paired(*map(list, zip(*both, strict=True))) if compared else None
        report["variants"][name] = entry
        print(
            f"{name:28} NE {entry['ne']['mean']:.4f}  learned {entry['learned']['mean']:.3f}  {entry['ne_difference']}"
        )
    path = RESULTS / "long_history.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
