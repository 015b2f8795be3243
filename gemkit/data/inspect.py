"""What is in a data set: counts, label rates, histories, time span, features. As plain data, and as tables to print."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table

from gemkit.data import storage
from gemkit.data.dataset import Dataset
from gemkit.data.source import SPLITS

LENGTH_BINS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
"""Lower ends of the bins of the history-length histogram."""


def inspect(dataset: Dataset) -> dict[str, Any]:
    """Facts about a data set, ready for JSON.

    Keys: `name`, `folder`, `fingerprint`, `examples`, `events`, `splits` (per split: examples, surfaces, tasks with
    known, masked and positive counts and the positive rate, first and last second), `features` (size of the table
    and share of unknown ids per split), `histories` (statistics and histogram of lengths).
    """
    return {
        "name": dataset.schema.name,
        "folder": str(dataset.folder),
        "fingerprint": dataset.fingerprint,
        "examples": dataset.num_examples,
        "events": dataset.num_events,
        "splits": {name: _split(dataset, dataset.split(name)) for name in SPLITS},
        "features": _features(dataset),
        "histories": _histories(dataset) if dataset.schema.has_events else None,
    }


def _split(dataset: Dataset, rows: np.ndarray) -> dict[str, Any]:
    timestamp = dataset.columns[storage.TIMESTAMP][rows]
    surface = np.bincount(dataset.columns[storage.SURFACE][rows], minlength=len(dataset.schema.surfaces))
    tasks = {}
    for task in dataset.schema.task_names:
        labels = dataset.columns[task][rows]
        known, positive = int((labels >= 0).sum()), int((labels == 1).sum())
        rate = positive / known if known else None
        tasks[task] = {"known": known, "masked": len(rows) - known, "positive": positive, "rate": rate}
    return {
        "examples": len(rows),
        "first_s": int(timestamp.min()),
        "last_s": int(timestamp.max()),
        "surfaces": dict(zip(dataset.schema.surfaces, surface.tolist(), strict=True)),
        "tasks": tasks,
    }


def _features(dataset: Dataset) -> list[dict[str, Any]]:
    schema = dataset.schema
    sizes = {t.name: t.num_embeddings for t in schema.tables}
    rows = [{"name": f.name, "kind": "dense", "role": f.role, "mean": f.mean, "std": f.std} for f in schema.dense]
    rows += [{"name": f.name, "kind": "vector", "role": f.role, "width": f.width} for f in schema.vectors]
    split = dataset.columns[storage.SPLIT]
    for f in schema.categorical:
        ids, of = dataset.columns.get(f.name), split
        if f.multi:
            offsets, ids = dataset.bags[f.name]
            of = np.repeat(split, np.diff(offsets))
        assert ids is not None
        rows.append(
            {
                "name": f.name,
                "kind": "bag" if f.multi else "id",
                "role": f.role,
                "table": f.table,
                "num_embeddings": sizes[f.table],
                "unknown": {name: _mean(ids[of == i] == 0) for i, name in enumerate(SPLITS)},
            }
        )
    for e in schema.event_fields:
        unknown = _mean(dataset.events[e.name] == 0)
        rows.append({"name": e.key, "kind": "event", "role": "user", "table": e.table, "unknown": {"events": unknown}})
        rows[-1]["num_embeddings"] = sizes[e.table]
    return rows


def _histories(dataset: Dataset) -> dict[str, Any]:
    lengths = dataset.columns[storage.HISTORY_END] - dataset.columns[storage.HISTORY_START]
    bins = np.bincount(np.searchsorted(LENGTH_BINS, lengths, side="right") - 1, minlength=len(LENGTH_BINS))
    streams = np.bincount(dataset.events[storage.STREAM], minlength=len(dataset.schema.streams))
    last = int(np.flatnonzero(bins)[-1])
    return {
        "mean": float(lengths.mean()),
        "median": float(np.median(lengths)),
        "p90": float(np.percentile(lengths, 90)),
        "p99": float(np.percentile(lengths, 99)),
        "max": int(lengths.max()),
        "distinct": int(dataset.columns[storage.HISTORY].max()) + 1,
        "streams": dict(zip(dataset.schema.streams, streams.tolist(), strict=True)),
        "histogram": [
            {"from": low, "to": high, "examples": int(n)}
            for low, high, n in zip(LENGTH_BINS, (*LENGTH_BINS[1:], None), bins, strict=True)
        ][: last + 1],
    }


def _mean(values: np.ndarray) -> float | None:
    return float(values.mean()) if len(values) else None


def render(report: dict[str, Any]) -> RenderableType:
    """A report of `inspect` for `rich.print`."""
    parts: list[RenderableType] = [
        f"[bold]{report['name']}[/]  {report['examples']:,} examples, {report['events']:,} events"
    ]
    parts.append(_render_splits(report["splits"]))
    parts.append(_render_features(report["features"]))
    if report["histories"]:
        parts.append(_render_histogram(report["histories"]["histogram"]))
        parts.append(_statistics(report["histories"]))
    return Group(*parts)


def _render_splits(splits: dict[str, Any]) -> Table:
    table = Table("split", title="Splits", title_justify="left")
    for heading in ("examples", "task", "positive rate", "known", "masked"):
        table.add_column(heading, justify="left" if heading == "task" else "right")
    table.add_column("time span (UTC)")
    table.add_column("surfaces")
    for name, split in splits.items():
        span = f"{_date(split['first_s'])} to {_date(split['last_s'])}" if split["last_s"] else ""
        surfaces = ", ".join(f"{s} {n:,}" for s, n in split["surfaces"].items())
        for i, (task, counts) in enumerate(split["tasks"].items()):
            rate = "" if counts["rate"] is None else f"{counts['rate']:.4f}"
            first = (name, f"{split['examples']:,}") if i == 0 else ("", "")
            table.add_row(
                *first,
                task,
                rate,
                f"{counts['known']:,}",
                f"{counts['masked']:,}",
                *((span, surfaces) if i == 0 else ()),
            )
    return table


def _render_features(features: list[dict[str, Any]]) -> Table:
    table = Table("feature", "kind", "role", "table", title="Features", title_justify="left")
    for heading in ("rows", "unknown in valid", "in test"):
        table.add_column(heading, justify="right")
    for f in features:
        unknown = f.get("unknown", {})
        shares = ["" if unknown.get(s) is None else f"{unknown[s]:.2%}" for s in ("valid", "test")]
        rows = f"{f['num_embeddings']:,}" if "num_embeddings" in f else ""
        table.add_row(f["name"], f["kind"], f["role"], f.get("table", ""), rows, *shares)
    return table


def _statistics(histories: dict[str, Any]) -> str:
    numbers = ", ".join(f"{key} {histories[key]:,.0f}" for key in ("mean", "median", "p90", "p99", "max"))
    return f"Events before an example: {numbers}; {histories['distinct']:,} distinct histories"


def _render_histogram(bins: list[dict[str, Any]]) -> Table:
    table = Table("events", title="Histories", title_justify="left")
    table.add_column("examples", justify="right")
    table.add_column("")
    most = max(b["examples"] for b in bins)
    for b in bins:
        last = b["to"] - 1 if b["to"] else None
        label = (
            f"{b['from']:,}+"
            if last is None
            else f"{b['from']:,}"
            if last == b["from"]
            else f"{b['from']:,} to {last:,}"
        )
        table.add_row(label, f"{b['examples']:,}", "█" * round(30 * b["examples"] / most))
    return table


def _date(seconds: int) -> str:
    return str(np.datetime64(seconds, "s").astype("datetime64[m]")).replace("T", " ")
