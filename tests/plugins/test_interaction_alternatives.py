"""The interaction alternatives against their papers' equations, one number at a time in double precision."""

from __future__ import annotations

import dataclasses
import math
from itertools import combinations, combinations_with_replacement
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from gemkit.config.build import build_run
from gemkit.config.compose import compose
from gemkit.config.fields import to_mapping
from gemkit.errors import GemkitError
from gemkit.nn.init import init_parameters
from gemkit.registry import load_registry
from gemkit.testing import bench
from gemkit.testing.contracts_any import nudge

N, N_OUT, D = len(bench.ROLES), 6, bench.DIM
NAMES = ("autoint", "dcnv2", "dhen", "dlrm", "finalmlp", "fm", "masknet")


def layer(name: str, layer_index: int = 0, num_tokens_out: int = N_OUT, **options: Any) -> Any:
    spec = load_registry().get("interaction", name)
    context = bench.context(layer_index, num_tokens_in=N, num_tokens_out=num_tokens_out)
    module = spec.cls(spec.config(**options), context)
    init_parameters(module, 1)
    nudge(module)
    return module.double().eval()


def examples(count: int = 3) -> torch.Tensor:
    return bench.noise("interaction", count, N, D).double()


def check(module: Any, reference: Any) -> None:
    """Every example of the layer's output is what `reference` derives from its tokens (N, D)."""
    x = examples()
    out = module(x, []).detach().numpy()
    assert out.shape == (len(x), module.num_tokens_out, D)
    for b in range(len(x)):
        np.testing.assert_allclose(out[b], reference(module, x[b].numpy()), rtol=1e-9, atol=1e-10)


# --- plain mathematics --------------------------------------------------------------------------------------


