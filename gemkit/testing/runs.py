"""Tiny runs: a whole training in a second, on a synthetic data set."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import signal
from pathlib import Path
from typing import Any

import pyarrow.parquet
from rich.console import Console

from gemkit.config.compose import compose
from gemkit.config.fields import to_mapping
from gemkit.config.run import READING, RunConfig
from gemkit.registry import Registry, load_registry
from gemkit.runs.folder import RunFolder
from gemkit.runs.progress import Progress
from gemkit.runs.stopping import Stopped
from gemkit.testing.data import make_source
from gemkit.train import Training

SMALL = (
    "size.dim=16",
    "size.num_blocks=2",
    "size.num_tokens=6",
    "train.batch_size=128",
    "train.log_every=1",
    "optimizer.warmup_steps=2",
    "data.max_history=40",
    "parallel.accelerator=cpu",
)


def table_config(folder: Path, **options: Any) -> dict[str, Any]:
    """The synthetic data set as files in `folder`, and the values of ``data=table`` that read them.

    Args:
        options: Of `gemkit.testing.data.make_source`.
    """
    source = make_source(**options)
    tables = {"examples": source.examples, "events": source.events}
    paths: dict[str, str | None] = dict.fromkeys(tables)
    folder.mkdir(parents=True, exist_ok=True)
    for name, table in tables.items():
        path = folder / f"{name}.parquet"
        if table is not None:
            paths[name] = str(path)
            if not path.exists():
                pyarrow.parquet.write_table(table, path)
    declared = ("dense", "categorical", "vectors", "event_fields", "tasks", "user", "timestamp", "stream")
    named = {name: to_mapping(getattr(source, name)) for name in (*declared, "weight", "surface", "group")}
    return {"name": "table", "folder": source.name, "root": str(folder / "datasets"), **paths, **named}


def tiny_run(folder: Path, *overrides: str, registry: Registry | None = None, **options: Any) -> RunConfig:
    """A run on the synthetic data set, with everything that it reads and writes in `folder`.

    Args:
        overrides: As on the command line: ``"interaction=none"``, ``"train.max_steps=3"``.
        options: Of `gemkit.testing.data.make_source`.
    """
    registry = registry or load_registry()
    run = compose(["data=table", *SMALL, f"runs={folder / 'runs'}", *overrides], registry)
    own = {name: getattr(run.data, name) for name in READING if name != "root"}
    return dataclasses.replace(run, data=registry.config("data", table_config(folder, **options) | own))


def silent() -> Progress:
    """A progress display that prints nothing anywhere, final tables included."""
    return Progress(quiet=True, console=Console(file=io.StringIO()))


def stopped_run(run: RunConfig, registry: Registry | None = None) -> RunFolder:
    """Trains until the first checkpoint is written, and stops as if SIGTERM had come."""
    with contextlib.ExitStack() as resources:
        training = Training(run, registry or load_registry(), None, silent(), ["gemkit", "train"], resources)
        save = training.save

        def save_and_stop() -> None:
            save()
            training.stop.signal_number = signal.SIGTERM

        training.save = save_and_stop  # type: ignore[method-assign]
        with contextlib.suppress(Stopped):
            training.fit()
    return training.folder
