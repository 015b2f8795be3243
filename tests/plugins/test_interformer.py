"""InterFormer against its equations, event by event, and who may depend on whom in each flow."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gemkit_interformer.interformer import pool_jagged
from gemkit_interformer.pffn import gdpa_in_chunks
from gemkit_kernels.gdpa import gdpa
from torch import Tensor

from gemkit.config.compose import compose
from gemkit.errors import GemkitError
from gemkit.model import GEM
from gemkit.nn.init import init_parameters
from gemkit.registry import load_registry
from gemkit.testing import bench
from gemkit.testing.contracts_any import nudge

D = bench.DIM


def build(layer: int = 0, **options: Any) -> Any:
    spec = load_registry().get("cross", "interformer")
    config = spec.config(**options)
    module = spec.cls(config, bench.context(layer, num_cls=bench.num_cls(spec, config, layer)))
    init_parameters(module, 1)
    nudge(module)
    return module.double().eval()


def make_inputs(module: Any) -> tuple[Tensor, Any]:
    inputs = bench.make_inputs(module, bench.some_rows())
    events = inputs.events
    events = events._replace(values=events.values.double(), cls=events.cls.double(), owner=events.owner.double())
    return inputs.x.double(), events


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def linear(module: Any, x: np.ndarray) -> np.ndarray:
    return x @ array(module.weight).T + array(module.bias)


def layer_norm(module: Any, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + module.eps) * array(module.weight) + array(module.bias)


def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gated(gate: Any, x: np.ndarray, form: str) -> np.ndarray:
    made = linear(gate.mlp[0], x)
    return sigmoid(x * made) if form == "printed" else sigmoid(made) * x


def gelu(x: float) -> float:
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def pooled(pma: Any, events: np.ndarray) -> np.ndarray:
    """PMA of one history."""
    out = []
    for query in array(pma.queries):
        if len(events) == 0:
            out.append(np.zeros(D))
            continue
        scores = np.array([event @ query / math.sqrt(D) for event in events])
        weights = np.exp(scores - scores.max())
        out.append(linear(pma.value, weights @ events / weights.sum()))
    return np.array(out)


def personal(pffn: Any, summary: np.ndarray, event: np.ndarray) -> np.ndarray:
    """PFFN of one event."""
    if hasattr(pffn, "make"):
        made = summary.reshape(-1)
        for part in pffn.make:
            made = linear(part, made) if hasattr(part, "weight") else np.maximum(made, 0.0)
        return event @ made.reshape(D, D) / math.sqrt(D)
    query, heads = linear(pffn.query, event), np.zeros(D)
    width = D // pffn.num_heads
    for h in range(pffn.num_heads):
        part = slice(h * width, (h + 1) * width)
        for row in summary:
            score = query[part] @ linear(pffn.key, row)[part] / len(summary)
            heads[part] += gelu(score) * linear(pffn.value, row)[part]
    return linear(pffn.out, heads)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"personalise_from": "all", "gating": "gate"},
        {"pffn": "mlp", "num_recent": 0},
        {"pffn": "gdpa", "personalise_from": "all", "num_cls": 3},
        {"pffn": "gdpa", "gdpa_heads": 4, "pffn_residual": False},
    ],
    ids=str,
)
def test_layer_equals_its_equations(options: dict[str, Any]) -> None:
    module = build(**options)
    config = module.config
    x, events = make_inputs(module)
    out_x, out_events = module(x, events)
    history_index = events.history_index.tolist()
    offsets = events.offsets.tolist()
    compress = module.token_summary.compress[0]
    for example, u in enumerate(history_index):
        source = array(x[example] if config.personalise_from == "all" else events.owner[u])
        summary = gated(module.token_summary.gate, linear(compress, source.T).T, config.gating)  # X_sum
        history = array(events.values[offsets[u] : offsets[u + 1]])
        recent = np.zeros((config.num_recent, D))
        for i in range(min(config.num_recent, len(history))):
            recent[i] = history[-1 - i]
        parts = np.concatenate([summary, pooled(module.pma, history), recent])
        expected = gated(module.summary_gate, layer_norm(module.summary_norm, parts), config.gating)  # S_sum
        np.testing.assert_allclose(array(out_x[example]), np.concatenate([array(x[example]), expected]), 1e-9, 1e-10)
        np.testing.assert_allclose(array(out_events.cls[u]), summary, 1e-9, 1e-10)
        for t in {offsets[u], (offsets[u] + offsets[u + 1]) // 2, offsets[u + 1] - 1}:
            if len(history) == 0:
                continue
            event = array(events.values[t])
            made = personal(module.pffn, summary, layer_norm(module.event_norm, event))
            np.testing.assert_allclose(array(out_events.values[t]), made + event * config.pffn_residual, 1e-9, 1e-10)


def test_sole_adds_the_mean_as_one_token() -> None:
    module = build(flow="sole")
    x, events = make_inputs(module)
    out, rest = module(x, events)
    assert rest is None
    offsets = events.offsets.tolist()
    for example, u in enumerate(events.history_index.tolist()):
        history = array(events.values[offsets[u] : offsets[u + 1]])
        expected = history.mean(0) if len(history) else np.zeros(D)
        np.testing.assert_allclose(array(out[example, -1]), expected, 1e-9, 1e-10)
    assert torch.equal(out[:, :-1], x)


def test_cls_tokens_are_added_once() -> None:
    spec = load_registry().get("cross", "interformer")
    added = [spec.cls(spec.config(), bench.context(1, num_cls=n)).num_cls_added for n in (0, 4)]
    assert added == [4, 0]


def dependencies(flow: str, personalise_from: str = "user") -> tuple[GEM, bool, bool, bool]:
    """A two-block model, and whether its tokens depend on events, its events on the user and on the item."""
    overrides = ["data=table", f"size.dim={D}", f"cross.flow={flow}", f"cross.personalise_from={personalise_from}"]
    model = GEM(compose(overrides, load_registry()), bench.dataset().schema, load_registry())
    init_parameters(model, 1)
    nudge(model)
    batch = bench.make_batch(model.shares_histories, model.layout)
    embedded = {key: value.requires_grad_() for key, value in bench.embed(batch).items()}
    seen: list[Any] = []
    model.readout.register_forward_pre_hook(lambda _, args: seen.append(args))
    outputs = model(batch, embedded, ("block0.x", "block1.x"))
    x, events = seen[0]

    def depends(tensor: Tensor, key: str) -> bool:
        (gradient,) = torch.autograd.grad(tensor.square().sum(), embedded[key], retain_graph=True, allow_unused=True)
        return gradient is not None and bool(gradient.any())

    tokens = [depends(outputs.taps[name], "events.item_id") for name in ("block0.x", "block1.x")]
    assert tokens[0] == tokens[1] == depends(x, "events.item_id")
    assert depends(outputs.logits, "events.item_id"), "the readout always looks at both sides"
    if events is None:
        return model, tokens[0], False, False
    return model, tokens[0], depends(events.values, "user_id"), depends(events.values, "item_id")


@pytest.mark.parametrize(
    ("flow", "tokens_see_events", "events_see_user"),
    [("sole", True, False), ("sep", False, False), ("n2s", False, True), ("s2n", True, False), ("int", True, True)],
)
def test_who_depends_on_whom(flow: str, tokens_see_events: bool, events_see_user: bool) -> None:
    model, *found = dependencies(flow)
    assert found == [tokens_see_events, events_see_user, False]
    encoders = [block.sequence is not None for block in model.blocks]
    assert encoders == [flow != "sole"] * 2
    assert model.shares_histories


def test_personalising_from_all_tokens_lets_events_see_the_item() -> None:
    model, *found = dependencies("int", "all")
    assert found == [True, True, True]
    assert not model.shares_histories


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(GemkitError, match="gdpa_heads = 3"):
        build(pffn="gdpa", gdpa_heads=3)


def same_with_gradients(found: Tensor, expected: Tensor, inputs: list[Tensor]) -> None:
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-10)
    weights = torch.randn_like(expected)
    for pair in zip(*(torch.autograd.grad((out * weights).sum(), inputs) for out in (found, expected)), strict=True):
        torch.testing.assert_close(*pair, rtol=1e-9, atol=1e-10)
        assert pair[0].any()


def test_gpus_and_cpus_compute_the_same_gdpa() -> None:
    """GPUs take `gdpa`, CPUs chunks made by the host."""
    _, events = make_inputs(build())
    total, count = events.values.shape[0], events.offsets.shape[0] - 1
    sizes = ((total, D), (count, 3, D), (count, 3, D))
    tensors = [torch.randn(*size, dtype=torch.float64, requires_grad=True) for size in sizes]
    found = gdpa(*tensors, events.offsets, 2, scale=1 / 3)
    same_with_gradients(found, gdpa_in_chunks(*tensors, events.layout.chunks, 2), tensors)


def test_gpus_and_cpus_pool_the_same() -> None:
    module = build()
    _, events = make_inputs(module)
    assert (events.offsets.diff() == 0).any(), "an empty history is among them"
    values = events.values.detach().requires_grad_()
    found, expected = (
        pool_jagged(module.pma, values, events.offsets),
        module.pma(values, events.offsets, events.layout.chunks),
    )
    same_with_gradients(found, expected, [values, *module.pma.parameters()])