def array(tensor: torch.Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def times(weight: torch.Tensor, x: np.ndarray) -> np.ndarray:
    """W x, row by row."""
    return np.array([sum(w * v for w, v in zip(row, x, strict=True)) for row in array(weight)])


def linear(module: Any, x: np.ndarray) -> np.ndarray:
    return times(module.weight, x) + (0.0 if module.bias is None else array(module.bias))


def relu(x: np.ndarray) -> np.ndarray:
    return np.array([max(v, 0.0) for v in x])


def softmax(scores: list[float]) -> np.ndarray:
    weights = np.array([math.exp(s - max(scores)) for s in scores])
    return weights / weights.sum()


def perceptron(modules: Any, x: np.ndarray) -> np.ndarray:
    """Linear layers, a ReLU wherever the module has one."""
    for part in modules:
        x = linear(part, x) if isinstance(part, nn.Linear) else relu(x)
    return x


def layer_norm(module: nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    mean = sum(x) / len(x)
    variance = sum((v - mean) ** 2 for v in x) / len(x)
    return (x - mean) / math.sqrt(variance + module.eps) * array(module.weight) + array(module.bias)


def over_tokens(weight: np.ndarray, x: np.ndarray) -> np.ndarray:
    """W X over the token axis."""
    return np.array([sum(w * token for w, token in zip(row, x, strict=True)) for row in weight])


def to_tokens(module: Any, vector: np.ndarray) -> np.ndarray:
    return np.array([layer_norm(module.norm, row) for row in linear(module.linear, vector).reshape(-1, D)])


# --- DLRM ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"self_products": True, "hidden": (8, 5)}, {"hidden": ()}], ids=str)
def test_dlrm(options: dict[str, Any]) -> None:
    pairs = combinations_with_replacement if options.get("self_products") else combinations

    def reference(module: Any, x: np.ndarray) -> np.ndarray:
        products = [sum(a * b for a, b in zip(u, v, strict=True)) / math.sqrt(D) for u, v in pairs(x, 2)]
        return to_tokens(module.out, perceptron(module.hidden, np.array([*x.reshape(-1), *products])))

    check(layer("dlrm", **({"hidden": (7,)} | options)), reference)


def test_dlrm_products_by_hand() -> None:
    """Tokens of D = 4: products 11, 17, 39, in the order of pairs 01, 02, 12, and halved."""
    spec = load_registry().get("interaction", "dlrm")
    module = spec.cls(spec.config(hidden=()), bench.context(num_tokens_in=3, num_tokens_out=1, dim=4))
    seen: list[torch.Tensor] = []
    module.out.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module(torch.tensor([[[1.0, 2.0, 0.0, 0.0], [3.0, 4.0, 0.0, 0.0], [5.0, 6.0, 0.0, 0.0]]]), [])
    assert seen[0].tolist() == [[1, 2, 0, 0, 3, 4, 0, 0, 5, 6, 0, 0, 5.5, 8.5, 19.5]]


# --- FM -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("num_machines", [1, 4])
def test_fm(num_machines: int) -> None:
    def reference(module: Any, x: np.ndarray) -> np.ndarray:
        machines = [
            sum(u[i] * x[i] * u[j] * x[j] for i, j in combinations(range(N), 2)) for u in array(module.machines.weight)
        ]
        tokens = over_tokens(array(module.linear.weight), x) + over_tokens(array(module.combine.weight), machines)
        return np.array([layer_norm(module.norm, row) for row in tokens])

    check(layer("fm", num_machines=num_machines), reference)


def test_one_machine_is_rendles() -> None:
    """With u = 1, C = 1 and no linear part, the D numbers add up to the sum of all dot products."""
    module = layer("fm", num_tokens_out=1, num_machines=1)
    seen: list[torch.Tensor] = []
    module.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    with torch.no_grad():
        module.machines.weight.fill_(1), module.combine.weight.fill_(1), module.linear.weight.zero_()
    x = examples(1)
    module(x, [])
    expected = sum(float(x[0, i] @ x[0, j]) for i, j in combinations(range(N), 2))
    assert float(seen[0].detach().sum()) == pytest.approx(expected, rel=1e-12)


# --- DCN-V2 -------------------------------------------------------------------------------------------------


def cross(module: Any, x0: np.ndarray, x: np.ndarray, activation: Any) -> np.ndarray:
    if not hasattr(module, "gate"):
        inner = x if isinstance(module.down, nn.Identity) else times(module.down.weight, x)
        return x0 * linear(module.up, inner) + x
    experts, rank = module.core.shape[:2]
    gates = softmax(list(times(module.gate.weight, x)))
    mixed = np.zeros_like(x)
    for i in range(experts):
        own = slice(i * rank, (i + 1) * rank)
        inner = activation(times(module.down.weight[own], x))
        inner = activation(times(module.core[i], inner))
        mixed += gates[i] * x0 * (times(module.up.weight[:, own], inner) + array(module.up.bias))
    return mixed + x


@pytest.mark.parametrize("structure", ["stacked", "parallel"])
@pytest.mark.parametrize(
    "options",
    [
        {"rank": None, "num_layers": 3},
        {"rank": 4},
        {"rank": 4, "hidden": ()},
        {"rank": 3, "num_experts": 4},
        {"rank": 3, "num_experts": 2, "expert_activation": "relu", "hidden": (8, 5)},
    ],
    ids=str,
)
def test_dcnv2(options: dict[str, Any], structure: str) -> None:
    activation = relu if options.get("expert_activation") == "relu" else np.tanh

    def reference(module: Any, x: np.ndarray) -> np.ndarray:
        x0 = crossed = x.reshape(-1)
        for part in module.cross:
            crossed = cross(part, x0, crossed, activation)
        if structure == "parallel" and options.get("hidden", (7,)):
            return to_tokens(module.out, np.array([*crossed, *perceptron(module.deep, x0)]))
        return to_tokens(module.out, perceptron(module.deep, crossed))

    check(layer("dcnv2", structure=structure, **({"hidden": (7,)} | options)), reference)


def test_a_cross_layer_by_hand() -> None:
    """`x_0 * (W x + b) + x` with x_0 = (1, 2), x = (3, 4), W = [[1, 0], [1, 1]], b = (1, -1)."""
    from gemkit_baselines.interaction.dcnv2 import CrossLayer

    module = CrossLayer(2, None)
    with torch.no_grad():
        module.up.weight.copy_(torch.tensor([[1.0, 0.0], [1.0, 1.0]]))
        module.up.bias.copy_(torch.tensor([1.0, -1.0]))
    assert module(torch.tensor([[1.0, 2.0]]), torch.tensor([[3.0, 4.0]])).tolist() == [[7.0, 16.0]]


def test_experts_need_a_rank() -> None:
    with pytest.raises(GemkitError, match="num_experts = 2") as caught:
        layer("dcnv2", rank=None, num_experts=2)
    assert caught.value.where == "rank"


# --- MaskNet ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [
        {"blocks": (7, 4)},
        {"blocks": (7,), "reduction": 0.1},
        {"blocks": (4, 7, 5), "reduction": 2.0, "hidden": (3,)},
        {"blocks": (4, 7), "structure": "parallel"},
        {"blocks": (7, 4), "structure": "parallel", "hidden": (8, 3)},
    ],
    ids=str,
)
def test_masknet(options: dict[str, Any]) -> None:
    def block(module: Any, e: np.ndarray, v: np.ndarray) -> np.ndarray:
        assert module.mask[0].out_features == max(1, round(options.get("reduction", 1.0) * len(v)))
        return relu(layer_norm(module.norm, linear(module.linear, perceptron(module.mask, e) * v)))

    def reference(module: Any, x: np.ndarray) -> np.ndarray:
        e, v = x.reshape(-1), np.array([layer_norm(module.norm, row) for row in x]).reshape(-1)
        if options.get("structure") == "parallel":
            blocks = [value for part in module.blocks for value in block(part, e, v)]
            return to_tokens(module.out, perceptron(module.hidden, np.array(blocks)))
        for part in module.blocks:
            v = block(part, e, v)
        return to_tokens(module.out, v)

    check(layer("masknet", **options), reference)


