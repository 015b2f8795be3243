"""The domain layers against their equations in plain double-precision loops."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gemkit_baselines.surfaces import BLOCK, surface_blocks
from torch import Tensor, nn

from gemkit.nn.init import init_parameters
from gemkit.nn.layers import mlp
from gemkit.registry import load_registry
from gemkit.testing import bench
from gemkit.testing.contracts_any import nudge

B, N, D, S = 7, len(bench.ROLES), bench.DIM, 2
X = bench.noise("domain", B, N, D).double()
SURFACE = torch.tensor([1, 0, 0, 1, 1, 0, 1])


def layer(name: str, **options: Any) -> Any:
    spec = load_registry().get("domain", name)
    module = bench.build(spec, spec.config(**options))
    nudge(module)
    return module.double()


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def times(matrix: np.ndarray, x: np.ndarray) -> np.ndarray:
    """A matrix times a vector, one number at a time."""
    return np.array([sum(w * v for w, v in zip(row, x, strict=True)) for row in matrix])


def layer_norm(module: nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / math.sqrt(x.var() + module.eps) * array(module.weight) + array(module.bias)


# --- references: the tokens of one example -------------------------------------------------------------------


def surface_embedding(module: Any, x: np.ndarray, surface: int) -> np.ndarray:
    return np.array([token + array(module.surfaces.weight)[surface] for token in x])


def surface_gated(module: Any, x: np.ndarray, surface: int) -> np.ndarray:
    """`2 sigmoid(W' relu(W [e || x] + b) + b') * x`."""
    known = np.array([*array(module.surfaces.weight)[surface], *x.reshape(-1)])
    hidden = times(array(module.gate[0].weight), known) + array(module.gate[0].bias)
    hidden = np.array([max(h, 0.0) for h in hidden])
    scores = times(array(module.gate[2].weight), hidden) + array(module.gate[2].bias)
    gate = np.array([2 / (1 + math.exp(-s)) for s in scores])
    return gate.reshape(x.shape) * x


def star_linear(module: Any, x: np.ndarray, surface: int) -> np.ndarray:
    """`(W * W_s) x + b + b_s`."""
    shared, own = array(module.shared.weight), 1 + array(module.weight)[surface]
    product = np.zeros_like(shared)
    for i, j in np.ndindex(*shared.shape):
        product[i, j] = shared[i, j] * own[i, j]
    return times(product, x) + array(module.shared.bias) + array(module.bias)[surface]


def surface_ffn(module: Any, x: np.ndarray, surface: int) -> np.ndarray:
    out = []
    for token in x:
        hidden = np.array([max(h, 0.0) for h in star_linear(module.up, token, surface)])
        out.append(layer_norm(module.norm, token + star_linear(module.down, hidden, surface)))
    return np.array(out)


REFERENCES = {f.__name__: f for f in (surface_embedding, surface_gated, surface_ffn)}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("surface_embedding", {}),
        ("surface_gated", {}),
        ("surface_gated", {"hidden": 3}),
        ("surface_ffn", {}),
        ("surface_ffn", {"hidden": 5}),
    ],
    ids=str,
)
@pytest.mark.parametrize("surface", [SURFACE, torch.zeros_like(SURFACE)], ids=["both", "one_absent"])
def test_tokens_equal_the_equations(name: str, options: dict[str, Any], surface: Tensor) -> None:
    module = layer(name, **options)
    out = array(module(X, surface))
    for b, s in enumerate(surface.tolist()):
        np.testing.assert_allclose(out[b], REFERENCES[name](module, array(X[b]), s), rtol=1e-9, atol=1e-10)


# --- the gate ------------------------------------------------------------------------------------------------


def test_the_gate_lets_no_gradient_through_to_the_tokens() -> None:
    """The tokens' gradient is the gate itself, as if it were a constant."""
    module, x = layer("surface_gated"), X.clone().requires_grad_()
    out = module(x, SURFACE)
    (gradient,) = torch.autograd.grad(out.sum(), x)
    torch.testing.assert_close(gradient, (out / x).detach())
    assert gradient.min() > 0 and gradient.max() < 2


def test_a_gate_of_zeros_changes_nothing() -> None:
    """2 sigmoid(0) is 1."""
    module = layer("surface_gated")
    nn.init.zeros_(module.gate[2].weight)
    nn.init.zeros_(module.gate[2].bias)
    torch.testing.assert_close(module(X, SURFACE), X)


# --- the feed-forward layer ----------------------------------------------------------------------------------


