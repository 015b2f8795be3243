"""What is in a data set: counts, label rates, histories, time span, features. As plain data, and as tables to print."""

from __future__ import annotations

from typing import Any

import numpy as np
from rich.console import Group, RenderableType
from rich.table import Table

from gemkit.config.fields import LARGEST
from gemkit.data import storage
from gemkit.data.dataset import Dataset
from gemkit.data.schema import CategoricalFeature
from gemkit.data.source import SPLITS

LENGTH_BINS = (0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
"""Lower ends of the bins of the history-length histogram."""


def inspect(dataset: Dataset) -> dict[str, Any]:
    """Facts about a data set, ready for JSON.

    Keys: `name`, `folder`, `fingerprint`, `examples`, `events`, `splits` (per split: examples, surfaces, tasks with
    known, masked and positive counts, the positive rate and, with a known truth, `floor`; first and last second),
    `features` (size of the table and share of unknown ids per split), `histories` (statistics and histogram of
    lengths).
    """
    return {
        "name": dataset.schema.name,
        "folder": str(dataset.folder),
        "fingerprint": dataset.fingerprint,
        "examples": dataset.num_examples,
        "events": dataset.num_events,
        "splits": _splits(dataset),
        "features": _features(dataset),
        "histories": _histories(dataset) if dataset.schema.has_events else None,
    }


def _splits(dataset: Dataset) -> dict[str, Any]:
    splits = {name: _split(dataset, name) for name in SPLITS}
    if any(task.truth for task in dataset.schema.tasks):
        from gemkit.metrics.floor import floors  # brings torch, which nothing else here needs

        rates = {task: counts["rate"] for task, counts in splits["train"]["tasks"].items()}
        for name, split in splits.items():
            for task, floor in floors(dataset, name, rates).items():
                split["tasks"][task]["floor"] = floor
    return splits


def _split(dataset: Dataset, name: str) -> dict[str, Any]:
    parts = [np.arange(a, b) for a, b in zip(*dataset.split_ranges(name), strict=True) if b > a]
    columns = dataset.columns
    surfaces = np.zeros(len(dataset.schema.surfaces), np.int64)
    counts = {task: {"known": 0, "positive": 0} for task in dataset.schema.task_names}
    first, last = [], []
    for rows in parts:
        timestamp = columns[storage.TIMESTAMP][rows]
        first.append(int(timestamp.min()))
        last.append(int(timestamp.max()))
        surfaces += np.bincount(columns[storage.SURFACE][rows], minlength=len(surfaces))
        for task, of_task in counts.items():
            labels = columns[task][rows]
            of_task["known"] += int((labels >= 0).sum())
            of_task["positive"] += int((labels == 1).sum())
    examples = sum(len(rows) for rows in parts)
    tasks: dict[str, Any] = {}
    for task, n in counts.items():
        rate = n["positive"] / n["known"] if n["known"] else None
        tasks[task] = {"known": n["known"], "masked": examples - n["known"], "positive": n["positive"], "rate": rate}
    return {
        "examples": examples,
        "first_s": min(first),
        "last_s": max(last),
        "surfaces": dict(zip(dataset.schema.surfaces, surfaces.tolist(), strict=True)),
        "tasks": tasks,
    }


def _features(dataset: Dataset) -> list[dict[str, Any]]:
    schema = dataset.schema
    sizes = {t.name: t.num_embeddings for t in schema.tables}
    rows = [{"name": f.name, "kind": "dense", "role": f.role, "mean": f.mean, "std": f.std} for f in schema.dense]
    rows += [{"name": f.name, "kind": "vector", "role": f.role, "width": f.width} for f in schema.vectors]
    for f in schema.categorical:
        row = {"name": f.name, "kind": "bag" if f.multi else "id", "role": f.role, "table": f.table}
        rows.append(row | {"num_embeddings": sizes[f.table], "unknown": _unknown(dataset, f)})
    for e in schema.event_fields:
        zeros = sum(int((s.events[e.name] == 0).sum()) for s in dataset.shards)
        unknown = {"events": zeros / dataset.num_events if dataset.num_events else None}
        rows.append({"name": e.key, "kind": "event", "role": "user", "table": e.table, "unknown": unknown})
        rows[-1]["num_embeddings"] = sizes[e.table]
    return rows


def _unknown(dataset: Dataset, feature: CategoricalFeature) -> dict[str, float | None]:
    """Share of unknown ids in each split, counted over examples whoever holds the feature."""
    shares: dict[str, float | None] = {}
    for name in SPLITS:
        zeros = ids_in_all = 0
        for start, end in zip(*dataset.split_ranges(name), strict=True):
            rows = np.arange(start, end)
            parts = dataset.located(rows)
            if feature.multi:
                ids, _ = dataset.take_bags(feature.name, parts, len(rows), feature.of)
            else:
                ids = dataset.take(feature.name, parts, len(rows), feature.of)
            zeros += int((ids == 0).sum())
            ids_in_all += len(ids)
        shares[name] = zeros / ids_in_all if ids_in_all else None
    return shares


def _histories(dataset: Dataset) -> dict[str, Any]:
    lengths = dataset.history_lengths(np.arange(dataset.num_examples), LARGEST)
    bins = np.bincount(np.searchsorted(LENGTH_BINS, lengths, side="right") - 1, minlength=len(LENGTH_BINS))
    streams = sum(np.bincount(s.events[storage.STREAM], minlength=len(dataset.schema.streams)) for s in dataset.shards)
    last = int(np.flatnonzero(bins)[-1])
    return {
        "mean": float(lengths.mean()),
        "median": float(np.median(lengths)),
        "p90": float(np.percentile(lengths, 90)),
        "p99": float(np.percentile(lengths, 99)),
        "max": int(lengths.max()),
        "distinct": sum(len(np.unique(s.examples.columns[storage.HISTORY])) for s in dataset.shards),
        "streams": dict(zip(dataset.schema.streams, np.asarray(streams).tolist(), strict=True)),
        "histogram": [
            {"from": low, "to": high, "examples": int(n)}
            for low, high, n in zip(LENGTH_BINS, (*LENGTH_BINS[1:], None), bins, strict=True)
        ][: last + 1],
    }


def render(report: dict[str, Any]) -> RenderableType:
    """A report of `inspect` for `rich.print`."""
    parts: list[RenderableType] = [
        f"[bold]{report['name']}[/]  {report['examples']:,} examples, {report['events']:,} events"
    ]
    parts.append(_render_splits(report["splits"]))
    if any("floor" in task for split in report["splits"].values() for task in split["tasks"].values()):
        parts.append(render_floors(report["splits"]))
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


def render_floors(splits: dict[str, Any]) -> Table:
    """The best that a model can reach in each split, of a report of `inspect`, where the truth is known."""
    table = Table(
        "split", "task", title="Floor: what the truth itself reaches (base rate: train)", title_justify="left"
    )
    keys = ("examples", "rate", "ne_floor", "ne_floor_expected", "auc_best")
    for heading in ("examples", "positive rate", "NE", "expected", "AUC"):
        table.add_column(heading, justify="right")
    for name, split in splits.items():
        for task, counts in split["tasks"].items():
            if "floor" in counts:
                found = counts["floor"] | {"rate": counts["rate"]}
                table.add_row(name, task, *(_shown(found[key]) for key in keys))
    return table


def _shown(value: float | None) -> str:
    return "-" if value is None else f"{value:,}" if isinstance(value, int) else f"{value:.4f}"


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
