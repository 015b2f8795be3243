"""Codes of a teacher that is refreshed while its students serve: MovieLens-1M by time, students of one age group.

    python benchmarks/refreshed_codes.py

A GEM is trained on days 0 to 126. Students read codes of the user's earlier examples, are trained on days 135 to 210
and tested on days 213 to 249. The GEM answers until day 213; from then on either it goes on, or another one does: the
same one, trained on until day 205, or a new one with other first weights. What another one says is in the code space of
the first, as `gemkit teach` writes it into a log that others have begun, or in one of its own.

Each run and each log that is there under --work is not made again. The result, test metrics by seed and the paired
differences in NE from students of one teacher, goes to benchmarks/results/refreshed_codes.json.
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

from gemkit.registry import load_registry
from gemkit.runs.progress import Progress
from gemkit.transfer.codes import Coding
from gemkit.transfer.log import TeacherLog
from gemkit.transfer.teach import Lesson, teach

DATA = ("data=movielens1m", "data.surface_by=age", "data.only_tasks=[like]", "train.num_threads=1")
GROUP = "25"
TEACHER = ("data.train_days=[0,127]", "data.valid_days=[127,135]", "data.test_days=[135,190]")
TRAINED_ON = ("data.train_days=[135,205]", "data.valid_days=[205,213]", "data.test_days=[213,250]")
NEW = ("data.train_days=[0,205]", "data.valid_days=[205,213]", "data.test_days=[213,250]")
STUDENT = (
    *("data.train_days=[135,211]", "data.valid_days=[211,213]", "data.test_days=[213,250]"),
    *(f"data.only_surfaces=['{GROUP}']", "sequence=none", "cross=none", "size.dim=16", "size.num_blocks=1"),
    *("interaction.hidden=[32]", "head.hidden=[32]", "train.batch_size=256", "optimizer.lr=3e-3"),
    "optimizer.warmup_steps=20",
)
FIRST, THEN, END = 135, 213, 250
"""Days: the students' first, the other teacher's first, and the end."""
OTHER_SEED = 100
"""What is added to the seed of a new teacher."""
CODES = Coding(32, 8, "example")
KINDS = {
    "one teacher": "one",
    "trained on, anchored": "trained_on",
    "trained on, not anchored": "trained_on_loose",
    "a new one, anchored": "new",
    "a new one, not anchored": "new_loose",
}
METRICS = ("ne", "auc", "calibration")


def one_seed(seed: int, work: Path) -> dict[str, dict[str, float]]:
    """Test metrics of every student of a seed."""
    own = work / f"seed{seed}"
    first = trained([*DATA, *TEACHER, f"seed={seed}"], own / "teacher")
    going_on = trained([*DATA, *TRAINED_ON, f"seed={seed}", f"train.start_from={first}"], own / "teacher_trained_on")
    new = trained([*DATA, *NEW, f"seed={seed + OTHER_SEED}"], own / "teacher_new")
    logs = own / "logs"
    answer(first, logs / "one", FIRST, END, CODES)
    for name, other in (("trained_on", going_on), ("new", new)):
        answer(first, logs / name, FIRST, THEN, CODES)
        answer(other, logs / name, THEN, END, None)
        answer(other, logs / f"{name}_own", THEN, END, CODES)
        mix(logs / name, logs / f"{name}_own", logs / f"{name}_loose")
    words = [*DATA, *STUDENT, f"seed={seed}"]
    found = {"alone": facts(trained(words, own / "alone"))}
    for of in ("mean", "newest"):
        for kind, log in KINDS.items():
            reading = ["transfer=representation", f"transfer.log={logs / log}", f"transfer.of={of}"]
            found[f"{of}: {kind}"] = facts(trained([*words, *reading], own / f"{of}_{log}"))
    return found


def answer(teacher: Path, log: Path, first: int, end: int, coding: Coding | None) -> None:
    """What a teacher says about the group's examples of these days; without a coding, in the space that the log has."""
    lesson = Lesson(days=(first, end), surfaces=(GROUP,), coding=coding)
    teach(teacher, log, lesson, load_registry(), Progress(quiet=True))


def mix(anchored: Path, own: Path, loose: Path) -> None:
    """A log with the first teacher's answers, and the other one's with codes of its own space."""
    if TeacherLog.is_there(loose):
        return
    mixed, newer = TeacherLog.open(anchored), TeacherLog.open(own)
    fresh = TeacherLog.create(loose.with_suffix(".made"), mixed.tasks, mixed.data, mixed.origin, mixed.space)
    old = [part for part in mixed.parts if part.checkpoint == mixed.parts[0].checkpoint]
    for source, parts in ((mixed, old), (newer, newer.parts)):
        fresh.append(source.as_asked(parts), parts[0].teacher, parts[0].checkpoint, parts[0].snapshot_s)
    fresh.folder.rename(loose)


def facts(run: Path) -> dict[str, float]:
    """Test metrics of a finished run."""
    test = json.loads((run / "metrics.json").read_text(encoding="utf-8"))["test"]["like"]
    return {name: test[name] for name in METRICS}


def collected(found: Sequence[dict[str, dict[str, float]]]) -> dict[str, Any]:
    """By variant and metric: values by seed, their mean and spread, and the difference from one teacher."""
    report: dict[str, Any] = {}
    for name in found[0]:
        report[name] = {}
        baseline = "mean: one teacher" if name == "alone" else f"{name.partition(':')[0]}: one teacher"
        for metric in METRICS:
            values = [one[name][metric] for one in found]
            row: dict[str, Any] = {"by_seed": values, **summary(values)}
            if name != baseline and len(found) > 1:
                row["difference"] = paired(values, [one[baseline][metric] for one in found])
            report[name][metric] = row
    return report


def main() -> None:
    """Runs all seeds and writes the result."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3])
    parser.add_argument("--jobs", type=int, default=2, help="seeds at once, one thread each")
    parser.add_argument("--work", type=Path, default=ROOT / "runs" / "refreshed_codes")
    options = parser.parse_args()
    with concurrent.futures.ThreadPoolExecutor(options.jobs) as pool:
        found = list(pool.map(lambda seed: one_seed(seed, options.work), options.seeds))
    report = {"seeds": options.seeds, "variants": collected(found)}
    path = RESULTS / "refreshed_codes.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    for name, row in report["variants"].items():
        difference = row["ne"].get("difference")
        shown = f"{difference['mean']:+.4f} +- {difference['ci95']:.4f}" if difference else ""
        print(f"{name:36} NE {row['ne']['mean']:.4f} {shown:20} calibration {row['calibration']['mean']:.3f}")
    print(path)


if __name__ == "__main__":
    main()
