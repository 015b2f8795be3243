"""The history of a run as a picture, drawn from the rows of metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemkit.errors import GemkitError

# What is worth a panel of its own, in reading order; a panel without points is left out.
_PANELS = {
    "loss": "loss",
    "logloss": "logloss",
    "auc": "AUC",
    "auc_histogram": "AUC (histogram)",
    "lr": "learning rate",
    "grad_norm": "gradient norm",
    "examples_per_s": "examples/s",
}


def draw_curves(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
    """Draws a PNG with one panel for each quantity: a line for each split, and for each task.

    Args:
        rows: As `RunFolder.rows` gives them. A value is a number (``loss``, ``lr``) or, under a task's name, a
            mapping of metrics.
    """
    try:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure
        from matplotlib.ticker import EngFormatter
    except ImportError as error:
        raise GemkitError("curves need matplotlib", where=str(path), fix="pip install matplotlib") from error

    panels = _collect(rows)
    columns = 1 if len(panels) <= 1 else 2
    lines = max(1, -(-len(panels) // columns))
    # Figure and canvas without pyplot: no global state, no display, safe in any thread.
    figure = Figure(figsize=(6 * columns, 0.6 + 3.2 * lines), layout="constrained")
    FigureCanvasAgg(figure)
    figure.suptitle(title)
    for index, (metric, series) in enumerate(panels.items()):
        axes = figure.add_subplot(lines, columns, index + 1)
        for label, points in series.items():
            steps, values = zip(*points, strict=True)
            marker = "o" if len(points) < 30 else None
            axes.plot(steps, values, label=label, marker=marker, markersize=3, linewidth=1.3)
        axes.set_title(_PANELS[metric], fontsize=10)
        axes.set_xlabel("step", fontsize=9)
        axes.grid(alpha=0.3)
        if metric == "examples_per_s":
            axes.yaxis.set_major_formatter(EngFormatter())
            axes.set_ylim(0, 1.1 * max(value for points in series.values() for _, value in points))
        if len(series) > 1 or metric in ("loss", "logloss", "auc"):
            axes.legend(fontsize=8)
    if not panels:
        figure.text(0.5, 0.5, "no rows in metrics.jsonl yet", ha="center")
    figure.savefig(path, format="png", dpi=110)


def flatten(row: Mapping[str, Any]) -> Iterator[tuple[str, str, float]]:
    """The numbers of a row as (task or "", metric, value); surfaces and texts are left out."""
    for key, value in row.items():
        if key in ("step", "split", "surfaces"):
            continue
        if isinstance(value, Mapping):
            yield from ((key, metric, number) for _, metric, number in flatten(value))
        elif isinstance(value, int | float) and not isinstance(value, bool):
            yield "", key, float(value)


def _collect(rows: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, list[tuple[int, float]]]]:
    """Panel -> line -> points (step, value)."""
    panels: dict[str, dict[str, list[tuple[int, float]]]] = {metric: {} for metric in _PANELS}
    for row in rows:
        for task, metric, value in flatten(row):
            if metric in panels:
                label = f"{row['split']} {task}".strip()
                panels[metric].setdefault(label, []).append((row["step"], value))
    return {metric: series for metric, series in panels.items() if series}
