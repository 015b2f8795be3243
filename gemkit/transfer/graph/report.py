"""What a graph has shown: each node's quality and cost, and what each teacher was worth to each student."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any, NamedTuple

import numpy as np

from gemkit.metrics import functional as M
from gemkit.registry import Registry
from gemkit.runs.files import write_text
from gemkit.runs.predictions import load_predictions
from gemkit.studies.statistics import half_width
from gemkit.transfer.graph.config import GraphConfig, strategies
from gemkit.transfer.graph.picture import draw
from gemkit.transfer.graph.run import Trained
from gemkit.transfer.log import TeacherLog
from gemkit.transfer.serving import milliseconds


class Interval(NamedTuple):
    """A mean over seeds and half of its 95 % interval (Student's t); None with one seed."""

    mean: float
    half: float | None

    @classmethod
    def of(cls, values: Sequence[float]) -> Interval:
        """From one value a seed."""
        half = half_width(len(values), stdev(values), 0.0) if len(values) > 1 else None
        return cls(mean(values), half)

    def __str__(self) -> str:
        return f"{self.mean:+.4f}" + ("" if self.half is None else f" ± {self.half:.4f}")


def report(graph: GraphConfig, found: Sequence[Trained], registry: Registry) -> dict[str, Any]:
    """Facts about nodes and edges.

    A node's `gain` is its NE alone minus its NE with teachers, paired by seed, on its own test examples. An edge's
    `transfer_ratio` is that gain as a share of how much better the teacher is there than the student alone:
    TR = (NE_alone - NE_with) / (NE_alone - NE_teacher). It needs a teacher that is better; else it is None.
    """
    runs: dict[tuple[str, bool], list[Trained]] = {}
    for trained in found:
        runs.setdefault((trained.node, trained.alone), []).append(trained)
    nodes, edges = {}, []
    for name, node in graph.nodes.items():
        with_teachers, alone = runs[name, False], runs.get((name, True), [])
        task = graph.task or next(iter(with_teachers[0].run.metrics()["test"]))
        facts = _quality(with_teachers, task) | _cost(with_teachers[0], registry)
        if alone:
            facts["alone"] = _quality(alone, task)
            ne_alone, ne_with = (np.array(side["by_seed"]["ne"]) for side in (facts["alone"], facts))
            facts["gain"] = Interval.of((ne_alone - ne_with).tolist())._asdict()
        nodes[name] = facts | {"task": task}
        for teacher, value in node.teachers.items():
            theirs = _teacher_ne(runs[teacher, False], with_teachers, task)
            edge: dict[str, Any] = {
                **{"teacher": teacher, "student": name, "strategies": list(strategies(value, ""))},
                **{"teacher_ne": mean(theirs), "teacher_ne_by_seed": theirs, "transfer_ratio": None},
            }
            if alone and (ne_alone > theirs).all():
                edge["transfer_ratio"] = Interval.of(((ne_alone - ne_with) / (ne_alone - theirs)).tolist())._asdict()
            edges.append(edge)
    return {"seeds": graph.seeds, "nodes": nodes, "edges": edges}


def _quality(runs: Sequence[Trained], task: str) -> dict[str, Any]:
    tests = [trained.run.metrics()["test"][task] for trained in runs]
    by_seed = {name: [test[name] for test in tests] for name in ("ne", "auc", "calibration")}
    return {name: mean(values) for name, values in by_seed.items()} | {"by_seed": by_seed}


def _cost(trained: Trained, registry: Registry) -> dict[str, Any]:
    """What the model costs in service; the time is measured once and kept beside the run."""
    path = trained.folder / "serving.json"
    if not path.is_file():
        write_text(path, json.dumps({"ms_per_1000": milliseconds(trained.run.path, registry)}) + "\n")
    train = trained.run.metrics()["train"]
    measured: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return {"params": train["params"], "flops_per_example": train.get("flops_per_example")} | measured


def _teacher_ne(teachers: Iterable[Trained], students: Iterable[Trained], task: str) -> list[float]:
    """NE of the teacher's logged answers on the student's test examples, with the student's base rate, by seed."""
    found = []
    for teacher, student in zip(teachers, students, strict=True):
        assert teacher.log is not None
        log, predictions = TeacherLog.open(teacher.log), load_predictions(student.run.path)
        assert predictions is not None
        rows, _ = log.rows()
        column, own = log.tasks.index(task), predictions.tasks.index(task)
        place = np.searchsorted(rows.example_id, predictions.example_id).clip(max=max(log.num_rows - 1, 0))
        counted = predictions.masks[:, own] & (rows.example_id[place] == predictions.example_id)
        logits, labels = rows.logits[place[counted], column], predictions.labels[counted, own]
        weights = predictions.weights[counted]
        losses = np.logaddexp(0, np.where(labels, -logits, logits).astype(np.float64))
        rate = student.run.metrics()["test"][task]["base_rate"]
        ne = M.ne(float((losses * weights).sum() / weights.sum()), rate)
        assert ne is not None  # the student's own NE is known, with the same rate
        found.append(ne)
    return found


def write_report(facts: dict[str, Any], out: Path) -> None:
    """report.json, report.md and graph.svg."""
    write_text(out / "report.json", json.dumps(facts, indent=2) + "\n")
    write_text(out / "report.md", markdown(facts))
    write_text(out / "graph.svg", draw(facts))


def markdown(facts: dict[str, Any]) -> str:
    """The report as two tables."""
    lines = [
        f"{facts['seeds']} seeds; NE relative to the label rate of each node's own training window; gain: NE alone "
        "minus NE with teachers, with its 95 % interval.",
        "",
        "| node | task | NE | alone | gain | AUC | calibration | parameters | MFLOP/example | ms/1,000 examples |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for name, node in facts["nodes"].items():
        alone = f"{node['alone']['ne']:.4f}" if "alone" in node else "-"
        gain = str(Interval(**node["gain"])) if "gain" in node else "-"
        flops = node["flops_per_example"]
        lines.append(
            f"| {name} | {node['task']} | {node['ne']:.4f} | {alone} | {gain} | {node['auc']:.4f} "
            f"| {node['calibration']:.3f} | {node['params']:,} | {'-' if flops is None else f'{flops / 1e6:,.2f}'} "
            f"| {node['ms_per_1000']:.2f} |"
        )
    lines += ["", "| edge | strategies | teacher's NE there | transfer ratio |", "|---|---|---|---|"]
    for edge in facts["edges"]:
        ratio = edge["transfer_ratio"]
        lines.append(
            f"| {edge['teacher']} → {edge['student']} | {', '.join(edge['strategies'])} | {edge['teacher_ne']:.4f} "
            f"| {'-' if ratio is None else Interval(**ratio)} |"
        )
    return "\n".join(lines) + "\n"
