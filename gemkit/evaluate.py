"""Test metrics of a run's best checkpoint."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemkit.metrics.collector import MetricCollector
from gemkit.metrics.floor import floors, with_floors
from gemkit.registry import Registry
from gemkit.runs.progress import Progress
from gemkit.runs.tables import print_metrics
from gemkit.session import base_rates, evaluate_split, load_run, make_loader


def evaluate(run_folder: Path, registry: Registry, progress: Progress | None = None) -> dict[str, Any]:
    """Evaluates `checkpoints/best` on the test split of the run's own data set, and prints the table.

    Returns:
        Task -> metric -> value.

    Raises:
        GemkitError: The run has no checkpoint, or its data set has changed.
    """
    progress = progress or Progress()
    loaded = load_run(run_folder, registry)
    model, backend = loaded.model, loaded.backend
    dataset = loaded.open_dataset(registry, progress)
    loader = make_loader(model.run, dataset, model, backend, "test", model.run.train.eval_batch_size)
    rates = base_rates(dataset)
    collector = MetricCollector(dataset.schema, rates)
    with progress, progress.task("evaluate", total=len(dataset.split("test"))) as bar:
        metrics = evaluate_split(model, loader, backend, collector, bar.advance)
    metrics = with_floors(metrics, floors(dataset, "test", rates))
    print_metrics(metrics, "test", progress.console)
    return metrics
