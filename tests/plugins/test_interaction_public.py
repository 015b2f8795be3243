"""The interaction alternatives with the weights of public implementations: the same numbers.

Our layers end in tokens with a LayerNorm; what is compared is what comes before.
"""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from gemkit.registry import load_registry
from gemkit.testing import bench
from gemkit.testing.tolerances import assert_close

B, N, D = 5, len(bench.ROLES), bench.DIM
WIDTH = N * D


def layer(name: str, **options: Any) -> Any:
    spec = load_registry().get("interaction", name)
    module = spec.cls(spec.config(**options), bench.context(num_tokens_in=N))
    return randomised(module)


def randomised(module: nn.Module) -> Any:
    """Every parameter anew, so that zeros and ones hide nothing."""
    generator = torch.Generator().manual_seed(1)
    module = module.double().eval()
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator, dtype=torch.float64) / 4)
    return module


def before(module: nn.Module, of: nn.Module) -> Tensor:
    """What reaches the part `of` of our layer, on the examples."""
    seen: list[Tensor] = []
    handle = of.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module(examples(), [])
    handle.remove()
    return seen[0]


def examples() -> Tensor:
    return bench.noise("public", B, N, D).double()


def copy(source: Tensor, target: nn.Parameter) -> None:
    with torch.no_grad():
        target.copy_(source.reshape(target.shape))


# --- TorchRec: DLRM, DeepFM, DCN ----------------------------------------------------------------------------


@pytest.fixture(scope="module")
def torchrec() -> Any:
    pytest.importorskip("torchrec")
    return lambda name: importlib.import_module(f"torchrec.{name}")


def test_products_are_those_of_torchrecs_dlrm(torchrec: Any) -> None:
    """TorchRec passes on the first token only, we all of them; the products and their order are the same."""
    public = torchrec("models.dlrm").InteractionArch(num_sparse_features=N - 1)
    x = examples()
    expected = public(x[:, 0], x[:, 1:])
    ours = before(module := layer("dlrm", hidden=()), module.out)
    products = ours[:, WIDTH:] * math.sqrt(D)
    assert_close(torch.cat([ours[:, :D], products], dim=1), expected, "first token and products")


def test_one_machine_on_tokens_of_one_number_is_torchrecs_fm(torchrec: Any) -> None:
    """TorchRec flattens first, so that it also multiplies numbers of one vector: Rendle's FM for D = 1 only."""
    public = torchrec("modules.deepfm").FactorizationMachine()
    spec = load_registry().get("interaction", "fm")
    module = spec.cls(spec.config(num_machines=1), bench.context(num_tokens_in=N, num_tokens_out=1, dim=1)).double()
    copy(torch.ones(1), module.combine.weight), copy(torch.ones(N), module.machines.weight)
    copy(torch.zeros(N), module.linear.weight)
    x, seen = examples()[..., :1], []
    module.norm.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    module(x, [])
    assert_close(seen[0].flatten(1), public([x]), "sum of products")


def test_crosses_are_torchrecs(torchrec: Any) -> None:
    public = randomised(torchrec("modules.crossnet").CrossNet(WIDTH, 3))
    module = layer("dcnv2", rank=None, num_layers=3, hidden=())
    for ours, kernel, bias in zip(module.cross, public.kernels, public.bias, strict=True):
        copy(kernel, ours.up.weight), copy(bias, ours.up.bias)
    assert_close(before(module, module.out), public(examples().flatten(1)), "crosses")


def test_low_rank_crosses_are_torchrecs(torchrec: Any) -> None:
    public = randomised(torchrec("modules.crossnet").LowRankCrossNet(WIDTH, 3, low_rank=4))
    module = layer("dcnv2", rank=4, num_layers=3, hidden=())
    for i, ours in enumerate(module.cross):
        copy(public.V_kernels[i], ours.down.weight)
        copy(public.W_kernels[i], ours.up.weight), copy(public.bias[i], ours.up.bias)
    assert_close(before(module, module.out), public(examples().flatten(1)), "low-rank crosses")


