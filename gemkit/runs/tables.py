"""What is printed when a run ends: a table of its test metrics, where everything is, and what to type next."""

from __future__ import annotations

import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

# Metric -> what people call it; in reading order. A metric that no task has gets no row.
_LABELS = {
    "auc": "AUC",
    "auc_best": "  best AUC (the truth)",
    "auc_histogram": "AUC (histogram)",
    "auc_histogram_error": "  at most off by",
    "logloss": "logloss",
    "ne": "NE",
    "ne_floor": "  floor of NE (the truth)",
    "learned": "  share learned",
    "calibration": "calibration",
    "ece": "ECE",
    "pr_auc": "PR-AUC",
    "gauc_impressions": "gAUC (by impressions)",
    "gauc_positives": "gAUC (by positives)",
    "gauc_unweighted": "gAUC (unweighted)",
    "gauc_groups_used": "  groups used",
    "gauc_groups_skipped": "  groups skipped (one class)",
    "label_rate": "label rate",
    "examples": "examples",
}
_SURFACE_METRICS = ("auc", "auc_histogram", "logloss", "ne", "calibration", "examples")


def print_metrics(tasks: Mapping[str, Mapping[str, Any]], title: str, console: Console) -> None:
    """A column for each task; below it, for each task that has surfaces, a row for each surface."""
    bases = sorted({metrics["ne_base"] for metrics in tasks.values() if "ne_base" in metrics})
    labels = _LABELS | {"ne": f"NE (base rate: {', '.join(bases)})"}
    shown = [name for name in labels if any(name in metrics for metrics in tasks.values())]
    rows = [[labels[name], *(format_value(metrics.get(name)) for metrics in tasks.values())] for name in shown]
    print_table(title, ["", *tasks], rows, console)
    for task, metrics in tasks.items():
        surfaces: Mapping[str, Mapping[str, Any]] = metrics.get("surfaces", {})
        columns = [name for name in _SURFACE_METRICS if any(name in m for m in surfaces.values())]
        if surfaces:
            header = ["surface", *(_LABELS[name] for name in columns)]
            lines = [[surface, *(format_value(m.get(c)) for c in columns)] for surface, m in surfaces.items()]
            print_table(f"{task}, by surface", header, lines, console)


def print_run_end(metrics: Mapping[str, Any], run: Path, console: Console) -> None:
    """Test metrics, cost, where the run folder is, and what to type next.

    Args:
        metrics: As in metrics.json: ``{"test": {task: {...}}, "train": {...}}``.
    """
    if metrics.get("test"):
        print_metrics(metrics["test"], "test", console)
    train = metrics.get("train", {})
    facts = [
        template.format(train[key])
        for key, template in (
            ("params", "{:,} parameters"),
            ("examples_per_s", "{:,.0f} examples/s"),
            ("mfu", "MFU {:.1%}"),
            ("wall_s", "{:.1f} s"),
        )
        if train.get(key) is not None
    ]
    name = shlex.quote(str(run))
    lines = [", ".join(facts)] if facts else []
    lines += [f"run folder  {run}", "", "next", f"  gemkit evaluate {name}", f"  gemkit train --resume {name}"]
    for line in lines:
        _print_line(line, console)


def print_table(title: str, header: Sequence[str], rows: Sequence[Sequence[str]], console: Console) -> None:
    """A table: drawn in a terminal; elsewhere aligned text, a line for each row whatever its width."""
    if console.is_terminal and not console.is_dumb_terminal:
        table = Table(title=title, box=box.SIMPLE_HEAD, title_justify="left", title_style="bold")
        for index, name in enumerate(header):
            table.add_column(name, justify="left" if index == 0 else "right", overflow="fold")
        for row in rows:
            table.add_row(*row)
        console.print(table)
        return
    widths = [max(len(row[i]) for row in [header, *rows]) for i in range(len(header))]
    _print_line(title, console)
    for row in [header, *rows]:
        cells = [row[0].ljust(widths[0]), *(cell.rjust(width) for cell, width in zip(row[1:], widths[1:], strict=True))]
        _print_line("  " + "  ".join(cells).rstrip(), console)
    _print_line("", console)


def format_value(value: Any) -> str:
    """A number as it stands in a table: whole numbers with separators, four decimals, "-" if undefined."""
    if value is None:
        return "-"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:.4f}"
    return str(value)


def _print_line(text: str, console: Console) -> None:
    # soft_wrap: a path that is broken over two lines cannot be copied
    console.print(text, markup=False, highlight=False, soft_wrap=True)
