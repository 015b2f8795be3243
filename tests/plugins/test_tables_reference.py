"""Local tables against row-wise AdaGrad written out row by row, in float64."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from gemkit_hsdp import tables
from gemkit_hsdp.tables import LocalTables

from gemkit.config.run import OptimizerConfig
from gemkit.registry import load_registry
from gemkit.testing import bench
from gemkit.testing.runs import tiny_run

HAS_FBGEMM = importlib.util.find_spec("fbgemm_gpu") is not None
FBGEMM = pytest.mark.skipif(not HAS_FBGEMM, reason="FBGEMM is not installed")
LR = 0.03


@pytest.mark.parametrize(
    "kind", ["torch", pytest.param("fbgemm", marks=FBGEMM), pytest.param("fbgemm unpooled", marks=FBGEMM)]
)
def test_lookups_and_updates(kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every table has its own rows, several features add up in one, and rows that nobody looked up stay."""
    if kind == "fbgemm unpooled":
        monkeypatch.setattr(tables, "WHOLE_BYTES", 0)
    backend = load_registry().build(
        "parallel", {"name": "single", "accelerator": "cpu", "embeddings": kind.partition(" ")[0]}
    )
    backend.launch(tiny_run(tmp_path))
    schema, optimizer = bench.dataset().schema, OptimizerConfig()
    one = backend.build_embeddings(schema, bench.DIM, optimizer, seed=3)
    assert isinstance(one, LocalTables)
    weights = {name: w.double() for name, w in one.tables().items()}
    squares = {name: torch.zeros(len(w), dtype=torch.float64) for name, w in weights.items()}
    ids = bench.make_batch().ids
    one.set_lr(LR)
    for number in range(3):
        rows = one(ids)
        gradients = {key: bench.noise(f"{number}/{key}", *v.shape) for key, v in rows.items()}
        sums = {name: torch.zeros_like(w) for name, w in weights.items()}
        for key, found in rows.items():
            table = schema.feature_tables[key]
            torch.testing.assert_close(found.double(), weights[table][ids[key]], rtol=1e-5, atol=1e-6)
            for row, gradient in zip(ids[key].tolist(), gradients[key].double(), strict=True):
                sums[table][row] += gradient
        torch.autograd.backward(list(rows.values()), [gradients[key] for key in rows])
        for name, total in sums.items():
            squares[name] += total.square().mean(1)
            weights[name] -= LR * total / (squares[name].sqrt() + optimizer.embedding_eps).unsqueeze(1)
    for name in weights:
        torch.testing.assert_close(one.tables()[name].double(), weights[name], rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(one.optimizer_state()[name].double(), squares[name], rtol=1e-5, atol=1e-6)
