"""Wukong against its equations in plain double-precision loops."""

from __future__ import annotations

import itertools
import json
import math
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemkit.errors import GemkitError
from gemkit.nn.init import init_parameters
from gemkit.registry import load_registry
from gemkit.testing import bench
from gemkit.testing.contracts_any import nudge

N, N_OUT, D = 5, 6, bench.DIM
BENCHMARK = Path(__file__).resolve().parents[2] / "benchmarks" / "wukong_gpu.py"


def layer(layer_index: int = 0, **options: Any) -> nn.Module:
    spec = load_registry().get("interaction", "wukong")
    module = spec.cls(spec.config(**options), bench.context(layer_index, num_tokens_in=N, num_tokens_out=N_OUT))
    init_parameters(module, 1)
    nudge(module)
    return module.double().eval()


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def linear(module: nn.Linear, x: np.ndarray) -> np.ndarray:
    return np.array([sum(w * v for w, v in zip(row, x, strict=True)) for row in array(module.weight)]) + array(
        module.bias
    )


def layer_norm(module: nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    normed = (x - x.mean()) / math.sqrt(x.var() + module.eps)
    return normed * array(module.weight) + array(module.bias)


def perceptron(module: nn.Sequential, x: np.ndarray) -> np.ndarray:
    for part in module:
        x = linear(part, x) if isinstance(part, nn.Linear) else np.maximum(x, 0.0)
    return x


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.array([math.exp(s - max(scores)) for s in scores])
    return weights / weights.sum()


def compress(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """W X over the token axis, one number at a time."""
    out = np.zeros((len(weight), x.shape[1]))
    for i, d in np.ndindex(*out.shape):
        out[i, d] = sum(weight[i, n] * x[n, d] for n in range(len(x)))
    return out


def fm_block(module: Any, x: np.ndarray, activation: str) -> np.ndarray:
    if module.attentive:
        y = np.array([softmax(perceptron(module.attend, row)) for row in compress(array(module.compress.weight), x)])
    else:
        y = array(module.projection.weight)
    rank = len(y)
    gram = np.array([[sum(a * b for a, b in zip(u, v, strict=True)) for v in x] for u in x])  # X X^T
    products = np.zeros((len(x), rank))
    for n, k in np.ndindex(len(x), rank):
        products[n, k] = sum(gram[n, m] * y[k, m] for m in range(len(x)))
    tokens = perceptron(module.mlp, layer_norm(module.norm, products.reshape(-1)))
    tokens = np.maximum(tokens, 0.0) if activation == "relu" else tokens
    return tokens.reshape(-1, x.shape[1])


def reference(module: Any, x: np.ndarray, earlier: list[np.ndarray], activation: str = "none") -> np.ndarray:
    """`LN(concat(FMB(X), LCB(X)) + X)`, then cross-layer attention."""
    parts = [] if module.fm is None else [fm_block(module.fm, x, activation)]
    parts += [] if module.linear is None else [compress(array(module.linear.weight), x)]
    tokens = np.concatenate(parts)
    skip = np.zeros_like(tokens) if module.residual is None else x
    if module.residual is not None and not isinstance(module.residual, nn.Identity):
        skip = compress(array(module.residual.weight), x)
        if module.residual.bias is not None:
            skip = skip + array(module.residual.bias)
    out = np.array([layer_norm(module.norm, row) for row in tokens + skip])
    if module.attention is None:
        return out
    memory, attend = np.concatenate(earlier), module.attention
    mixed = []
    for row in out:
        query = linear(attend.query, row)
        scores = np.array([query @ linear(attend.key, m) / math.sqrt(len(row)) for m in memory])
        value = sum(w * linear(attend.value, m) for w, m in zip(softmax(scores), memory, strict=True))
        mixed.append(layer_norm(attend.norm, row + value))
    return np.array(mixed)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"projection": "attentive", "rank": 3},
        {"fmb_activation": "relu", "hidden": (8, 5)},
        {"residual_bias": True, "num_fm_tokens": 1},
        {"cross_layer_attention": True},
        {"without": ("fm",)},
        {"without": ("linear",)},
        {"without": ("linear", "residual")},
    ],
    ids=str,
)
@pytest.mark.parametrize("layer_index", [0, 1])
def test_layer_equals_its_equations(options: dict[str, Any], layer_index: int) -> None:
    module = layer(layer_index, **({"hidden": (7,), "rank": 4} | options))
    x = bench.noise("wukong", 3, N, D).double()
    earlier = [bench.noise("wukong/earlier", 3, 4, D).double()] * layer_index
    out = array(module(x, earlier))
    for b in range(len(x)):
        expected = reference(module, array(x[b]), [array(e[b]) for e in earlier], options.get("fmb_activation", "none"))
        np.testing.assert_allclose(out[b], expected, rtol=1e-9, atol=1e-10)


