"""Predictions of a run's best checkpoint for examples in a file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import torch

from gemkit.data import storage
from gemkit.data.dataset import Dataset
from gemkit.data.encode import encode_examples
from gemkit.data.files import read_table, with_lists
from gemkit.errors import GemkitError
from gemkit.registry import Registry
from gemkit.runs.files import replacing
from gemkit.runs.progress import Progress
from gemkit.session import load_run, make_loader, to_device

OUTPUTS = (".csv", ".parquet")


def predict(run_folder: Path, input: Path, output: Path, registry: Registry, progress: Progress | None = None) -> int:
    """Writes one row for each row of `input`, in its order: its id and the probability of each task.

    `input` (CSV, Parquet or Arrow) has the columns of the run's examples; labels are not needed. Histories come from
    the event log of the run's data set, which has to be there: events of the row's user strictly before its
    timestamp. The id is the data set's example id, or the row number from 0.

    Returns:
        Rows written.

    Raises:
        GemkitError: A file cannot be read or written, or a column is missing or holds what it must not.
    """
    if output.suffix.lower() not in OUTPUTS:
        raise GemkitError(
            f"{output.name} has an unknown format",
            where="--output",
            allowed=", ".join(OUTPUTS),
            fix="change its ending",
        )
    if not input.is_file():
        raise GemkitError(f"there is no file {input}", where="--input", fix="paths are relative to this folder")
    progress = progress or Progress()
    loaded = load_run(run_folder, registry)
    model, backend = loaded.model, loaded.backend
    dataset = loaded.open_dataset(registry, progress)
    examples = encode_examples(
        dataset, read_examples(input, dataset, getattr(model.run.data, "separator", "|")), input.name
    )
    loader = make_loader(model.run, examples, model, backend, "test", model.run.train.eval_batch_size)
    parts = []
    with torch.no_grad(), progress, progress.task("predict", total=examples.num_examples) as bar:
        for batch in to_device(loader.epoch(0), backend):
            parts.append(torch.sigmoid(model(batch).logits.float()).cpu())
            bar.advance(batch.size)
    _write(output, examples, torch.cat(parts).numpy())
    return examples.num_examples


def read_examples(path: Path, dataset: Dataset, separator: str) -> pa.Table:
    """The columns of a file that a data set's features are made of.

    Raises:
        GemkitError: The file cannot be read, lacks a column, or has no rows.
    """
    schema, named = dataset.schema, dataset.manifest["columns"]
    categorical = [f for f in schema.categorical if f.of == "examples"]
    vectors = [f for f in schema.vectors if f.of == "examples"]
    lists = [f.name for f in categorical if f.multi] + [v.name for v in vectors]
    user = named["user"] if dataset.shards[0].users else None  # else nobody asks whose row it is
    item = named["item"] if dataset.shards[0].items else None
    text = [user, item, named["surface"], *(f.name for f in categorical), *(v.name for v in vectors)]
    numbers = [f.name for f in schema.dense if f.of == "examples"]
    table = read_table(path, text=text, numbers=numbers, others=[named["timestamp"], named["example_id"]])
    if table.num_rows == 0:
        raise GemkitError("there are no rows", where=path.name)
    return with_lists(table, lists, separator)


def _write(path: Path, examples: Dataset, probabilities: np.ndarray) -> None:
    names = ["example_id", *examples.schema.task_names]
    columns = [np.asarray(examples.columns[storage.EXAMPLE_ID]), *probabilities.T]
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        if path.suffix.lower() == ".parquet":
            import pyarrow.parquet

            pyarrow.parquet.write_table(pa.table(dict(zip(names, columns, strict=True))), temporary)
        else:
            with temporary.open("w", newline="", encoding="utf-8") as file:
                writer = csv.writer(file)
                writer.writerow(names)
                writer.writerows(zip(*(c.tolist() for c in columns), strict=True))
