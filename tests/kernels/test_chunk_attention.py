"""`chunk_attention` in PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gemkit_kernels import paths
from gemkit_kernels.chunk_attention import bench, chunk_attention
from gemkit_kernels.compare import LIMITS


@pytest.mark.parametrize("full", [False, True], ids=["plain", "all options"])
@pytest.mark.parametrize(("size", "heads", "width"), [(32, 2, 16), (64, 1, 64), (200, 3, 10), (1, 1, 2)])
def test_outputs_and_gradients(size: int, heads: int, width: int, full: bool) -> None:
    found = bench.errors_of(size, heads, width, torch.float32, full, "cpu", seed=size)
    assert len(found) == (6 if full else 3) and max(found.values()) < LIMITS[torch.float32], found


def test_by_hand() -> None:
    """Two rows of one head of width 2: scores 0 for the first query, log 3 apart for the second."""
    step = 2**0.5 * torch.log(torch.tensor(3.0))
    q = torch.tensor([[0.0, 0.0], [1.0, 0.0]])
    k = torch.tensor([[step, 5.0], [0.0, -7.0]])
    v = torch.tensor([[4.0, 8.0], [0.0, 4.0]])
    rows, summaries = chunk_attention(torch.cat([q, k, v], 1), torch.tensor([0, 2]), 2, 1, rotary=False)
    torch.testing.assert_close(rows, torch.tensor([[2.0, 6.0], [3.0, 7.0]]))
    assert summaries.shape == (1, 0, 2)


def test_a_chunk_never_sees_another() -> None:
    qkv, queries = torch.randn(50, 3 * 32), torch.randn(2, 32)
    starts = torch.tensor([0, 20, 20, 50])
    clean = chunk_attention(qkv, starts, 32, 2, summary_queries=queries)
    qkv[20:] = torch.nan
    poisoned = chunk_attention(qkv, starts, 32, 2, summary_queries=queries)
    assert torch.equal(poisoned[0][:20], clean[0][:20]) and poisoned[0][20:].isnan().all()
    assert torch.equal(poisoned[1][:2], clean[1][:2]) and poisoned[1][2].isnan().all()


def test_compiles_whole() -> None:
    x = bench.example(torch.tensor([3, 0, 40, 1]), 16, 2, 8, torch.float32, True, "cpu", seed=1)
    rest = {name: x[name] for name in bench.OPTIONS}

    def call(qkv: torch.Tensor, starts: torch.Tensor) -> Any:
        return chunk_attention(qkv, starts, 16, 2, **rest)

    compiled = torch.compile(call, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(x["qkv"], x["starts"]), call(x["qkv"], x["starts"]))
    assert paths.taken()["chunk_attention"] == paths.PYTORCH


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"qkv": torch.zeros(4, 20)}, "does not divide 20"),
        ({"qkv": torch.zeros(4, 24, dtype=torch.int32)}, "int32"),
        ({"starts": torch.zeros(2)}, "starts has shape"),
        ({"size": 0}, "size = 0"),
        ({"num_heads": 3}, "num_heads = 3 does not divide 8"),
        ({"qkv": torch.zeros(4, 6), "num_heads": 2}, "even width"),
        ({"ages": torch.zeros(4)}, "go together"),
        ({"norm_gains": torch.zeros(2, 5)}, r"norm_gains has shape \(2, 5\), expected \(2, 4\)"),
        ({"summary_queries": torch.zeros(1, 4)}, r"expected \(any, 8\)"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], words: str) -> None:
    arguments = {"qkv": torch.zeros(4, 24), "starts": torch.tensor([0, 4]), "size": 4, "num_heads": 2, **change}
    with pytest.raises(ValueError, match=words):
        chunk_attention(**arguments)