def test_mixed_crosses_are_torchrecs(torchrec: Any) -> None:
    """TorchRec's layers share one gate, ours have one each: they get equal weights here."""
    public = randomised(torchrec("modules.crossnet").LowRankMixtureCrossNet(WIDTH, 2, num_experts=3, low_rank=4))
    module = layer("dcnv2", rank=4, num_layers=2, num_experts=3, expert_activation="relu", hidden=())
    for i, ours in enumerate(module.cross):
        copy(public.V_kernels[i].reshape(-1, WIDTH), ours.down.weight)
        copy_mixture(ours, public.C_kernels[i], public.U_kernels[i], public.bias[i], public.gates)
    assert_close(before(module, module.out), public(examples().flatten(1)), "mixed crosses")


def copy_mixture(ours: Any, core: Tensor, up: Tensor, bias: Tensor, gates: Any) -> None:
    """`up` is (experts, W, rank)."""
    copy(core, ours.core), copy(up.permute(1, 0, 2), ours.up.weight), copy(bias, ours.up.bias)
    copy(torch.cat([gate.weight for gate in gates]), ours.gate.weight)


# --- FuxiCTR: DCN-V2, FM, FinalMLP --------------------------------------------------------------------------


@pytest.fixture
def fuxictr(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Modules of FuxiCTR, without what its data sets and trainers want to be installed: none of it is in a layer."""
    spec = importlib.util.find_spec("fuxictr")
    if spec is None or spec.origin is None:
        pytest.skip("fuxictr is not installed")
    models = Path(spec.origin).parents[1] / "model_zoo" / "LongCTR"
    absent: dict[str, dict[str, Any]] = {
        "model_zoo.LongCTR": {"__path__": [str(models)]},  # its __init__ loads all models
        "fuxictr.preprocess": {},
        "fuxictr.preprocess.tokenizer": {"load_pretrain_emb": None},
        "fuxictr.pytorch.models": {"BaseModel": nn.Module},
    }
    for name, content in absent.items():
        monkeypatch.setitem(sys.modules, name, stand_in(name, content))
    return importlib.import_module


def stand_in(name: str, content: dict[str, Any]) -> ModuleType:
    module = ModuleType(name)
    vars(module).update(content)
    return module


def test_crosses_are_fuxictrs(fuxictr: Any) -> None:
    public = randomised(fuxictr("fuxictr.pytorch.layers").CrossNetV2(WIDTH, 2))
    module = layer("dcnv2", rank=None, hidden=())
    for ours, theirs in zip(module.cross, public.cross_layers, strict=True):
        ours.up.load_state_dict(theirs.state_dict())
    assert_close(before(module, module.out), public(examples().flatten(1)), "crosses")


def test_mixed_crosses_are_fuxictrs(fuxictr: Any) -> None:
    """As in TorchRec, one gate serves all layers; the activation is tanh."""
    public = randomised(fuxictr("fuxictr.pytorch.layers").CrossNetMix(WIDTH, 2, low_rank=4, num_experts=3))
    module = layer("dcnv2", rank=4, num_layers=2, num_experts=3, hidden=())
    for i, ours in enumerate(module.cross):
        copy(public.V_list[i].transpose(1, 2).reshape(-1, WIDTH), ours.down.weight)
        copy_mixture(ours, public.C_list[i], public.U_list[i], public.bias[i], public.gating)
    assert_close(before(module, module.out), public(examples().flatten(1)), "mixed crosses")


@pytest.mark.parametrize("structure", ["stacked", "parallel"])
def test_deep_networks_are_fuxictrs(fuxictr: Any, structure: str) -> None:
    layers = fuxictr("fuxictr.pytorch.layers")
    cross, deep = randomised(layers.CrossNetV2(WIDTH, 2)), randomised(layers.MLP_Block(WIDTH, [8, 7]))
    module = layer("dcnv2", rank=None, hidden=(8, 7), structure=structure)
    for ours, theirs in zip(module.cross, cross.cross_layers, strict=True):
        ours.up.load_state_dict(theirs.state_dict())
    module.deep.load_state_dict(deep.mlp.state_dict())
    x = examples().flatten(1)
    expected = deep(cross(x)) if structure == "stacked" else torch.cat([cross(x), deep(x)], dim=1)
    assert_close(before(module, module.out), expected, "deep network and crosses")


def test_pairs_are_fuxictrs(fuxictr: Any) -> None:
    """Products for DLRM, and the sum of all pairs' elementwise products for FM."""
    interaction = fuxictr("fuxictr.pytorch.layers").InnerProductInteraction
    ours = before(module := layer("dlrm", hidden=()), module.out)
    products = ours[:, WIDTH:] * math.sqrt(D)
    assert_close(products, interaction(N, output="inner_product")(examples()), "products")
    module = layer("fm", num_machines=1)
    copy(torch.ones(N), module.machines.weight)
    pairs = before(module, module.norm) - module.linear(examples())
    expected = interaction(N, output="bi_interaction")(examples())
    assert_close(pairs, module.combine.weight * expected.unsqueeze(1), "pairs")


def test_fusion_is_fuxictrs(fuxictr: Any) -> None:
    """FinalMLP's fusion with as many outputs as our tokens have numbers."""
    public = fuxictr("model_zoo.LongCTR.FinalMLP.FinalMLP")
    module = layer("finalmlp", num_heads=3, head_dim=4)
    outputs = module.num_tokens_out * D
    fusion = randomised(public.InteractionAggregation(12, 12, output_dim=outputs, num_heads=3))
    bilinear = fusion.w_xy.view(3, 4, outputs, 4).permute(2, 0, 1, 3).reshape(outputs, -1)
    copy(torch.cat([fusion.w_x.weight, fusion.w_y.weight, bilinear], dim=1), module.out.linear.weight)
    copy(fusion.w_x.bias + fusion.w_y.bias, module.out.linear.bias)
    streams = module.stream1(examples()), module.stream2(examples())
    assert_close(before(module, module.out.norm).flatten(1), fusion(*streams), "fusion")


def test_gates_are_fuxictrs(fuxictr: Any) -> None:
    """FinalMLP's feature selection without context: our learned gates."""
    public = fuxictr("model_zoo.LongCTR.FinalMLP.FinalMLP")
    selection = randomised(public.FeatureSelection(None, WIDTH, D, fs_hidden_units=[7]))
    module = layer("finalmlp", gating="learned", gate_hidden=(7,))
    expected = selection(None, examples().flatten(1))
    for i, stream in enumerate((module.stream1, module.stream2)):
        copy(getattr(selection, f"fs{i + 1}_ctx_bias"), stream[0].context)
        mlp = getattr(selection, f"fs{i + 1}_gate").mlp
        stream[0].mlp.load_state_dict(mlp.state_dict())
        assert_close(stream[0](examples()), expected[i], f"features of stream {i + 1}")


# --- torch-rechub: AutoInt ----------------------------------------------------------------------------------


def test_attention_is_torch_rechubs(monkeypatch: pytest.MonkeyPatch) -> None:
    """It scales the scores, which the paper does not; inner and outer width are the same."""
    spec = importlib.util.find_spec("torch_rechub")
    if spec is None:
        pytest.skip("torch-rechub is not installed")
    absent: dict[str, dict[str, Any]] = {
        "torch_rechub": {"__path__": spec.submodule_search_locations},  # its __init__ loads trainers
        "torch_rechub.utils.data": {"get_auto_embedding_dim": None},
    }
    for name, content in absent.items():
        monkeypatch.setitem(sys.modules, name, stand_in(name, content))
    public_layer = importlib.import_module("torch_rechub.basic.layers").InteractingLayer
    module = layer("autoint", num_layers=2, num_heads=2, head_dim=D // 2, scaled=True)
    public = nn.Sequential(*(randomised(public_layer(D, num_heads=2)) for _ in range(2)))
    for ours, theirs in zip(module.layers, public, strict=True):
        parts = [theirs.W_Q, theirs.W_K, theirs.W_V, theirs.W_Res]
        copy(torch.cat([part.weight for part in parts]), ours.project.weight)
    assert_close(module.layers(examples()), public(examples()), "attention")
