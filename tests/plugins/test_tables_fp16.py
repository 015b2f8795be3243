"""`parallel.embedding_precision=fp16`: rows in half the memory, in both implementations of local tables."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from gemkit_hsdp import tables
from gemkit_hsdp.tables import stochastic_half
from torch import Tensor

from gemkit.config.compose import compose
from gemkit.config.run import OptimizerConfig
from gemkit.errors import GemkitError
from gemkit.evaluate import evaluate
from gemkit.interfaces import EmbeddingTables
from gemkit.registry import load_registry
from gemkit.runs import checkpoint
from gemkit.runs.folder import RunFolder
from gemkit.testing import bench
from gemkit.testing.runs import silent, stopped_run, tiny_run
from gemkit.train import train

HAS_FBGEMM = importlib.util.find_spec("fbgemm_gpu") is not None
FBGEMM = pytest.param("fbgemm", marks=pytest.mark.skipif(not HAS_FBGEMM, reason="FBGEMM is not installed"))
BOTH = pytest.mark.parametrize("kind", ["torch", FBGEMM])
HALF_ULP = 2.0**-11
"""Of a number between 1 and 2 in float16."""


def make(kind: str, tmp_path: Path, **options: str) -> EmbeddingTables:
    config = {"name": "single", "accelerator": "cpu", "embeddings": kind, **options}
    backend = load_registry().build("parallel", config)
    backend.launch(tiny_run(tmp_path))
    return backend.build_embeddings(bench.dataset().schema, bench.DIM, OptimizerConfig(), seed=3)


def step(one: EmbeddingTables, number: int) -> dict[str, Tensor]:
    """One update, by gradients that do not depend on what was looked up."""
    rows = one(bench.make_batch().ids)
    one.set_lr(0.05)
    torch.autograd.backward(list(rows.values()), [bench.noise(f"{number}/{k}", *v.shape) for k, v in rows.items()])
    return rows


# --- values ---------------------------------------------------------------------------------------------------


@BOTH
def test_rows_are_those_of_fp32_rounded(kind: str, tmp_path: Path) -> None:
    full, half = make(kind, tmp_path), make(kind, tmp_path, embedding_precision="fp16")
    for name, weights in half.tables().items():
        assert weights.dtype == torch.float16 and half.optimizer_state()[name].dtype == torch.float32
        assert torch.equal(weights, full.tables()[name].half())
    ids = bench.make_batch().ids
    for key, rows in half(ids).items():
        assert rows.dtype == torch.float32
        assert torch.equal(rows, full(ids)[key].half().float())


@BOTH
def test_updates_are_those_of_fp32_within_rounding(kind: str, tmp_path: Path) -> None:
    full, half = make(kind, tmp_path), make(kind, tmp_path, embedding_precision="fp16")
    for number in range(4):
        step(full, number)
        step(half, number)
    moved = 0
    for name, weights in full.tables().items():
        # Rounded at the start and in each step, to half an ulp of numbers below 0.25.
        assert weights.abs().max() < 0.25
        torch.testing.assert_close(half.tables()[name].float(), weights, rtol=0, atol=5 * HALF_ULP / 8)
        torch.testing.assert_close(half.optimizer_state()[name], full.optimizer_state()[name], rtol=1e-6, atol=0)
        moved += int((half.optimizer_state()[name] > 0).sum())
    assert moved > 30


@pytest.mark.skipif(not HAS_FBGEMM, reason="FBGEMM is not installed")
def test_torch_equals_fbgemm(tmp_path: Path) -> None:
    fused, plain = (make(kind, tmp_path, embedding_precision="fp16") for kind in ("fbgemm", "torch"))
    for number in range(4):
        step(fused, number)
        step(plain, number)
    same = total = 0
    for name, weights in fused.tables().items():
        # Sums of another order may fall on the other side of a middle between two numbers.
        torch.testing.assert_close(plain.tables()[name].float(), weights.float(), rtol=2 * HALF_ULP, atol=1e-6)
        same, total = same + int((plain.tables()[name] == weights).sum()), total + weights.numel()
    assert same > 0.999 * total


@pytest.mark.skipif(not HAS_FBGEMM, reason="FBGEMM is not installed")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_tables_too_large_for_one_are_separate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, precision: str) -> None:
    one = make("fbgemm", tmp_path, embedding_precision=precision)
    monkeypatch.setattr(tables, "WHOLE_BYTES", 1000)
    apart = make("fbgemm", tmp_path, embedding_precision=precision)
    assert one.whole and not apart.whole
    for number in range(3):
        first, second = step(one, number), step(apart, number)
        for key, rows in first.items():
            torch.testing.assert_close(second[key], rows, rtol=2 * HALF_ULP if precision == "fp16" else 1e-6, atol=1e-6)
    for name, squares in one.optimizer_state().items():
        torch.testing.assert_close(apart.optimizer_state()[name], squares, rtol=1e-5, atol=1e-6)


# --- rounding by chance ---------------------------------------------------------------------------------------

NUMBERS = 200_000
MAGNITUDES = {"normal": 1.0, "small": 3e-3, "subnormal": 2.0**-16, "tiny": 2.0**-24}


@pytest.mark.parametrize("sign", [1, -1], ids=["positive", "negative"])
@pytest.mark.parametrize("magnitude", MAGNITUDES)
@pytest.mark.parametrize("odds", [0.1, 0.5, 0.85])
def test_rounding_by_chance_is_right_on_average(magnitude: str, sign: int, odds: float) -> None:
    torch.manual_seed(5)
    below = torch.tensor(MAGNITUDES[magnitude]).half()
    above = (below.view(torch.int16) + 1).view(torch.float16)
    ulp = float(above) - float(below)
    values = torch.full((NUMBERS,), sign * (float(below) + odds * ulp))
    rounded = stochastic_half(values)
    assert rounded.dtype == torch.float16
    assert set(rounded.abs().unique().tolist()) == {float(below), float(above)}
    error = (rounded.double() - values.double()).mean().abs() / ulp
    assert error < 5 * (odds * (1 - odds) / NUMBERS) ** 0.5


def test_rounding_by_chance_leaves_what_fp16_can_hold() -> None:
    every = torch.arange(-(2**15), 2**15, dtype=torch.int32).to(torch.int16).view(torch.float16)
    every = every[every.isfinite()]
    assert torch.equal(stochastic_half(every.float()), every)


def test_updates_too_small_for_fp16_are_not_lost(tmp_path: Path) -> None:
    """20 updates of a tenth of an ulp each: to the nearest they vanish, by chance they come through on average."""
    smallest = min(table.num_embeddings for table in bench.dataset().schema.tables)
    ids = {key: torch.arange(smallest) for key in bench.make_batch().ids}
    means = {}
    for rounding in ("nearest", "stochastic"):
        one = make("torch", tmp_path, embedding_precision="fp16", embedding_rounding=rounding)
        for weights in one.tables().values():
            weights.fill_(1.5)
        torch.manual_seed(2)
        for _ in range(20):
            for squares in one.optimizer_state().values():
                squares.zero_()  # steps of lr, then, as all numbers of a gradient are alike
            one.set_lr(0.2 * HALF_ULP)
            rows = one(ids)
            torch.autograd.backward(list(rows.values()), [torch.full_like(v, -1.0) for v in rows.values()])
        found = torch.cat([w[:smallest].float().flatten() for w in one.tables().values()])
        means[rounding] = float((found - 1.5).mean()) / (2 * HALF_ULP)
        numbers = found.numel()
    assert means["nearest"] == 0
    assert means["stochastic"] == pytest.approx(2, abs=5 * (20 * 0.1 * 0.9 / numbers) ** 0.5)


def test_what_is_refused(tmp_path: Path) -> None:
    with pytest.raises(GemkitError, match="not rounded") as caught:
        compose(["parallel.embedding_rounding=stochastic"], load_registry())
    assert caught.value.where == "parallel.embedding_rounding"
    with pytest.raises(GemkitError) as caught:
        compose(["parallel.embedding_precision=bf16"], load_registry())
    assert "fp32, fp16" in str(caught.value.allowed)
    if HAS_FBGEMM:
        with pytest.raises(GemkitError, match="nearest only") as caught:
            make("fbgemm", tmp_path, embedding_precision="fp16", embedding_rounding="stochastic")
        assert "parallel.embeddings=torch" in str(caught.value.fix)


# --- runs -----------------------------------------------------------------------------------------------------


def finished(data: Path, folder: Path, *overrides: str) -> RunFolder:
    train(tiny_run(data, *overrides, f"runs={folder}"), load_registry(), progress=silent())
    (path,) = folder.iterdir()
    return RunFolder.open(path)


def losses(folder: RunFolder) -> list[float]:
    return [row["loss"] for row in folder.rows() if row["split"] == "train"]


def tensors_of(folder: RunFolder, name: str) -> dict[str, Tensor]:
    stored: Any = checkpoint.load(folder.checkpoints / f"{name}.safetensors")[0]
    return {name: stored[name] for name in stored}


@pytest.mark.parametrize(
    "words", ["torch nearest", "torch stochastic", pytest.param("fbgemm nearest", marks=FBGEMM.marks)]
)
def test_stopped_and_resumed_equals_uninterrupted(tmp_path: Path, words: str) -> None:
    kind, rounding = words.split()
    options = [f"parallel.embeddings={kind}", "parallel.embedding_precision=fp16", "train.epochs=2"]
    options += [f"parallel.embedding_rounding={rounding}", "tokenizer.dropout=0.1"]
    whole = finished(tmp_path, tmp_path / "whole", *options)
    run = tiny_run(tmp_path, *options, f"runs={tmp_path / 'stopped'}")
    folder = stopped_run(run)
    train(run, load_registry(), folder.path, progress=silent())
    assert losses(folder) == losses(whole)
    first, second = tensors_of(whole, "last"), tensors_of(folder, "last")
    assert first.keys() == second.keys()
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name
        if name.startswith("tables."):
            assert tensor.dtype == torch.float16
        if name.startswith("table_squares."):
            assert tensor.dtype == torch.float32 and tensor.sum() > 0


@BOTH
def test_what_is_loaded_is_what_was_trained(tmp_path: Path, kind: str) -> None:
    options = [f"parallel.embeddings={kind}", "parallel.embedding_precision=fp16", "train.max_steps=3"]
    folder = finished(tmp_path, tmp_path / "runs", *options)
    assert evaluate(folder.path, load_registry(), silent()) == folder.metrics()["test"]
