"""The heads against their equations in plain double-precision loops, and against public implementations."""

from __future__ import annotations

import importlib
import importlib.util
import itertools
import math
import sys
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gemkit.data.batch import Batch
from gemkit.data.schema import Schema, Task
from gemkit.errors import GemkitError
from gemkit.registry import load_registry
from gemkit.testing import bench
from gemkit.testing.contracts_any import nudge

R, P, S = bench.READOUT_DIM, 2, 2
BATCH = bench.make_batch()
READOUT = bench.noise("heads", BATCH.size, R).double()


def head(name: str, double: bool = True, **options: Any) -> Any:
    spec = load_registry().get("head", name)
    module = bench.build(spec, spec.config(**options))
    nudge(module)
    return module.double() if double else module


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def layer_norm(module: nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    return (x - x.mean()) / math.sqrt(x.var() + module.eps) * array(module.weight) + array(module.bias)


def softmax(scores: list[float]) -> np.ndarray:
    weights = np.array([math.exp(s - max(scores)) for s in scores])
    return weights / weights.sum()


Layers = list[tuple[np.ndarray, np.ndarray]]
"""Weight (out, in) and bias (out,) of each linear map of an MLP."""


def member(bank: Any, index: int) -> Layers:
    """The MLP number `index` of a bank."""
    layers = []
    for i, layer in enumerate(bank.layers):
        which, part, parts = (*divmod(index, bank.per_input), bank.per_input) if i == 0 else (index, 0, 1)
        weight = array(layer.weight)[which]  # (in, parts * out)
        width = weight.shape[1] // parts
        bias = np.zeros(weight.shape[1])
        if layer.bias is not None:
            bias = array(layer.bias)[which * weight.shape[1] : (which + 1) * weight.shape[1]]
        own = slice(part * width, (part + 1) * width)
        layers.append((weight[:, own].T, bias[own]))
    return layers


def perceptron(layers: Layers, x: np.ndarray, num_hidden: int) -> np.ndarray:
    """An MLP, number by number; a ReLU after the first `num_hidden` maps."""
    for i, (weight, bias) in enumerate(layers):
        x = np.array([sum(w * v for w, v in zip(row, x, strict=True)) for row in weight]) + bias
        x = np.array([max(v, 0.0) for v in x]) if i < num_hidden else x
    return x


def mlp_layers(module: nn.Sequential) -> Layers:
    return [(array(m.weight), array(m.bias)) for m in module if isinstance(m, nn.Linear)]


# --- references: the logits of one example -------------------------------------------------------------------


def multitask(module: Any, x: np.ndarray, surface: int, config: Any) -> list[float]:
    if not config.tower_hidden:
        return list(perceptron(mlp_layers(module.mlp), x, len(config.hidden)))
    bottom = perceptron(member(module.bottom, 0), x, len(config.hidden))
    return [perceptron(member(module.towers, k), bottom, len(config.tower_hidden))[0] for k in range(P)]


def single_task(module: Any, x: np.ndarray, surface: int, config: Any) -> list[float]:
    return [perceptron(member(module.towers, k), x, len(config.hidden))[0] for k in range(P)]


def per_surface(module: Any, x: np.ndarray, surface: int, config: Any) -> list[float]:
    bottom = perceptron(member(module.bottom, 0), x, len(config.hidden)) if config.hidden else x
    return list(perceptron(member(module.towers, surface), bottom, len(config.tower_hidden)))


def mmoe(module: Any, x: np.ndarray, surface: int, config: Any) -> list[float]:
    """`f_k = sum_i softmax(W_k x)_i f_i(x)`, `y_k = h_k(f_k)`."""
    n = config.num_experts
    experts = [perceptron(member(module.experts, i), x, len(config.expert_hidden)) for i in range(n)]
    logits = []
    for k in range(P):
        gate = softmax([float(w @ x) for w in array(module.gates.weight)[k * n : (k + 1) * n]])
        mixed = sum(g * expert for g, expert in zip(gate, experts, strict=True))
        logits.append(perceptron(member(module.towers, k), mixed, len(config.tower_hidden))[0])
    return logits


def ple(module: Any, x: np.ndarray, surface: int, config: Any) -> list[float]:
    """`g_k = softmax(W_k x_k) [E_k; E_s]` level by level; the shared side mixes all experts."""
    own, shared, depth = config.num_task_experts, config.num_shared_experts, len(config.expert_hidden)
    sides, common = [x] * P, x
    for number, level in enumerate(module.levels):
        of_task = [[perceptron(member(level.own, k * own + i), sides[k], depth) for i in range(own)] for k in range(P)]
        of_all = [perceptron(member(level.shared, i), common, depth) for i in range(shared)]
        mixed = []
        for k in range(P):
            ((weight, _),) = member(level.gates, k)
            gate = softmax([float(w @ sides[k]) for w in weight])
            mixed.append(sum(g * e for g, e in zip(gate, of_task[k] + of_all, strict=True)))
        if number < config.num_levels - 1:
            gate = softmax([float(w @ common) for w in array(level.shared_gate.weight)])
            common = sum(g * e for g, e in zip(gate, [*itertools.chain(*of_task), *of_all], strict=True))
        sides = mixed
    return [perceptron(member(module.towers, k), sides[k], len(config.tower_hidden))[0] for k in range(P)]


REFERENCES = {f.__name__: f for f in (multitask, single_task, per_surface, mmoe, ple)}


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("multitask", {}),
        ("multitask", {"hidden": ()}),
        ("multitask", {"hidden": (7,), "tower_hidden": (5,)}),
        ("multitask", {"hidden": (7, 6), "tower_hidden": (5, 4)}),
        ("single_task", {}),
        ("single_task", {"hidden": (7,)}),
        ("single_task", {"hidden": ()}),
        ("per_surface", {}),
        ("per_surface", {"hidden": (7, 5), "tower_hidden": ()}),
        ("per_surface", {"hidden": (), "tower_hidden": (6, 5)}),
        ("mmoe", {}),
        ("mmoe", {"num_experts": 3, "expert_hidden": (7, 5), "tower_hidden": ()}),
        ("mmoe", {"num_experts": 2, "expert_hidden": (6,), "tower_hidden": (4, 3)}),
        ("ple", {}),
        ("ple", {"num_levels": 1, "expert_hidden": (6,)}),
        ("ple", {"num_levels": 3, "num_task_experts": 1, "num_shared_experts": 2, "expert_hidden": (6, 5)}),
        ("ple", {"num_task_experts": 3, "num_shared_experts": 1, "expert_hidden": (6,), "tower_hidden": ()}),
    ],
    ids=str,
)
def test_logits_equal_the_equations(name: str, options: dict[str, Any]) -> None:
    module, config = head(name, **options), load_registry().get("head", name).config(**options)
    logits = array(module(READOUT, BATCH))
    assert len(set(BATCH.surface.tolist())) == S
    for b, surface in enumerate(BATCH.surface.tolist()):
        expected = REFERENCES[name](module, layer_norm(module.norm, array(READOUT[b])), surface, config)
        np.testing.assert_allclose(logits[b], expected, rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("name", REFERENCES)
def test_dropout_is_for_training(name: str) -> None:
    module = head(name, dropout=0.5)
    assert torch.equal(module(READOUT, BATCH), module(READOUT, BATCH))
    module.train()
    assert not torch.equal(module(READOUT, BATCH), module(READOUT, BATCH))


@pytest.mark.parametrize("name", REFERENCES)
def test_loss_is_the_sum_of_the_tasks_weighted_means(name: str) -> None:
    """Task by task and example by example; a task that no label counts for adds nothing."""
    spec = load_registry().get("head", name)
    schema = Schema(tasks=(Task(name="a", weight=0.5), Task(name="b", weight=3.0), Task(name="c", weight=7.0)))
    module = spec.cls(spec.config(), bench.context(schema=schema))
    logits = torch.tensor([[0.3, -2.0, 1.0], [1.5, 0.7, 1.0], [-0.2, 4.0, 1.0]], dtype=torch.float64)
    labels = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    masks = torch.tensor([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [1.0, 1.0, 0.0]], dtype=torch.float64)
    weights = torch.tensor([2.0, 0.5, 1.0], dtype=torch.float64)
    expected = 0.0
    for task, task_weight in ((0, 0.5), (1, 3.0)):
        total = count = 0.0
        for i in range(3):
            p = 1 / (1 + math.exp(-float(logits[i, task])))
            loss = -math.log(p if labels[i, task] else 1 - p)
            total += float(weights[i] * masks[i, task]) * loss
            count += float(weights[i] * masks[i, task])
        expected += task_weight * total / count
    loss = module.loss(logits, BATCH._replace(labels=labels, masks=masks, weights=weights))
    assert float(loss) == pytest.approx(expected, rel=1e-6)


# --- by hand -------------------------------------------------------------------------------------------------


def by_hand(name: str, **options: Any) -> Any:
    """A head on a readout of two numbers, with all weights 0 and a norm that leaves (1, -1) as it is."""
    spec = load_registry().get("head", name)
    module = bench.build(spec, spec.config(**options), readout_dim=2).double()
    module.norm.eps = 0.0
    with torch.no_grad():
        for parameter in set(module.parameters()) - set(module.norm.parameters()):
            parameter.zero_()
    return module


def test_mmoe_by_hand() -> None:
    """Experts say 1 and 5. Task 0 weighs them evenly, task 1 by 3 to 1: 3 and 2, which the towers double."""
    module = by_hand("mmoe", num_experts=2, expert_hidden=(1,), tower_hidden=())
    with torch.no_grad():
        module.experts.layers[0].weight[0] = torch.tensor([[1.0, 0.0], [0.0, -5.0]])
        module.gates.weight[2, 0] = math.log(3)
        module.towers.layers[0].weight.fill_(2.0)
    logits = module(torch.tensor([[1.0, -1.0]]).double(), BATCH)
    torch.testing.assert_close(logits, torch.tensor([[6.0, 4.0]]).double())


def test_ple_by_hand() -> None:
    """Own experts say 1 and 3, the shared one 5; even gates: 3 and 4, and the shared side has their mean 3."""
    module = by_hand("ple", num_levels=2, num_task_experts=1, num_shared_experts=1, expert_hidden=(1,), tower_hidden=())
    with torch.no_grad():
        module.levels[0].own.layers[0].weight[0] = torch.tensor([[1.0, 3.0], [0.0, 0.0]])
        module.levels[0].shared.layers[0].weight[0] = torch.tensor([[5.0], [0.0]])
        for bank in (module.levels[1].own, module.levels[1].shared, module.towers):
            bank.layers[0].weight.fill_(1.0)
    logits = module(torch.tensor([[1.0, -1.0]]).double(), BATCH)
    torch.testing.assert_close(logits, torch.tensor([[(3 + 3) / 2, (4 + 3) / 2]]).double())


# --- who shares what -----------------------------------------------------------------------------------------


def reached(module: Any, task: int) -> dict[str, Tensor]:
    """Parameter -> its gradient from one task's logits."""
    module.zero_grad()
    module(READOUT, BATCH)[:, task].sum().backward()
    return {name: p.grad for name, p in module.named_parameters() if p.grad is not None}


def test_single_tasks_share_nothing() -> None:
    module = head("single_task", hidden=(6, 5))
    gradients = reached(module, 0)
    first = gradients["towers.layers.0.weight"][0]
    assert first[:, :6].any() and not first[:, 6:].any()
    for i in (1, 2):
        assert gradients[f"towers.layers.{i}.weight"][0].any() and not gradients[f"towers.layers.{i}.weight"][1].any()


def test_experts_of_another_task_are_reached_only_through_the_shared_side() -> None:
    module = head("ple", num_levels=2, num_task_experts=1, expert_hidden=(6,))
    gradients = reached(module, 0)
    below = gradients["levels.0.own.layers.0.weight"][0]
    assert below[:, :6].any() and below[:, 6:].any()
    last = gradients["levels.1.own.layers.0.weight"]
    assert last[0].any() and not last[1].any()
    only = head("ple", num_levels=1, num_task_experts=1, expert_hidden=(6,))
    own = reached(only, 0)["levels.0.own.layers.0.weight"][0]
    assert own[:, :6].any() and not own[:, 6:].any()


def test_a_surface_that_is_absent_learns_nothing() -> None:
    module = head("per_surface")
    here = BATCH._replace(surface=torch.ones_like(BATCH.surface))
    module(READOUT, here).sum().backward()
    for layer in module.towers.layers:
        assert layer.weight.grad[1].any() and not layer.weight.grad[0].any()


def test_the_default_head_has_the_weights_that_saved_runs_have() -> None:
    names = ["norm.weight", "norm.bias", *(f"mlp.{i}.{kind}" for i in (0, 2, 4) for kind in ("weight", "bias"))]
    assert list(head("multitask").state_dict()) == names


def test_towers_need_a_bottom() -> None:
    with pytest.raises(GemkitError, match="hidden is empty") as caught:
        head("multitask", hidden=(), tower_hidden=(4,))
    assert caught.value.where == "hidden" and "single_task" in str(caught.value)


# --- what each can learn -------------------------------------------------------------------------------------


def accuracy(name: str, readout: Tensor, batch: Batch) -> float:
    """Of a head trained on the first half of the examples, on the second."""
    module, half = head(name, double=False).train(), len(readout) // 2
    seen, new = (
        batch._replace(**{key: getattr(batch, key)[rows] for key in ("labels", "masks", "weights", "surface")})
        for rows in (slice(half), slice(half, None))
    )
    optimizer = torch.optim.Adam(module.parameters(), lr=0.01)
    for _ in range(60):
        optimizer.zero_grad()
        module.loss(module(readout[:half], seen), seen).backward()
        optimizer.step()
    return float(((module.eval()(readout[half:], new) > 0) == (new.labels > 0.5)).float().mean())


def test_opposite_surfaces_need_weights_of_their_own() -> None:
    """What is liked on one surface is disliked on the other, and the readout does not say on which it is."""
    n = 2048
    readout = bench.noise("opposite", n, R)
    surface = torch.arange(n) % 2
    labels = ((readout[:, 0] > 0) == (surface == 1)).float().unsqueeze(1).expand(-1, P)
    batch = BATCH._replace(surface=surface, labels=labels, masks=torch.ones(n, P), weights=torch.ones(n))
    assert accuracy("per_surface", readout, batch) > 0.8
    assert accuracy("multitask", readout, batch) < 0.6


# --- public implementations ----------------------------------------------------------------------------------


@pytest.fixture
def rechub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The multi-task models of torch-rechub, by file, without what its trainers and data sets want to be installed."""
    spec = importlib.util.find_spec("torch_rechub")
    if spec is None:
        pytest.skip("torch-rechub is not installed")
    package, data = ModuleType("torch_rechub"), ModuleType("torch_rechub.utils.data")
    package.__path__ = list(spec.submodule_search_locations or ())
    data.get_auto_embedding_dim = None
    monkeypatch.setitem(sys.modules, "torch_rechub", package)
    monkeypatch.setitem(sys.modules, "torch_rechub.utils.data", data)
    return lambda file: importlib.import_module(f"torch_rechub.models.multi_task.{file}")


class Readout(nn.Module):
    """In the place of a public model's embeddings."""

    def forward(self, x: Tensor, *_: Any, **__: Any) -> Tensor:
        return x


def give(public: Any, layers: Layers) -> None:
    """An MLP of torch-rechub gets our weights, and batch norms that do nothing."""
    linears = [m for m in public.mlp if isinstance(m, nn.Linear)]
    with torch.no_grad():
        for linear, (weight, bias) in zip(linears, layers, strict=True):
            linear.weight.copy_(torch.from_numpy(weight.copy()))
            linear.bias.copy_(torch.from_numpy(bias.copy()))
    for norm in public.mlp:
        if isinstance(norm, nn.BatchNorm1d):
            norm.eps = 0.0


def assert_equal_to(public: nn.Module, module: Any) -> None:
    public.embedding = Readout()
    ours = module(READOUT, BATCH).sigmoid()
    torch.testing.assert_close(public.double().eval()(module.norm(READOUT)), ours, rtol=1e-9, atol=1e-10)


FEATURES = [SimpleNamespace(name="readout", embed_dim=R)]
TYPES = ["classification"] * P


def test_equals_the_public_shared_bottom(rechub: Any) -> None:
    module = head("multitask", hidden=(8, 7), tower_hidden=(5,))
    public = rechub("shared_bottom").SharedBottom(FEATURES, TYPES, {"dims": [8, 7]}, [{"dims": [5]}] * P).double()
    give(public.bottom_mlp, member(module.bottom, 0))
    for k, tower in enumerate(public.towers):
        give(tower, member(module.towers, k))
    assert_equal_to(public, module)


def test_equals_the_public_mmoe(rechub: Any) -> None:
    module = head("mmoe", num_experts=3, expert_hidden=(8, 7), tower_hidden=(5,))
    public = rechub("mmoe").MMOE(FEATURES, TYPES, 3, {"dims": [8, 7]}, [{"dims": [5]}] * P).double()
    for i, expert in enumerate(public.experts):
        give(expert, member(module.experts, i))
    for k in range(P):
        give(public.gates[k], [(array(module.gates.weight)[3 * k : 3 * k + 3], np.zeros(3))])
        give(public.towers[k], member(module.towers, k))
    assert_equal_to(public, module)


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_equals_the_public_ple(rechub: Any, levels: int) -> None:
    own, shared = 2, 3
    module = head(
        "ple",
        num_levels=levels,
        num_task_experts=own,
        num_shared_experts=shared,
        expert_hidden=(8, 7),
        tower_hidden=(5,),
    )
    sizes = (levels, own, shared, {"dims": [8, 7]}, [{"dims": [5]}] * P)
    public = rechub("ple").PLE(FEATURES, TYPES, *sizes).double()
    for ours, theirs in zip(module.levels, public.cgc_layers, strict=True):
        for i, expert in enumerate(theirs.experts_specific):
            give(expert, member(ours.own, i))
        for i, expert in enumerate(theirs.experts_shared):
            give(expert, member(ours.shared, i))
        for k, gate in enumerate(theirs.gates_specific):
            give(gate, member(ours.gates, k))
        if ours.shared_gate is not None:
            weight = array(ours.shared_gate.weight)
            give(theirs.gate_shared, [(weight, np.zeros(len(weight)))])
    for k, tower in enumerate(public.towers):
        give(tower, member(module.towers, k))
    assert_equal_to(public, module)


def test_other_weights_than_the_public_ones_are_seen(rechub: Any) -> None:
    module = head("mmoe", num_experts=2, expert_hidden=(8,), tower_hidden=())
    public = rechub("mmoe").MMOE(FEATURES, TYPES, 2, {"dims": [8]}, [{"dims": []}] * P).double()
    with pytest.raises(AssertionError):
        assert_equal_to(public, module)
