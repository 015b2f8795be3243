"""`fm_block` in PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from gemkit_kernels import paths
from gemkit_kernels.compare import LIMITS
from gemkit_kernels.fm_block import bench, fm_block
from gemkit_kernels.fm_block.op import _unfit


@pytest.mark.parametrize("attentive", [False, True], ids=["static", "attentive"])
@pytest.mark.parametrize(("batch", "n", "d", "k"), [(7, 31, 16, 3), (1, 33, 3, 8), (3, 1, 31, 33), (2, 3, 1, 2)])
def test_outputs_and_gradients(batch: int, n: int, d: int, k: int, attentive: bool) -> None:
    found = bench.errors_of(batch, n, d, k, torch.float32, attentive, "cpu", seed=n)
    assert len(found) == 5 and max(found.values()) < LIMITS[torch.float32], found


def test_by_hand() -> None:
    """X X^T is diag(1, 4); Y sums the tokens, and takes the second one: products 1, 0 of the first, 4, 4 of the other.

    Their mean is 9/4, their variance 51/16.
    """
    x, y = torch.tensor([[[1.0, 0.0], [0.0, 2.0]]]), torch.tensor([[1.0, 1.0], [0.0, 1.0]])
    products = torch.tensor([[1.0, 0.0, 4.0, 4.0]])
    gain, bias = torch.tensor([1.0, 2.0, 1.0, 1.0]), torch.tensor([0.0, 0.0, 5.0, 0.0])
    expected = (products - 9 / 4) / (51 / 16 + 1e-5) ** 0.5 * gain + bias
    torch.testing.assert_close(fm_block(x, y, gain, bias), expected)
    torch.testing.assert_close(fm_block(x, y.unsqueeze(0), gain, bias), expected)


def test_no_example() -> None:
    x = bench.example(0, 3, 4, 2, torch.float32, False, "cpu", seed=1)
    out = fm_block(**x)
    assert out.shape == (0, 6)
    out.sum().backward()
    assert torch.equal(x["y"].grad, torch.zeros(2, 3)) and torch.equal(x["gain"].grad, torch.zeros(6))


@pytest.mark.parametrize("attentive", [False, True], ids=["static", "attentive"])
def test_compiles_whole(attentive: bool) -> None:
    x = bench.example(4, 5, 8, 3, torch.float32, attentive, "cpu", seed=1)
    compiled = torch.compile(fm_block, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(**x), fm_block(**x))
    assert paths.taken()["fm_block"] == paths.PYTORCH


def test_other_types_of_y_gain_and_bias() -> None:
    x = bench.example(4, 5, 8, 3, torch.float32, False, "cpu", seed=1)
    expected = fm_block(**x)
    half = fm_block(x["x"].half(), x["y"], x["gain"], x["bias"])
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), expected, atol=2e-2, rtol=1e-2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": torch.zeros(2, 3)}, "x has shape"),
        ({"x": torch.zeros(2, 3, 4, dtype=torch.int32)}, "x is torch.int32"),
        ({"gain": torch.zeros(6, dtype=torch.int32)}, "gain is torch.int32"),
        ({"y": torch.zeros(2, 4)}, r"y has shape \(2, 4\), expected \(any, 3\)"),
        ({"y": torch.zeros(3, 2, 3)}, r"y has shape \(3, 2, 3\), expected \(2, any, 3\)"),
        ({"y": torch.zeros(3)}, "y has shape"),
        ({"y": torch.zeros(0, 3)}, "expected tokens, columns, ranks"),
        ({"x": torch.zeros(2, 3, 0)}, "expected tokens, columns, ranks"),
        ({"gain": torch.zeros(5)}, r"gain has shape \(5,\), expected \(6\)"),
        ({"bias": torch.zeros(2, 3)}, r"bias has shape \(2, 3\), expected \(6\)"),
    ],
)
def test_wrong_arguments(change: dict[str, Any], words: str) -> None:
    arguments = {"x": torch.zeros(2, 3, 4), "y": torch.zeros(2, 3), "gain": torch.zeros(6), "bias": torch.zeros(6)}
    with pytest.raises(ValueError, match=words):
        fm_block(**(arguments | change))


@pytest.mark.parametrize(
    ("n", "k", "d", "dtype", "attentive", "words"),
    [
        (256, 32, 512, torch.bfloat16, False, ""),
        (256, 16, 16, torch.float16, True, ""),
        (32, 16, 32, torch.float32, False, ""),
        (257, 8, 16, torch.bfloat16, False, "257 tokens, a tile holds 256"),
        (32, 33, 16, torch.bfloat16, False, "33 ranks, a tile holds 32"),
        (32, 8, 513, torch.bfloat16, False, "513 columns, a tile holds 512"),
        (33, 16, 32, torch.float32, False, "33 tokens and 16 ranks in float32, a tile holds 512 products"),
        (256, 17, 32, torch.bfloat16, True, "256 tokens and 17 ranks in bfloat16, a tile holds 4096 products"),
        (2, 2, 2, torch.float64, False, "float64"),
    ],
)
def test_what_does_not_fit_a_tile(n: int, k: int, d: int, dtype: torch.dtype, attentive: bool, words: str) -> None:
    x, y = torch.empty(1, n, d, dtype=dtype), torch.empty(*((1, k, n) if attentive else (k, n)), dtype=dtype)
    assert _unfit(x, y) == words
