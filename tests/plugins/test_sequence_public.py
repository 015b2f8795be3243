"""DIN and HSTU weight for weight against public implementations; skipped where those are not installed."""

from __future__ import annotations

import importlib
import importlib.util
import math
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from gemkit.data.collate import plain_layout
from gemkit.interfaces import Events
from gemkit.nn.ages import LONGEST_S
from gemkit.nn.init import init_parameters
from gemkit.registry import load_registry
from gemkit.testing import bench
from gemkit.testing.contracts_any import nudge

D, L = bench.DIM, 12
LENGTHS = np.array([12, 3, 7, 1])


def build(name: str, **options: Any) -> Any:
    spec = load_registry().get("sequence", name)
    module = spec.cls(spec.config(**options), bench.context(layer=1))
    init_parameters(module, 1)
    nudge(module)
    return module.double().eval()


def make_events(encoder: Any, lengths: np.ndarray = LENGTHS) -> Events:
    total = int(lengths.sum())
    return Events(
        values=bench.noise("public", 60, D)[:total].double(),
        offsets=torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)])),
        ages=torch.linspace(5e7, 30.0, 60)[:total],
        stream=torch.zeros(total, dtype=torch.int64),
        cls=torch.zeros(len(lengths), 0, D).double(),
        owner=torch.zeros(len(lengths), 0, D),
        history_index=torch.arange(len(lengths)),
        layout=plain_layout(lengths)._replace(plan=encoder.plan(lengths)),
    )


def padded(rows: Tensor, lengths: np.ndarray) -> tuple[Tensor, Tensor]:
    """Zeros after each history, and which slots are none. Shape: (T, ...) -> (U, L, ...), (U, L)."""
    parts = rows.split(lengths.tolist())
    return nn.utils.rnn.pad_sequence(parts, batch_first=True), torch.arange(L) < torch.from_numpy(lengths)[:, None]


def copy(target: Any, source: Any) -> None:
    with torch.no_grad():
        target.weight.copy_(source.weight)
        target.bias.copy_(torch.zeros_like(target.bias) if source.bias is None else source.bias)


def assert_same(actual: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=1e-9, atol=1e-10)


def bare(monkeypatch: pytest.MonkeyPatch, *packages: str) -> None:
    """Packages of which single files can be imported, without what their other files want to be installed."""
    spec = importlib.util.find_spec(packages[0])
    if spec is None or spec.origin is None:
        pytest.skip(f"{packages[0]} is not installed")
    for name in packages:
        package = ModuleType(name)
        package.__path__ = [str(Path(spec.origin).parent.joinpath(*name.split(".")[1:]))]
        monkeypatch.setitem(sys.modules, name, package)


# --- DIN ----------------------------------------------------------------------------------------------------


def target_of(encoder: Any, query: Tensor) -> Tensor:
    return encoder.target(query.flatten(1))


def linears(module: Any) -> list[nn.Linear]:
    return [m for m in module if isinstance(m, nn.Linear)]


@pytest.fixture
def fuxictr(monkeypatch: pytest.MonkeyPatch) -> Any:
    """The class DIN_Attention of FuxiCTR."""
    layers = "fuxictr.pytorch.layers"
    bare(monkeypatch, "fuxictr", "fuxictr.pytorch", layers, f"{layers}.attentions", f"{layers}.blocks")
    return importlib.import_module(f"{layers}.attentions.target_attention").DIN_Attention


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize(("activation", "theirs"), [("relu", "ReLU"), ("sigmoid", "Sigmoid"), ("dice", "Dice")])
def test_din_is_fuxictrs(fuxictr: Any, activation: str, theirs: str, softmax: bool) -> None:
    encoder = build("din", hidden=(9, 5), activation=activation, softmax=softmax)
    public = fuxictr(D, [9, 5], hidden_activations=theirs, use_softmax=softmax).double().eval()
    for a, b in zip(linears(public.attention_layer.mlp), linears(encoder.unit.mlp), strict=True):
        copy(a, b)
    if activation == "dice":
        for a, b in zip(public.attention_layer.mlp, encoder.unit.mlp, strict=True):
            if hasattr(a, "bn"):
                b.norm.running_mean.uniform_(-1, 1)
                b.norm.running_var.uniform_(0.5, 2)
                a.bn.load_state_dict(b.norm.state_dict())
                a.bn.eps = b.norm.eps
                a.alpha = b.alpha
    events, query = make_events(encoder), bench.noise("query", len(LENGTHS), 2, D).double()
    history, mask = padded(events.values, LENGTHS)
    assert_same(encoder(events, query).values, public(target_of(encoder, query), history, mask))