# --- FinalMLP -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layer_index", [0, 1])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"gating": "learned", "gate_hidden": (4, 3), "num_heads": 1},
        {"gating": "none", "hidden": (7, 5), "hidden2": (3,)},
        {"hidden2": (), "gate_hidden": (), "head_dim": 1},
    ],
    ids=str,
)
def test_finalmlp(options: dict[str, Any], layer_index: int) -> None:
    heads = options.get("num_heads", 2)
    by_role = options.get("gating", "roles") == "roles" and layer_index == 0

    def stream(parts: Any, x: np.ndarray, role: str) -> np.ndarray:
        features = x.reshape(-1)
        if options.get("gating") != "none":
            tokens = [token for token, r in zip(x, bench.ROLES, strict=True) if r == role]
            context = np.concatenate(tokens) if by_role else array(parts[0].context)[0]
            gate = perceptron(parts[0].mlp, context)
            features = np.array([2.0 / (1.0 + math.exp(-g)) * f for g, f in zip(gate, features, strict=True)])
        return perceptron(list(parts)[1:], features)

    def reference(module: Any, x: np.ndarray) -> np.ndarray:
        first, second = stream(module.stream1, x, "user"), stream(module.stream2, x, "item")
        width = len(first)
        head_dim = width // heads
        weight = array(module.out.linear.weight)
        out = []
        for m, row in enumerate(weight):
            value = array(module.out.linear.bias)[m] + row[:width] @ first + row[width : 2 * width] @ second
            of_heads = row[2 * width :].reshape(heads, head_dim, head_dim)
            for h in range(heads):
                own = slice(h * head_dim, (h + 1) * head_dim)
                value += first[own] @ of_heads[h] @ second[own]
            out.append(value)
        return np.array([layer_norm(module.out.norm, token) for token in np.array(out).reshape(-1, D)])

    small = {"hidden": (7,), "num_heads": 2, "head_dim": 3, "gate_hidden": (4,)}
    check(layer("finalmlp", layer_index, **(small | options)), reference)


