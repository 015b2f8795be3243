"""The pyramid against plain double-precision loops over one history at a time; rotary positions."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from gemkit_kernels.jagged_pool import jagged_pool
from torch import Tensor, nn

from gemkit.data.collate import plain_layout
from gemkit.errors import GemkitError
from gemkit.interfaces import Events
from gemkit.nn.attention import attention as rotary_attention
from gemkit.nn.attention import rotate, turns
from gemkit.nn.init import init_parameters
from gemkit.registry import load_registry
from gemkit.testing import bench
from gemkit.testing.contracts_any import nudge
from gemkit.testing.tolerances import TOLERANCES

D = bench.DIM
LENGTHS = np.array([0, 1, 9, 4, 0, 23, 8])


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def linear(module: nn.Linear, x: np.ndarray) -> np.ndarray:
    return x @ array(module.weight).T + array(module.bias)


def layer_norm(module: nn.LayerNorm, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + module.eps) * array(module.weight) + array(module.bias)


def softmax(scores: np.ndarray) -> np.ndarray:
    weights = np.exp(scores - scores.max())
    return weights / weights.sum()


def turned(x: np.ndarray, position: int) -> np.ndarray:
    """RoFormer's equation 34 for one vector."""
    out = np.zeros_like(x)
    for i in range(len(x) // 2):
        angle = position * 10000.0 ** (-2 * i / len(x))
        a, b = x[2 * i], x[2 * i + 1]
        out[2 * i] = a * math.cos(angle) - b * math.sin(angle)
        out[2 * i + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out


def normed(module: Any, name: str, rows: np.ndarray) -> list[np.ndarray]:
    """RMSNorm of one head's queries or keys, where the module has it."""
    if module.qk_norm is None:
        return list(rows)
    norm = getattr(module.qk_norm, name)
    eps = torch.finfo(torch.float32).eps if norm.eps is None else norm.eps
    return [row / math.sqrt((row**2).mean() + eps) * array(norm.weight) for row in rows]


def bias(module: Any, head: int, distance: int) -> float:
    """The learned number of a distance; those beyond the last have the last's."""
    if module.bias is None:
        return 0.0
    table = array(module.bias.weight)[head]
    middle = len(table) // 2
    return float(table[middle + max(-middle, min(distance, middle))])


def attention(module: Any, x: np.ndarray) -> np.ndarray:
    """Plain multi-head self-attention over the rows of x."""
    q, k, v = np.split(linear(module.qkv, x), 3, axis=1)
    width = D // module.num_heads
    mixed = np.zeros_like(x)
    for h in range(module.num_heads):
        part = slice(h * width, (h + 1) * width)
        queries, keys = (normed(module, name, rows[:, part]) for name, rows in (("query", q), ("key", k)))
        if module.bias is None:
            queries, keys = ([turned(row, i) for i, row in enumerate(rows)] for rows in (queries, keys))
        for i, row in enumerate(queries):
            scores = np.array([row @ key / math.sqrt(width) + bias(module, h, i - j) for j, key in enumerate(keys)])
            mixed[i, part] = softmax(scores) @ v[:, part]
    return linear(module.out, mixed)


def cut(length: int, size: int, align: str) -> list[slice]:
    """Chunks of one history: full ones from the newest event backwards, or from the oldest forwards."""
    starts = (
        range(length % size - size if length % size else 0, length, size)
        if align == "newest"
        else range(0, length, size)
    )
    return [slice(max(s, 0), min(s + size, length)) for s in starts]


def reference(encoder: Any, values: np.ndarray, ages: np.ndarray, cls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """One history, by recursion over the levels."""
    config = encoder.config
    if encoder.ages is not None:
        table = array(encoder.ages.weight)
        scale = len(table) / math.log(10 * 365 * 86400)
        buckets = [min(int(math.log(max(age, 1.0)) * scale), len(table) - 1) for age in ages]
        values = values + table[buckets].reshape(-1, D)
    sweep = [(level, size) for level, size in zip(encoder.levels, config.chunk_sizes, strict=True)]

    def up_and_down(rows: np.ndarray, rest: list[Any]) -> tuple[np.ndarray, np.ndarray]:
        if not rest:
            tokens = np.concatenate([rows, cls] if config.align == "newest" else [cls, rows])
            if len(tokens):
                tokens = tokens + attention(encoder.top.attention, layer_norm(encoder.top.norm, tokens))
            if config.align == "newest":
                return tokens[: len(rows)], tokens[len(rows) :]
            return tokens[len(cls) :], tokens[: len(cls)]
        level, size = rest[0]
        chunks, summaries = [], []
        for part in cut(len(rows), size, config.align):
            chunk = rows[part]
            chunk = chunk + sum(attention(a, layer_norm(level.norm, chunk)) for a in level.attention)
            if level.ffn is not None:
                hidden = np.maximum(linear(level.ffn[0], layer_norm(level.ffn_norm, chunk)), 0.0)
                chunk = chunk + linear(level.ffn[2], hidden)
            for query in array(level.summarise.queries):
                summaries.append(softmax(chunk @ query / math.sqrt(D)) @ chunk)
            chunks.append(chunk)
        above, new_cls = up_and_down(np.array(summaries).reshape(-1, D), rest[1:])
        out = []
        for i, chunk in enumerate(chunks):
            context = above[i * config.num_summaries : (i + 1) * config.num_summaries].mean(0)
            gate = 1 / (1 + np.exp(-linear(level.gate, context)))
            out.append(chunk + gate * linear(level.down, context))
        return np.concatenate([*out, np.zeros((0, D))]), new_cls

    return up_and_down(values, sweep)


def build(layer: int = 0, **options: Any) -> Any:
    spec = load_registry().get("sequence", "pyramid")
    module = spec.cls(spec.config(**options), bench.context(layer))
    init_parameters(module, 1)
    nudge(module)
    return module.eval()


def make_events(encoder: Any, lengths: np.ndarray, num_cls: int = 3) -> Events:
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
    total, histories = int(offsets[-1]), len(lengths)
    return Events(
        values=bench.noise("pyramid", 200, D)[:total],
        offsets=offsets,
        ages=torch.from_numpy(np.geomspace(0.5, 1e9, 200)[:total].astype(np.float32)),
        stream=torch.zeros(total, dtype=torch.int64),
        cls=bench.noise("pyramid/cls", histories, num_cls, D),
        owner=torch.zeros(histories, 0, D),
        history_index=torch.arange(histories),
        layout=plain_layout(lengths)._replace(plan=encoder.plan(lengths)),
    )


@pytest.mark.parametrize(
    "options",
    [
        {"chunk_sizes": (4,)},
        {"chunk_sizes": (4, 2)},
        {"chunk_sizes": (3, 5), "align": "oldest", "num_summaries": 1},
        {"chunk_sizes": (64,), "ffn_ratio": 0, "age_buckets": 0, "num_heads": 4},
        {"chunk_sizes": (5,), "num_parallel": 2, "num_summaries": 3, "ffn_ratio": 2.0},
        {"chunk_sizes": (4, 2), "qk_norm": True},
        {"chunk_sizes": (7,), "position": "bias", "qk_norm": True, "num_heads": 4},
    ],
    ids=str,
)
@pytest.mark.parametrize("num_cls", [0, 3])
def test_encoder_equals_plain_loops(options: dict[str, Any], num_cls: int) -> None:
    encoder = build(**options)
    events = make_events(encoder, LENGTHS, num_cls)
    out = encoder(events, torch.empty(0))
    rtol, atol = TOLERANCES[torch.float32]
    for u, (a, b) in enumerate(zip(events.offsets[:-1].tolist(), events.offsets[1:].tolist(), strict=True)):
        values, cls = reference(encoder, array(events.values[a:b]), array(events.ages[a:b]), array(events.cls[u]))
        np.testing.assert_allclose(array(out.values[a:b]), values, rtol, atol, err_msg=f"history {u}")
        np.testing.assert_allclose(array(out.cls[u]), cls, rtol, atol, err_msg=f"CLS of history {u}")


@pytest.mark.parametrize("qk_norm", [False, True])
def test_the_ways_of_gpus_give_the_same(qk_norm: bool) -> None:
    """Summaries by `jagged_pool`, the top by `jagged_attention`: here through their PyTorch paths."""
    encoder = build(chunk_sizes=(4,), qk_norm=qk_norm)
    plan, values = encoder.plan(LENGTHS), bench.noise("rows", 45, D)
    level, cls = encoder.levels[0], bench.noise("pyramid/cls", len(LENGTHS), 3, D)
    summaries = level.summarise(values, plan.levels[0])
    pooled = jagged_pool(level.summarise.queries, values, None, plan.levels[0].starts, num_heads=1)
    torch.testing.assert_close(pooled, summaries)
    found, expected = (way(summaries.flatten(0, 1), cls, plan.top) for way in (encoder.top.jagged, encoder.top))
    torch.testing.assert_close(found, expected)


def test_every_event_sees_the_whole_journey() -> None:
    encoder = build(chunk_sizes=(4, 2))
    events = make_events(encoder, np.array([23]))
    values = events.values.clone().requires_grad_()
    out = encoder(events._replace(values=values), torch.empty(0)).values
    for event in (0, 11, 22):
        (gradient,) = torch.autograd.grad(out[event].sum(), values, retain_graph=True)
        assert (gradient.abs().sum(1) > 0).all()


def test_alignment_keeps_one_end_full() -> None:
    assert cut(9, 4, "newest") == [slice(0, 1), slice(1, 5), slice(5, 9)]
    for align, first in (("newest", [1, 4, 4]), ("oldest", [4, 4, 1])):
        plan = build(chunk_sizes=(4,), align=align).plan(np.array([9]))
        assert plan.levels[0].slots.valid.sum(1).tolist() == first


def test_only_the_first_layer_adds_ages() -> None:
    assert build(0).ages is not None and build(1).ages is None


def test_rotation_is_relative() -> None:
    """Scores of rotated queries and keys depend on the distance alone, whatever comes before."""
    turn = turns(20, 4, torch.device("cpu"))
    q, k = bench.noise("q", 8).expand(1, 20, 1, 8), bench.noise("k", 8).expand(1, 20, 1, 8)
    turned_q, turned_k = rotate(q, turn)[0, :, 0], rotate(k, turn)[0, :, 0]
    scores = turned_q @ turned_k.T
    for distance in range(-10, 11):
        diagonal = scores.diagonal(distance)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal), rtol=1e-4, atol=1e-5)
    assert (scores[0, :10].diff().abs() > 1e-4).all()
    torch.testing.assert_close(turned_q.norm(dim=-1), q[0, :, 0].norm(dim=-1))
    expected = np.array([turned(array(q[0, i, 0]), i) for i in range(20)])
    np.testing.assert_allclose(array(turned_q), expected, rtol=1e-4, atol=1e-5)


def test_the_gradient_of_attention_is_that_of_finite_differences() -> None:
    qkv = bench.noise("qkv", 3, 4, 3 * 8).double().requires_grad_()
    valid = torch.arange(4) < torch.tensor([4, 1, 3])[:, None]
    torch.autograd.gradcheck(lambda x: rotary_attention(x, valid, 2), (qkv,), atol=1e-6)


def test_heads_that_do_not_fit_are_refused() -> None:
    with pytest.raises(GemkitError, match="num_heads = 3") as caught:
        build(num_heads=3)
    assert caught.value.allowed == "1, 2, 4, 8"
