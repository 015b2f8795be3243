"""Prediction for examples in a file."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from gemkit.data import storage
from gemkit.data.dataset import Dataset
from gemkit.data.prepare import dataset_folder
from gemkit.errors import GemkitError
from gemkit.predict import predict
from gemkit.registry import load_registry
from gemkit.session import load_run, make_loader
from gemkit.testing.runs import silent, tiny_run
from gemkit.train import train


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, pa.Table, Dataset]:
    """A run folder, the file of its examples, and its data set."""
    folder = tmp_path_factory.mktemp("predict")
    run = tiny_run(folder, "train.max_steps=5")
    train(run, load_registry(), progress=silent())
    (run_folder,) = (folder / "runs").iterdir()
    return run_folder, pyarrow.parquet.read_table(run.data.examples), Dataset.open(dataset_folder(run.data))


def evaluated(run_folder: Path, dataset: Dataset) -> dict[int, np.ndarray]:
    """Example id -> probabilities, through the loader that evaluation uses."""
    model, backend, *_ = load_run(run_folder, load_registry())
    loader = make_loader(model.run, dataset, model, backend, "test", 64)
    found = {}
    with torch.no_grad():
        for batch in loader.epoch(0):
            rows = torch.sigmoid(model(batch).logits).numpy()
            found |= dict(zip(batch.example_id.tolist(), rows, strict=True))
    return found


def test_test_rows_get_the_evaluations_predictions(trained: tuple[Path, pa.Table, Dataset], tmp_path: Path) -> None:
    run_folder, examples, dataset = trained
    wanted = evaluated(run_folder, dataset)
    rows = dataset.split("test")[::-1]  # another order than the data set's
    file = tmp_path / "new.parquet"
    labels = list(dataset.schema.task_names)
    ids = dataset.columns[storage.EXAMPLE_ID][rows]
    pyarrow.parquet.write_table(examples.take(ids).drop_columns(labels), file)
    assert predict(run_folder, file, tmp_path / "out.parquet", load_registry(), silent()) == len(rows)
    out = pyarrow.parquet.read_table(tmp_path / "out.parquet")
    assert out.column_names == ["example_id", *labels]
    found = np.stack([out[task].to_numpy() for task in labels], axis=1)
    np.testing.assert_allclose(found, np.stack([wanted[i] for i in ids.tolist()]), rtol=1e-5, atol=1e-6)


def test_an_unknown_user_has_no_history(trained: tuple[Path, pa.Table, Dataset], tmp_path: Path) -> None:
    run_folder, examples, dataset = trained
    rows = examples.take(dataset.split("test")[:4])
    user = dataset.manifest["columns"]["user"]
    at = rows.column_names.index(user)
    strangers = rows.set_column(at, user, pa.array(["nobody-1", "nobody-2", "nobody-1", "nobody-3"]))
    pyarrow.parquet.write_table(strangers, tmp_path / "new.parquet")
    assert predict(run_folder, tmp_path / "new.parquet", tmp_path / "out.csv", load_registry(), silent()) == 4
    with (tmp_path / "out.csv").open() as file:
        found = [float(row[dataset.schema.task_names[0]]) for row in csv.DictReader(file)]
    assert all(0 < p < 1 for p in found)


def test_what_is_wrong_is_named(trained: tuple[Path, pa.Table, Dataset], tmp_path: Path) -> None:
    run_folder, examples, dataset = trained
    registry, out = load_registry(), tmp_path / "out.csv"
    name = dataset.schema.categorical[0].name
    pyarrow.parquet.write_table(examples.drop_columns([name]), tmp_path / "short.parquet")
    with pytest.raises(GemkitError, match=name) as missing:
        predict(run_folder, tmp_path / "short.parquet", out, registry, silent())
    assert missing.value.where == "short.parquet"
    with pytest.raises(GemkitError, match="no file"):
        predict(run_folder, tmp_path / "nothing.csv", out, registry, silent())
    with pytest.raises(GemkitError, match="unknown format"):
        predict(run_folder, tmp_path / "short.parquet", tmp_path / "out.xls", registry, silent())
    assert not out.exists()
