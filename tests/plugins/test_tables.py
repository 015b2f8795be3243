"""The two implementations of local tables have equal values."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from gemkit_hsdp import single

from gemkit.config.run import OptimizerConfig
from gemkit.interfaces import EmbeddingTables
from gemkit.registry import load_registry
from gemkit.testing import bench
from gemkit.testing.runs import tiny_run


def tables(kind: str, tmp_path: Path) -> EmbeddingTables:
    backend = load_registry().build("parallel", {"name": "single", "accelerator": "cpu", "embeddings": kind})
    backend.launch(tiny_run(tmp_path))
    return backend.build_embeddings(bench.dataset().schema, bench.DIM, OptimizerConfig(), seed=3)


@pytest.mark.skipif(importlib.util.find_spec("fbgemm_gpu") is None, reason="FBGEMM is not installed")
def test_torch_equals_fbgemm(tmp_path: Path) -> None:
    fused, plain = tables("fbgemm", tmp_path), tables("torch", tmp_path)
    assert type(fused) is not type(plain)
    ids = bench.make_batch().ids
    for step in range(4):
        looked_up = []
        for one in (fused, plain):
            one.set_lr(0.05 / (step + 1))
            rows = one(ids)
            parts = [(v.sin() * bench.noise(f"{step}/{key}", *v.shape)).sum() for key, v in rows.items()]
            torch.stack(parts).sum().backward()
            looked_up.append(rows)
        for key, rows in looked_up[0].items():
            torch.testing.assert_close(rows, looked_up[1][key], rtol=1e-6, atol=1e-6)
    for name, weights in fused.tables().items():
        torch.testing.assert_close(weights, plain.tables()[name], rtol=1e-6, atol=1e-6)
        torch.testing.assert_close(fused.optimizer_state()[name], plain.optimizer_state()[name], rtol=1e-5, atol=1e-6)


def test_fbgemm_is_chosen_on_gpus_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def chosen(gpus: bool, installed: bool, **options: str) -> bool:
        monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus)
        monkeypatch.setattr(single, "has_fbgemm", lambda: installed)
        return single.SingleConfig(**options).uses_fbgemm

    assert chosen(gpus=True, installed=True)
    assert not chosen(gpus=True, installed=True, accelerator="cpu")
    assert not chosen(gpus=True, installed=False)
    assert not chosen(gpus=False, installed=True)
    assert chosen(gpus=False, installed=True, embeddings="fbgemm")
    assert not chosen(gpus=True, installed=True, embeddings="torch")