def test_as_many_tokens_in_as_out_need_no_compression_of_the_residual() -> None:
    spec = load_registry().get("interaction", "wukong")
    module = spec.cls(spec.config(), bench.context(num_tokens_in=N_OUT))
    assert isinstance(module.residual, nn.Identity)


@pytest.mark.parametrize("depth", [1, 2, 3])
def test_layer_i_is_a_polynomial_of_degree_2_to_the_i(depth: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Linear MLPs, no norms, whole numbers: along a line through 0, differences of order 2^i + 1 vanish exactly.

    Paper: Wukong (arXiv 2403.02545), section 3.4: layer i captures interactions of order 1 to 2^i.
    """
    monkeypatch.setattr(F, "layer_norm", lambda x, *_: x)
    digits = torch.Generator().manual_seed(2)  # of some seeds the highest terms cancel
    tokens, x = 2, torch.randint(-1, 2, (1, 3, 2), generator=digits).double()
    spec, layers = load_registry().get("interaction", "wukong"), []
    for index in range(depth):
        place = bench.context(index, dim=2, num_tokens_in=tokens if index else 3, num_tokens_out=tokens)
        module = spec.cls(spec.config(hidden=(), rank=2), place).double()
        for parameter in module.parameters():
            parameter.data = torch.randint(-1, 2, parameter.shape, generator=digits).double()
        layers.append(module)

    def output(t: int) -> np.ndarray:
        y = t * x
        for module in layers:
            y = module(y, [])
        assert y.abs().max() < 2**53, "not exact any more"
        return np.vectorize(int, otypes=[object])(array(y))

    half = 2 ** (depth - 1)
    values = [output(t) for t in range(-half, half + 3)]
    for _ in range(2**depth):
        values = [b - a for a, b in itertools.pairwise(values)]
    assert values[0].any(), f"the degree is below {2**depth}"
    assert all((a == b).all() for a, b in itertools.pairwise(values)), f"the degree is above {2**depth}"


def test_one_more_layer_doubles_the_order_of_interaction(monkeypatch: pytest.MonkeyPatch) -> None:
    """Scaling x by s scales products x_i . x_j by s^2: the FM part is a quadratic form before its norm."""
    fm: Any = layer().fm  # type: ignore[union-attr]
    seen: list[Tensor] = []
    norm = F.layer_norm
    monkeypatch.setattr(F, "layer_norm", lambda x, *rest: seen.append(x) or norm(x, *rest))
    x = bench.noise("wukong", 3, N, D).double()
    fm(x)
    fm(3 * x)
    assert seen[0].shape == (3, N * 16)
    torch.testing.assert_close(seen[1], 9 * seen[0])


def test_a_layer_needs_one_of_its_parts() -> None:
    with pytest.raises(GemkitError, match="has no output"):
        layer(without=("fm", "linear"))


def test_too_many_fm_tokens_are_refused() -> None:
    with pytest.raises(GemkitError, match="num_fm_tokens = 6") as caught:
        layer(num_fm_tokens=6)
    assert caught.value.where == "interaction.num_fm_tokens" and "1 to 5" in str(caught.value)


def test_the_gpu_benchmark_runs_with_toy_sizes(tmp_path: Path) -> None:
    """On a machine without the libraries for configurations and tables."""
    code = (
        "import runpy, sys; missing = ('omegaconf', 'hydra', 'pyarrow', 'duckdb', 'yaml', 'rich', 'torchmetrics');"
        "sys.modules.update(dict.fromkeys(missing)); sys.argv[1:] = ['--tiny', '--out', sys.argv[1]];"
        f"runpy.run_path({str(BENCHMARK)!r}, run_name='__main__')"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False)
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr
    report = json.loads((tmp_path / "wukong_gpu.json").read_text())
    (launches,), (fp8,), (large,) = report["launches"], report["fp8"], report["large"]
    assert launches["pytorch"]["compile_gain"] > 0
    assert large["eager, fm_block in pytorch"]["ms"] > 0 and large["compile, fm_block in pytorch"]["ms"] > 0
    assert fp8["exact"]["loss"] == fp8["fp8, rows"]["loss"] and fp8["exact"]["gradient_error"] == 0
    assert 0.001 < fp8["fp8, rows"]["gradient_error"] < 0.1
    assert fp8["exact"]["loss_after_a_step"] < fp8["exact"]["loss"]
    b, n, d, k, h, layers = 8, 6, 8, 4, 16, 2
    forward = b * layers * (4 * n * d * k + 2 * n * k * h + 2 * h * (n // 2) * d + 2 * (n // 2) * n * d)
    assert large["tflop"] == pytest.approx(3 * forward / 1e12)