def test_without_a_role_a_gate_is_learned() -> None:
    spec = load_registry().get("interaction", "finalmlp")
    module = spec.cls(spec.config(), bench.context(roles=("user", "context"), num_tokens_in=2))
    assert module.stream1[0].context is None
    assert module.stream2[0].context is not None


# --- AutoInt ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "options",
    [{}, {"scaled": False, "num_heads": 3}, {"residual": False, "num_layers": 2}, {"num_layers": 3, "scaled": False}],
    ids=str,
)
@pytest.mark.parametrize("num_tokens_out", [N, N_OUT])
def test_autoint(options: dict[str, Any], num_tokens_out: int) -> None:
    heads, width = options.get("num_heads", 2), 4

    def interacting(module: Any, x: np.ndarray) -> np.ndarray:
        parts = array(module.project.weight).reshape(-1, heads, width, x.shape[1])
        out = np.zeros((len(x), heads * width))
        for h in range(heads):
            query, key, value = ([parts[i, h] @ token for token in x] for i in range(3))
            for m in range(len(x)):
                scores = [float(query[m] @ k) / (math.sqrt(width) if options.get("scaled", True) else 1.0) for k in key]
                mixed = sum(a * v for a, v in zip(softmax(scores), value, strict=True))
                if options.get("residual", True):
                    mixed = mixed + parts[3, h] @ x[m]
                out[m, h * width : (h + 1) * width] = relu(mixed)
        return out

    def reference(module: Any, x: np.ndarray) -> np.ndarray:
        for part in module.layers:
            x = interacting(part, x)
        tokens = np.array([linear(module.linear, token) for token in x])
        if num_tokens_out != N:
            tokens = over_tokens(array(module.compress.weight), tokens)
        return np.array([layer_norm(module.norm, token) for token in tokens])

    check(layer("autoint", num_tokens_out=num_tokens_out, **({"head_dim": width} | options)), reference)


# --- DHEN ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ensemble", ["concat", "sum", "weighted_sum"])
@pytest.mark.parametrize("num_tokens_out", [N, 7])
def test_dhen(ensemble: str, num_tokens_out: int) -> None:
    members = ("fm", {"name": "dlrm", "hidden": (7,)}, {"name": "autoint", "head_dim": 4})

    def reference(module: Any, x: np.ndarray) -> np.ndarray:
        outputs = [array(member(torch.tensor(x).unsqueeze(0), []))[0] for member in module.members]
        if ensemble == "concat":
            tokens = np.concatenate(outputs)
        else:
            weights = array(module.weights.weight) if ensemble == "weighted_sum" else np.ones(3)
            tokens = sum(w * output for w, output in zip(weights, outputs, strict=True))
        skip = x if num_tokens_out == N else over_tokens(array(module.shortcut.weight), x)
        return np.array([layer_norm(module.norm, token) for token in tokens + skip])

    module = layer("dhen", num_tokens_out=num_tokens_out, members=members, ensemble=ensemble)
    check(module, reference)
    counts = [member.num_tokens_out for member in module.members]
    shares = {N: [2, 2, 1], 7: [3, 2, 2]}[num_tokens_out]
    assert counts == (shares if ensemble == "concat" else [num_tokens_out] * 3)


def test_dhen_inside_dhen() -> None:
    module = layer("dhen", members=({"name": "dhen", "members": ("fm", "fm")}, "fm"))
    assert [m.num_tokens_out for m in module.members[0].members] == [2, 1]


def test_dhen_hands_earlier_outputs_on() -> None:
    module = layer("dhen", 1, members=({"name": "wukong", "cross_layer_attention": True}, "fm"), ensemble="sum")
    x, earlier = examples(), bench.noise("earlier", 2, 3, 4, D).double()
    assert not torch.allclose(module(x, [earlier[0]]), module(x, [earlier[1]]))