def test_star_weights_by_hand() -> None:
    """Shared (2, 3) + 1; surface 1 has (10, -1) times, + 0.5: (20, -3) of (1, 2) is 14, and 15.5 with the biases."""
    star = layer("surface_ffn").up
    with torch.no_grad():
        star.shared.weight = nn.Parameter(torch.tensor([[2.0, 3.0]]).double())
        star.shared.bias = nn.Parameter(torch.tensor([1.0]).double())
        star.weight = nn.Parameter(torch.tensor([[[0.0, 0.0]], [[9.0, -2.0]]]).double())
        star.bias = nn.Parameter(torch.tensor([[0.0], [0.5]]).double())
    x = torch.tensor([[[1.0, 2.0]], [[1.0, 2.0]]]).double()
    torch.testing.assert_close(star(x, torch.tensor([0, 1])), torch.tensor([[[9.0]], [[15.5]]]).double())


def test_all_surfaces_start_equal() -> None:
    spec = load_registry().get("domain", "surface_ffn")
    module = bench.build(spec, spec.config()).double()
    assert torch.equal(module(X, SURFACE), module(X, 1 - SURFACE))
    with torch.no_grad():
        hidden = module.up.shared(X).relu()
        torch.testing.assert_close(module(X, SURFACE), module.norm(X + module.down.shared(hidden)))


def test_a_surface_that_is_absent_learns_nothing() -> None:
    module = layer("surface_ffn")
    module(X, torch.ones_like(SURFACE)).square().sum().backward()
    for star in (module.up, module.down):
        assert star.weight.grad[1].any() and not star.weight.grad[0].any()
        assert star.bias.grad[1].any() and not star.bias.grad[0].any()


# --- blocks of one surface -----------------------------------------------------------------------------------


@pytest.mark.parametrize("examples", [1, BLOCK - 1, BLOCK, BLOCK + 1, 5 * BLOCK, 333])
@pytest.mark.parametrize("num_surfaces", [1, 2, 5, 40])
def test_every_example_lies_in_a_block_of_its_surface(examples: int, num_surfaces: int) -> None:
    generator = torch.Generator().manual_seed(examples)
    drawn = torch.randint(num_surfaces, (examples,), generator=generator)
    for surface in (drawn, torch.zeros_like(drawn), torch.full_like(drawn, num_surfaces - 1), drawn.clamp(max=3)):
        blocks = surface_blocks(surface, num_surfaces)
        assert len(set(blocks.slot.tolist())) == examples
        assert torch.equal(blocks.owner[blocks.slot // BLOCK], surface)
        assert len(blocks.owner) <= examples / BLOCK + num_surfaces
        x = torch.randn(examples, 3, generator=generator)
        packed = blocks.pack(x)
        assert packed.shape == (len(blocks.owner), BLOCK, 3)
        torch.testing.assert_close(packed.sum(), x.sum())  # the free slots hold zeros
        assert torch.equal(blocks.unpack(packed), x)


def test_blocks_are_made_without_looking_at_the_batch() -> None:
    """Their number is known from the shapes alone: tensors without data have it too."""
    from torch._subclasses.fake_tensor import FakeTensorMode

    with FakeTensorMode():
        blocks = surface_blocks(torch.zeros(100, dtype=torch.int64), 3)
        assert blocks.unpack(blocks.pack(torch.zeros(100, 4))).shape == (100, 4)


# --- what each can learn -------------------------------------------------------------------------------------


def accuracy(name: str | None, x: Tensor, surface: Tensor, labels: Tensor) -> float:
    """Of a domain layer, or none, below an MLP on all tokens: trained on half of the examples, tried on the others."""
    modules, half = nn.ModuleList([mlp(N * D, (32,), 1)]), len(x) // 2
    init_parameters(modules, 1)
    if name is not None:
        spec = load_registry().get("domain", name)
        modules.append(bench.build(spec, spec.config()))

    def logits(rows: slice) -> Tensor:
        adapted = x[rows] if name is None else modules[1](x[rows], surface[rows])
        return modules[0](adapted.flatten(1)).squeeze(1)

    optimizer = torch.optim.Adam(modules.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.binary_cross_entropy_with_logits(logits(slice(half)), labels[:half]).backward()
        optimizer.step()
    return float(((logits(slice(half, None)) > 0) == (labels[half:] > 0.5)).float().mean())


@pytest.mark.parametrize("name", [None, *REFERENCES])
def test_opposite_surfaces_need_a_domain_layer(name: str | None) -> None:
    """What is liked on one surface is disliked on the other, and the tokens do not say on which they are."""
    n = 2048
    x = bench.noise("opposite", n, N, D).clone()
    x[:, 1:] = x[:, :1]  # the same in every token, as what counts is often in several features
    surface = torch.arange(n) % 2
    labels = ((x[:, 0, 0] > 0) == (surface == 1)).float()
    reached = accuracy(name, x, surface, labels)
    assert reached < 0.6 if name is None else reached > 0.8
