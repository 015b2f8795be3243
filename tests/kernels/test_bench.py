"""What the benchmark stands on: lengths, errors against the reference, rates; and what it says without a GPU."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from gemkit_kernels import OPS, timing
from gemkit_kernels.compare import errors, relative_error
from gemkit_kernels.lengths import chunk_starts, log_normal, offsets_of

Tensors = dict[str, torch.Tensor]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_it_says_so() -> None:
    command = [sys.executable, "-m", "gemkit_kernels.bench", "--out", "nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 2 and "needs an NVIDIA GPU" in done.stderr and not done.stdout


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_log_normal_lengths(seed: int) -> None:
    lengths = log_normal(100_000, 1024, seed)
    assert lengths.sum() == 100_000 and lengths.min() >= 1 and lengths.max() <= 1024
    assert 180 < float(lengths.float().mean()) < 330  # a quarter of the longest, less what is cut off
    assert not torch.equal(lengths, log_normal(100_000, 1024, seed + 1)[: len(lengths)])


def test_starts_of_chunks() -> None:
    assert chunk_starts(torch.tensor([5, 0, 4, 1]), 4).tolist() == [0, 1, 5, 9, 10]
    assert offsets_of([2, 0, 3]).tolist() == [0, 2, 2, 5]


def test_errors_are_seen() -> None:
    """Of an output, of a gradient, of NaN; and nothing where there is none."""
    inputs = {"x": torch.randn(50, requires_grad=True), "y": torch.randn(50)}

    def reference(x: Tensors) -> tuple[torch.Tensor, ...]:
        return (x["x"].square() * x["y"],)

    found = errors(reference, reference, inputs)
    assert set(found) == {"0", "gradient of x"} and max(found.values()) < 1e-6
    wrong = errors(lambda x: (x["x"].square() * x["y"] * 1.01,), reference, inputs)
    assert all(abs(error - 0.01) < 1e-4 for error in wrong.values())
    half = errors(lambda x: ((x["x"] * x["x"].detach()) * x["y"],), reference, inputs)
    assert half["0"] < 1e-6 and abs(half["gradient of x"] - 0.5) < 1e-4
    assert relative_error(torch.tensor([1.0, torch.nan]), torch.ones(2)) == torch.inf


def test_rates() -> None:
    case = timing.Case(OPS[0], "c", lambda seed: {}, {}, forward_bytes=2e9, forward_flop=8e12, backward_bytes=1e9)
    ceiling = {"copy_gb_per_s": 4000.0, "matmul_bf16_tflop_per_s": 800.0}
    found = timing.rates(case, {"forward_ms": 1.0, "backward_ms": 0.5}, ceiling)
    assert found["forward_gb_per_s"] == 2000 and found["forward_of_copy"] == 0.5
    assert found["forward_tflop_per_s"] == 8000 and found["backward_of_copy"] == 0.5