def test_dice_in_training_is_fuxictrs(fuxictr: Any) -> None:
    """Without padding, which theirs counts among the events whose statistics it takes."""
    lengths = np.array([L, L, L])
    encoder = build("din", hidden=(9,), activation="dice").train()
    public = fuxictr(D, [9], hidden_activations="Dice").double().train()
    for a, b in zip(linears(public.attention_layer.mlp), linears(encoder.unit.mlp), strict=True):
        copy(a, b)
    public.attention_layer.mlp[1].alpha = encoder.unit.mlp[1].alpha
    public.attention_layer.mlp[1].bn.eps = encoder.unit.mlp[1].norm.eps
    events, query = make_events(encoder, lengths), bench.noise("query", 3, 2, D).double()
    history, _ = padded(events.values, lengths)
    assert_same(encoder(events, query).values, public(target_of(encoder, query), history))


@pytest.fixture
def rechub(monkeypatch: pytest.MonkeyPatch) -> Any:
    """torch-rechub's files."""
    bare(monkeypatch, "torch_rechub", "torch_rechub.utils", "torch_rechub.models", "torch_rechub.models.ranking")
    data: Any = ModuleType("torch_rechub.utils.data")
    data.get_auto_embedding_dim = None
    monkeypatch.setitem(sys.modules, data.__name__, data)
    return lambda file: importlib.import_module(f"torch_rechub.{file}")


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("activation", ["relu", "sigmoid", "prelu"])
def test_din_is_rechubs(rechub: Any, activation: str, softmax: bool) -> None:
    """One history at a time, for theirs has no mask; and with its batch norms, which the paper has not, at rest.

    Its Dice is not compared: it takes mean and variance over the neurons of an event, not over the batch.
    """
    encoder = build("din", hidden=(9, 5), activation=activation, softmax=softmax)
    public = rechub("models.ranking.din").ActivationUnit(D, [9, 5], activation, softmax).double().eval()
    for a, b in zip(linears(public.attention.mlp), linears(encoder.unit.mlp), strict=True):
        copy(a, b)
    for module in public.modules():
        if isinstance(module, nn.BatchNorm1d):
            module.eps = 0.0
    with torch.no_grad():
        for module in encoder.modules():
            if isinstance(module, nn.PReLU):
                module.weight.fill_(0.25)  # theirs has one slope for all neurons, which begins at that
    events, query = make_events(encoder), bench.noise("query", len(LENGTHS), 2, D).double()
    out, target = encoder(events, query).values, target_of(encoder, query)
    for u, history in enumerate(events.values.split(LENGTHS.tolist())):
        assert_same(out[u], public(history.unsqueeze(0), target[u : u + 1])[0])


# --- HSTU ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("with_time", [True, False])
@pytest.mark.parametrize(("num_heads", "expansion"), [(2, 1.0), (4, 0.5)])
def test_hstu_is_rechubs(rechub: Any, num_heads: int, expansion: float, with_time: bool) -> None:
    """With our options set to what theirs fixes: scores scaled by the head's width, n the padded length, causal.

    Theirs has a bias for each head, ours one for all, as in the authors' code; its distances are key minus query.
    """
    buckets = 40
    encoder = build(
        "hstu",
        num_heads=num_heads,
        expansion=expansion,
        scale="sqrt",
        length=L,
        num_positions=L,
        time_buckets=buckets if with_time else 0,
    )
    inner = round(expansion * D)
    public = rechub("basic.layers").HSTULayer(
        d_model=D,
        n_heads=num_heads,
        dqk=inner // num_heads,
        dv=inner // num_heads,
        dropout=0.0,
        max_seq_len=L,
        num_time_buckets=buckets - 1,
        time_bucket_fn="log",
        time_bucket_divisor=math.log(LONGEST_S) / buckets,
        time_bucket_unit="seconds",
    )
    public = public.double().eval()
    copy(public.norm_in, encoder.norm)
    copy(public.norm_attn, encoder.mixed_norm)
    copy(public.proj2, encoder.out)
    with torch.no_grad():
        for name in ("weight", "bias"):  # theirs is in the order Q, K, U, V
            u, v, q, k = getattr(encoder.uvqk, name).chunk(4)
            getattr(public.proj1, name).copy_(torch.cat([q, k, u, v]))
        public.rab.pos_w.copy_(encoder.bias.position.flip(0).unsqueeze(1).expand(-1, num_heads))
        if with_time:
            public.rab.ts_w.copy_(encoder.bias.time.unsqueeze(1).expand(-1, num_heads))
    events = make_events(encoder)
    x, mask = padded(events.values, LENGTHS)
    ages, _ = padded(events.ages, LENGTHS)
    layer = public(x, padding_mask=mask, time_diffs=ages if with_time else None)
    assert_same(encoder(events, torch.empty(0)).values, (x + layer)[mask])
