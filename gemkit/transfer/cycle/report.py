"""What a cycle has shown, day by day."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean
from typing import Any

from gemkit.runs.files import write_text
from gemkit.transfer.cycle.picture import draw
from gemkit.transfer.cycle.run import Served

METRICS = ("ne", "auc", "calibration")


def report(served: Sequence[Served], task: str | None) -> dict[str, Any]:
    """Metrics of each model on each day that it served before it was trained on it: means over seeds."""
    task = task or next(iter(served[0].run.metrics()["test"]))
    by_model: dict[str, dict[int, list[dict[str, Any]]]] = {}
    for one in served:
        by_model.setdefault(one.model, {}).setdefault(one.day, []).append(one.run.metrics()["test"][task])
    models: dict[str, Any] = {}
    for model, found in by_model.items():
        days = {str(day): _one_day(tests) for day, tests in sorted(found.items())}
        models[model] = {name: _mean([day[name] for day in days.values()]) for name in METRICS} | {"days": days}
    return {"task": task, "seeds": len({one.seed for one in served}), "models": models}


def _one_day(tests: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """A day's metrics, from those of each seed."""
    by_seed = {name: [test[name] for test in tests] for name in METRICS}
    means = {name: _mean(values) for name, values in by_seed.items()}
    return {**means, "by_seed": by_seed, "examples": tests[0]["examples"]}


def _mean(values: Sequence[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return mean(known) if known else None


def write_report(facts: dict[str, Any], out: Path) -> None:
    """report.json, report.md and days.svg."""
    write_text(out / "report.json", json.dumps(facts, indent=2) + "\n")
    write_text(out / "report.md", markdown(facts))
    draw(facts, out / "days.svg")


def markdown(facts: dict[str, Any]) -> str:
    """A table with a row a day: NE and calibration of each model."""
    models = facts["models"]
    head = ["day", *(f"{model}: NE" for model in models), *(f"{model}: calibration" for model in models)]
    lines = [
        f"`{facts['task']}`, {facts['seeds']} seed{'s' * (facts['seeds'] > 1)}; each day is predicted before anything "
        "is trained on it. NE is relative to the label rate of the days that the model was last trained on.",
        "",
        f"| {' | '.join(head)} |",
        "|---" * len(head) + "|",
    ]
    days = sorted({int(day) for facts_ in models.values() for day in facts_["days"]})
    for day in days:
        cells = [models[m]["days"].get(str(day), {}).get(name) for name in ("ne", "calibration") for m in models]
        lines.append(f"| {day} | {' | '.join(_shown(c) for c in cells)} |")
    means = [models[m][name] for name in ("ne", "calibration") for m in models]
    lines.append(f"| mean | {' | '.join(_shown(c) for c in means)} |")
    return "\n".join(lines) + "\n"


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
