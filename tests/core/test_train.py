"""The training loop: same bits, resuming, stopping, and what a run leaves behind."""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet
import pytest
import torch

from gemkit.config.run import OptimizerConfig, RunConfig
from gemkit.data.prepare import dataset_folder
from gemkit.errors import GemkitError
from gemkit.evaluate import evaluate
from gemkit.predict import predict
from gemkit.registry import load_registry
from gemkit.runs import checkpoint
from gemkit.runs.folder import RunFolder
from gemkit.schedule import schedule
from gemkit.testing.runs import silent, tiny_run
from gemkit.testing.tolerances import TOLERANCES
from gemkit.train import Training, train

TIMES = {"examples_per_s", "wall_s", "data_wait"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data set of this file's runs lives; it is built once."""
    return tmp_path_factory.mktemp("data")


def trained(run: RunConfig, resume: Path | None = None) -> tuple[dict[str, Any], RunFolder]:
    metrics = train(run, load_registry(), resume, progress=silent(), command=["gemkit", "train", "seed=1"])
    return metrics, RunFolder.open(resume or max(Path(run.runs).iterdir(), key=lambda p: p.stat().st_mtime_ns))


def history(folder: RunFolder, split: str = "train") -> list[dict[str, Any]]:
    return [{k: v for k, v in row.items() if k not in TIMES} for row in folder.rows() if row["split"] == split]


def losses(folder: RunFolder) -> list[float]:
    return [row["loss"] for row in history(folder)]


def assert_same_tensors(a: Path, b: Path) -> None:
    first, second = checkpoint.load(a)[0], checkpoint.load(b)[0]
    assert first.keys() == second.keys() and len(first) > 50
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_same_seed_same_bits_and_another_seed_others(data: Path, tmp_path: Path) -> None:
    overrides = ["train.max_steps=5", "tokenizer.dropout=0.1"]
    runs = [tiny_run(data, *overrides, f"runs={tmp_path / str(i)}", f"seed={s}") for i, s in enumerate((1, 1, 2))]
    (first, a), (second, b), (_, c) = (trained(run) for run in runs)
    assert first["test"] == second["test"]
    assert history(a) == history(b)
    assert_same_tensors(a.checkpoints / "best.safetensors", b.checkpoints / "best.safetensors")
    assert losses(a) != losses(c)


def test_resuming_a_finished_run_changes_nothing(data: Path, tmp_path: Path) -> None:
    run = tiny_run(data, "train.max_steps=2", f"runs={tmp_path}")
    metrics, folder = trained(run)
    again, _ = trained(run, resume=folder.path)
    assert again["test"] == metrics["test"] and again["train"]["steps"] == 2
    assert len(losses(folder)) == 2


def test_resuming_refuses_changed_data(data: Path, tmp_path: Path) -> None:
    _, folder = trained(tiny_run(data, "train.max_steps=1", f"runs={tmp_path / 'runs'}"))
    other = tiny_run(tmp_path / "other", "train.max_steps=1", f"runs={tmp_path / 'runs'}", seed=7)
    with pytest.raises(GemkitError, match=r"of another schema: .* dense\[0\].mean: "):
        trained(other, resume=folder.path)


def test_evaluating_and_predicting_refuse_changed_data(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "train.max_steps=1")
    _, folder = trained(run)
    file = Path(run.data.examples)
    rows = pyarrow.parquet.read_table(file)
    pyarrow.parquet.write_table(rows.slice(0, rows.num_rows - 5), file)
    shutil.rmtree(dataset_folder(run.data))
    for use in (
        lambda: evaluate(folder.path, load_registry(), silent()),
        lambda: predict(folder.path, file, tmp_path / "out.csv", load_registry(), silent()),
    ):
        with pytest.raises(GemkitError, match="has changed since the checkpoint"):
            use()
    assert not (tmp_path / "out.csv").exists()


@pytest.mark.usefixtures("pictures")
def test_the_run_folder_is_complete(data: Path, tmp_path: Path) -> None:
    overrides = [f"runs={tmp_path}", "train.max_steps=3", "train.eval_every=2", "train.tensorboard=true"]
    metrics, folder = trained(tiny_run(data, *overrides))
    names = {p.relative_to(folder.path).as_posix() for p in folder.path.rglob("*")}
    files = ["config.yaml", "command.txt", "environment.json", "metrics.jsonl", "metrics.json", "curves.png"]
    assert names >= {*files, "checkpoints/best.safetensors", "checkpoints/last.safetensors", "tensorboard"}
    assert json.loads((folder.path / "metrics.json").read_text()) == json.loads(json.dumps(metrics))
    assert (folder.path / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert (folder.path / "command.txt").read_text() == "gemkit train seed=1\n"
    assert [row["step"] for row in history(folder)] == [1, 2, 3]
    assert [row["step"] for row in history(folder, "valid")] == [2, 3]
    assert metrics["train"]["steps"] == 3 and metrics["train"]["params"] > 10_000
    assert set(metrics["test"]) == {"click", "buy"}
    assert set(metrics["test"]["click"]) >= {"auc", "logloss", "ne", "calibration", "surfaces"}


def test_evaluating_again_gives_the_same_numbers(data: Path, tmp_path: Path) -> None:
    metrics, folder = trained(tiny_run(data, "train.max_steps=3", f"runs={tmp_path}"))
    assert evaluate(folder.path, load_registry(), silent()) == metrics["test"]


def test_the_best_step_is_kept(data: Path, tmp_path: Path) -> None:
    """A learning rate that ruins the model after the first validation leaves the first checkpoint the best."""
    overrides = ["train.eval_every=2", "train.patience=2", "optimizer.lr=0.5", "optimizer.warmup_steps=6"]
    metrics, folder = trained(tiny_run(data, *overrides, "train.epochs=4", f"runs={tmp_path}"))
    valid = [row["click"]["logloss"] for row in history(folder, "valid")]
    best = int(np.argmin(valid))
    assert len(valid) == best + 3, "training stops after two validations without a better one"
    assert metrics["train"]["best_step"] == 2 * (best + 1) < metrics["train"]["steps"] < 32
    assert checkpoint.load(folder.checkpoints / "best.safetensors")[1]["step"] == metrics["train"]["best_step"]


def test_logloss_picks_the_best_where_the_monitored_metric_is_undefined(data: Path, tmp_path: Path) -> None:
    """All labels of valid are alike: there is no AUC."""
    overrides = ["train.epochs=3", "train.monitor=auc", "train.eval_every=4", f"runs={tmp_path / 'runs'}"]
    run = plain(tiny_run(data, *overrides))
    with contextlib.ExitStack() as resources:
        dataset = Training(run, load_registry(), None, silent(), ["gemkit"], resources).dataset
        valid = dataset.columns["_example_id"][dataset.split("valid")]
    table = pyarrow.parquet.read_table(run.data.examples)
    click = table["click"].to_numpy().copy()
    click[valid] = 1
    path = tmp_path / "examples.parquet"
    pyarrow.parquet.write_table(table.set_column(table.column_names.index("click"), "click", pa.array(click)), path)
    config = dataclasses.replace(run.data, examples=str(path), root=str(tmp_path / "datasets"))
    metrics, folder = trained(dataclasses.replace(run, data=config))
    rows = history(folder, "valid")
    assert len(rows) == 6 and all(row["click"]["auc"] is None for row in rows)
    best = min(rows, key=lambda row: row["click"]["logloss"])
    assert metrics["train"]["best_step"] == best["step"] > 4
    log = (folder.path / "log.txt").read_text()
    assert log.count("logloss picks the best checkpoint") == 1
    assert log.count("chunk_attention runs in PyTorch: the tensors are on a cpu device") == 1


def plain(run: RunConfig) -> RunConfig:
    """Without weights and masks, so that the mean over a batch is the mean over its halves."""
    changes = {"folder": "plain", "weight": None, "tasks": run.data.tasks[:1]}
    return dataclasses.replace(run, data=dataclasses.replace(run.data, **changes))


def test_accumulated_halves_equal_the_whole_batch(data: Path, tmp_path: Path) -> None:
    # Tables update at every micro-batch, so they must stand still for the comparison.
    overrides = ["train.max_steps=3", "optimizer.embedding_lr=1e-20"]
    rows = []
    for accumulate in (1, 2, 4):
        run = tiny_run(data, *overrides, f"train.accumulate={accumulate}", f"runs={tmp_path / str(accumulate)}")
        metrics, folder = trained(plain(run))
        assert metrics["train"]["steps"] == 3
        rows.append([[row["loss"], row["grad_norm"]] for row in history(folder)])
    rtol, atol = TOLERANCES[torch.float32]
    np.testing.assert_allclose(rows[1], rows[0], rtol, atol)
    np.testing.assert_allclose(rows[2], rows[0], rtol, atol)


def test_a_batch_size_that_cannot_be_divided_is_refused(data: Path) -> None:
    with pytest.raises(GemkitError, match="accumulate = 3") as caught:
        tiny_run(data, "train.accumulate=3")
    assert caught.value.where == "train.accumulate"


def test_recomputed_activations_change_nothing(data: Path, tmp_path: Path) -> None:
    found = []
    for switch in ("false", "true"):
        run = tiny_run(data, "train.max_steps=3", f"train.checkpoint_activations={switch}", f"runs={tmp_path / switch}")
        found.append(losses(trained(run)[1]))
    assert found[0] == found[1]


def test_bf16_is_near_fp32(data: Path, tmp_path: Path) -> None:
    found = []
    for precision in ("fp32", "bf16"):
        run = tiny_run(data, "train.max_steps=2", f"train.precision={precision}", f"runs={tmp_path / precision}")
        found.append(losses(trained(run)[1]))
    assert found[0] != found[1]
    np.testing.assert_allclose(found[1], found[0], *TOLERANCES[torch.bfloat16])


@pytest.mark.slow
def test_compiled_blocks_change_nothing(data: Path, tmp_path: Path) -> None:
    found = []
    for switch in ("false", "true"):
        run = tiny_run(data, "train.max_steps=2", f"train.compile={switch}", f"runs={tmp_path / switch}")
        found.append(losses(trained(run)[1]))
    np.testing.assert_allclose(found[1], found[0], *TOLERANCES[torch.float32])


def test_a_poisoned_example_is_named(data: Path, tmp_path: Path) -> None:
    """A number that is finite in the file and infinite in the model stops the run before it reaches the tables."""
    run = tiny_run(data, "train.batch_size=8", "train.eval_every=2", "train.max_steps=5", f"runs={tmp_path / 'runs'}")
    table = pyarrow.parquet.read_table(run.data.examples)
    content = table["content"].to_pylist()
    with contextlib.ExitStack() as resources:
        training = Training(run, load_registry(), None, silent(), ["gemkit"], resources)
        row = training.loader.global_rows(0, 3)[5]  # in the fourth batch
        poisoned = int(training.dataset.columns["_example_id"][row])
    content[poisoned] = [1e30, -1e30, 1e30, -1e30, 1e30, -1e30]
    path = tmp_path / "poisoned.parquet"
    position = table.column_names.index("content")
    pyarrow.parquet.write_table(table.set_column(position, "content", pa.array(content, pa.list_(pa.float32()))), path)
    config = dataclasses.replace(run.data, examples=str(path), root=str(tmp_path / "datasets"))
    with pytest.raises(GemkitError, match="the loss is") as caught:
        trained(dataclasses.replace(run, data=config))
    ids = str(caught.value.where).partition("example ids ")[2].split(", ")
    assert str(poisoned) in ids and len(ids) == 8
    folder = max((tmp_path / "runs").iterdir(), key=lambda p: p.stat().st_mtime_ns)
    for tensor in checkpoint.load(folder / "checkpoints" / "last.safetensors")[0].values():
        assert torch.isfinite(tensor.float()).all()


def test_the_schedule_warms_up_and_comes_down() -> None:
    cosine = OptimizerConfig(warmup_steps=10, final_lr_fraction=0.1)
    factors = [schedule(cosine, step, 110) for step in range(110)]
    assert factors[:10] == pytest.approx([0.1 * i for i in range(1, 11)])
    assert factors[60] == pytest.approx(0.1 + 0.9 * 0.5)
    assert all(a > b for a, b in itertools.pairwise(factors[10:])) and 0.1 < factors[-1] < 0.101
    linear = dataclasses.replace(cosine, schedule="linear")
    assert schedule(linear, 35, 110) == pytest.approx(0.1 + 0.9 * 0.75)
    assert schedule(dataclasses.replace(cosine, schedule="constant"), 109, 110) == 1.0