def test_dhen_of_a_run_survives_yaml() -> None:
    run = compose(["interaction=dhen", "interaction.members=[fm,{name: dcnv2, rank: 8}]"], load_registry())
    assert run.interaction.members == ("fm", {"name": "dcnv2", "rank": 8})
    assert build_run(to_mapping(run) | {"domain": "none", "transfer": "none"}, load_registry()) == run


@pytest.mark.parametrize("member", [3, "none", {"hidden": [8]}, ["fm"], None], ids=str)
def test_a_member_without_a_name_is_refused(member: Any) -> None:
    with pytest.raises(GemkitError) as caught:
        layer("dhen", members=("fm", member))
    assert caught.value.where == "members[1]"


@pytest.mark.parametrize(
    ("member", "where"),
    [
        ("dcnv3", "interaction.members[1]"),
        ({"name": "dcnv2", "rank": 0}, "interaction.members[1].rank"),
        ({"name": "dcnv2", "rang": 3}, "interaction.members[1]"),
        ({"name": "wukong", "num_fm_tokens": 9}, "interaction.members[1].num_fm_tokens"),
    ],
    ids=str,
)
def test_a_wrong_member_is_named(member: Any, where: str) -> None:
    with pytest.raises(GemkitError, match=r"interaction\.members\[1\]") as caught:
        layer("dhen", members=("fm", member))
    assert caught.value.where == where


def test_more_members_than_tokens_are_refused() -> None:
    overrides = ["interaction=dhen", "interaction.members=[fm,fm,fm]", "size.num_tokens=2"]
    with pytest.raises(GemkitError, match="3 modules") as caught:
        compose(overrides, load_registry())
    assert caught.value.where == "interaction.members"


# --- all ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_the_width_scales_the_cost(name: str) -> None:
    """Doubling the field that `width` names adds parameters, halving it removes some."""
    config = load_registry().get("interaction", name).config()
    if config.width_field is None:
        assert name == "dhen"
        return
    value = getattr(config, config.width_field)
    sizes = []
    for factor in (0.5, 1, 2):
        scaled = tuple(int(v * factor) for v in value) if isinstance(value, tuple) else int(value * factor)
        module = layer(name, **{config.width_field: scaled})
        sizes.append(sum(p.numel() for p in module.parameters()))
    assert sizes == sorted(set(sizes))


@pytest.mark.parametrize("name", NAMES)
def test_layers_stack(name: str) -> None:
    """Eight layers of a block that is one-shot in its paper neither explode nor die out, forward and backward."""
    spec = load_registry().get("interaction", name)
    contexts = [bench.context(i, num_tokens_in=N_OUT if i else N) for i in range(8)]
    stack = nn.ModuleList(spec.cls(spec.config(), context) for context in contexts)
    init_parameters(stack, 1)
    x = examples().float().requires_grad_()
    earlier: list[torch.Tensor] = []
    out = x
    for module in stack:
        out = module(out, earlier)
        earlier.append(out)
    assert 0.5 < float(out.detach().std()) < 2.0
    (gradient,) = torch.autograd.grad(out.square().sum(), x)
    assert torch.isfinite(gradient).all() and float(gradient.abs().max()) > 0


def test_dropout_is_used_in_training_only() -> None:
    for name in ("dcnv2", "dlrm", "finalmlp", "masknet"):
        module = layer(name, dropout=0.5)
        x = examples()
        assert torch.equal(module(x, []), module(x, []))
        module.train()
        assert not torch.equal(module(x, []), module(x, [])), name


def test_no_alternative_is_untested() -> None:
    registry = load_registry()
    own = {n for n in registry.names("interaction") if registry.plugin_of("interaction", n)[0] == "gemkit_baselines"}
    assert own == set(NAMES)
    assert all(dataclasses.is_dataclass(registry.get("interaction", n).config) for n in NAMES)
