"""The sequence alternatives against their equations: one history, event and head at a time, in double precision."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from gemkit_baselines.sequence.buckets import RATIO, SHORTEST, bucket_plan, from_buckets, to_buckets, valid_slots
from gemkit_kernels.jagged_attention import jagged_attention
from torch import Tensor

from gemkit.data.collate import plain_layout
from gemkit.errors import GemkitError
from gemkit.interfaces import Events
from gemkit.nn.ages import LONGEST_S, age_bucket
from gemkit.nn.init import init_parameters
from gemkit.nn.jagged import row_index
from gemkit.registry import load_registry
from gemkit.testing import bench
from gemkit.testing.contracts_any import nudge

D = bench.DIM
LENGTHS = np.array([0, 1, 9, 4, 0, 23, 8, 40])
ATTENTION = ("transformer", "sliding_window", "blocks")


def build(name: str, layer: int = 0, **options: Any) -> Any:
    spec = load_registry().get("sequence", name)
    module = spec.cls(spec.config(**options), bench.context(layer))
    init_parameters(module, 1)
    nudge(module)
    return module.double().eval()


def make_events(encoder: Any, lengths: np.ndarray = LENGTHS, num_cls: int = 3) -> Events:
    offsets = torch.from_numpy(np.concatenate([[0], np.cumsum(lengths)]))
    total, histories = int(offsets[-1]), len(lengths)
    return Events(
        values=bench.noise("sequence", 900, D)[:total].double(),
        offsets=offsets,
        ages=torch.from_numpy(np.geomspace(1e9, 0.5, 900)[:total].astype(np.float32)),
        stream=torch.zeros(total, dtype=torch.int64),
        cls=bench.noise("sequence/cls", histories, num_cls, D).double(),
        owner=torch.zeros(histories, 0, D),
        history_index=torch.arange(histories),
        layout=plain_layout(lengths)._replace(plan=encoder.plan(lengths)),
    )


def histories(events: Events) -> list[slice]:
    bounds = events.offsets.tolist()
    return [slice(a, b) for a, b in itertools.pairwise(bounds)]


def assert_same(actual: Tensor, expected: Any, what: str, rtol: float = 1e-9, atol: float = 1e-10) -> None:
    np.testing.assert_allclose(array(actual), expected, rtol, atol, err_msg=what)


# --- plain mathematics --------------------------------------------------------------------------------------


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def linear(module: Any, x: np.ndarray) -> np.ndarray:
    return x @ array(module.weight).T + (0.0 if module.bias is None else array(module.bias))


def layer_norm(module: Any, x: np.ndarray) -> np.ndarray:
    centred = x - x.mean(-1, keepdims=True)
    return centred / np.sqrt(x.var(-1, keepdims=True) + module.eps) * array(module.weight) + array(module.bias)


def rms_norm(module: Any, x: np.ndarray) -> np.ndarray:
    return x / np.sqrt((x * x).mean(-1, keepdims=True) + 1e-6) * array(module.weight)


def softmax(scores: list[float]) -> np.ndarray:
    weights = np.array([math.exp(s - max(scores)) for s in scores])
    return weights / weights.sum()


def silu(x: Any) -> Any:
    return x / (1 + np.exp(-x))


def turned(x: np.ndarray, position: int) -> np.ndarray:
    """RoFormer's equation 34 for one vector."""
    out = np.zeros_like(x)
    for i in range(len(x) // 2):
        angle = position * 10000.0 ** (-2 * i / len(x))
        a, b = x[2 * i], x[2 * i + 1]
        out[2 * i] = a * math.cos(angle) - b * math.sin(angle)
        out[2 * i + 1] = a * math.sin(angle) + b * math.cos(angle)
    return out


def bucket_of(seconds: float, buckets: int) -> int:
    return min(int(math.log(max(seconds, 1.0)) / math.log(LONGEST_S) * buckets), buckets - 1)


# --- softmax attention --------------------------------------------------------------------------------------

Sees = Callable[[int, int, int], bool]
"""(query, key, number of events) -> whether the token sees the other; tokens are events, then CLS tokens."""


def attention_layer(
    encoder: Any, values: np.ndarray, ages: np.ndarray, cls: np.ndarray, sees: Sees, cls_has_position: bool
) -> tuple[np.ndarray, np.ndarray]:
    """A pre-norm layer on one history."""
    if encoder.ages is not None:
        table = array(encoder.ages.weight)
        values = values + np.array([table[bucket_of(age, len(table))] for age in ages]).reshape(-1, D)
    tokens, count = np.concatenate([values, cls]), len(values)
    q, k, v = np.split(linear(encoder.qkv, layer_norm(encoder.norm, tokens)), 3, axis=1)
    width, mixed = D // encoder.num_heads, np.zeros_like(tokens)
    for head in range(encoder.num_heads):
        part = slice(head * width, (head + 1) * width)
        queries, keys = q[:, part], k[:, part]
        if encoder.qk_norm is not None:
            queries, keys = rms_norm(encoder.qk_norm.query, queries), rms_norm(encoder.qk_norm.key, keys)
        for i in range(len(tokens)):
            seen = [j for j in range(len(tokens)) if sees(i, j, count)]
            rotary = [cls_has_position or max(i, j) < count for j in seen]
            scores = [
                (turned(queries[i], i) @ turned(keys[j], j) if r else queries[i] @ keys[j]) / math.sqrt(width)
                for j, r in zip(seen, rotary, strict=True)
            ]
            mixed[i, part] = softmax(scores) @ v[seen, part]
    tokens = tokens + linear(encoder.out, mixed)
    if encoder.ffn is not None:
        hidden = np.maximum(linear(encoder.ffn[0], layer_norm(encoder.ffn_norm, tokens)), 0.0)
        tokens = tokens + linear(encoder.ffn[2], hidden)
    return tokens[:count], tokens[count:]


def check_attention(encoder: Any, num_cls: int, sees: Sees, cls_has_position: bool) -> None:
    events = make_events(encoder, num_cls=num_cls)
    out = encoder(events, torch.empty(0))
    for u, part in enumerate(histories(events)):
        values, ages, cls = array(events.values[part]), array(events.ages[part]), array(events.cls[u])
        expected = attention_layer(encoder, values, ages, cls, sees, cls_has_position)
        # The angles of rotary positions are in single precision.
        assert_same(out.values[part], expected[0], f"history {u}", 1e-6, 1e-7)
        assert_same(out.cls[u], expected[1], f"CLS of history {u}", 1e-6, 1e-7)


@pytest.mark.parametrize("num_cls", [0, 3])
@pytest.mark.parametrize(
    "options", [{}, {"causal": True, "num_heads": 4}, {"qk_norm": True, "ffn_ratio": 0, "age_buckets": 0}], ids=str
)
def test_transformer_equals_plain_loops(options: dict[str, Any], num_cls: int) -> None:
    causal = options.get("causal", False)
    check_attention(
        build("transformer", **options),
        num_cls,
        lambda i, j, count: not causal or j <= i or j >= count,
        cls_has_position=True,
    )


@pytest.mark.parametrize("num_cls", [0, 3])
@pytest.mark.parametrize(
    "options",
    [
        {"window": 16},
        {"window": 5, "both_sides": True},
        {"window": 1},
        {"window": 7, "num_heads": 4, "qk_norm": True, "ffn_ratio": 0.5},
        {"window": 64, "both_sides": True, "age_buckets": 0},
    ],
    ids=str,
)
def test_sliding_window_equals_plain_loops(options: dict[str, Any], num_cls: int) -> None:
    window, both = options["window"], options.get("both_sides", False)

    def sees(i: int, j: int, count: int) -> bool:
        return i >= count or (j < count and (j <= i or both) and abs(i - j) < window)

    check_attention(build("sliding_window", **options), num_cls, sees, cls_has_position=False)


@pytest.mark.parametrize("num_cls", [0, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"block_size": 5},
        {"block_size": 8, "align": "oldest", "num_heads": 4},
        {"block_size": 3, "qk_norm": False, "ffn_ratio": 0, "age_buckets": 0},
    ],
    ids=str,
)
def test_blocks_equal_plain_loops(options: dict[str, Any], num_cls: int) -> None:
    encoder = build("blocks", **options)
    size, align = encoder.block_size, encoder.align

    def sees(i: int, j: int, count: int) -> bool:
        shift = -count % size if align == "newest" else 0
        return i >= count or (j < count and (i + shift) // size == (j + shift) // size)

    check_attention(encoder, num_cls, sees, cls_has_position=False)


@pytest.mark.parametrize("num_cls", [0, 3])
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("transformer", {}),
        ("transformer", {"causal": True, "qk_norm": True}),
        ("sliding_window", {"window": 5}),
        ("sliding_window", {"window": 7, "both_sides": True}),
        ("sliding_window", {"window": 64, "num_heads": 4}),
    ],
    ids=str,
)
def test_jagged_rows_or_not(name: str, options: dict[str, Any], num_cls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """What the kernels are asked for is what the encoder computes without them: outputs and gradients."""
    encoder = build(name, **options)
    events = make_events(encoder, num_cls=num_cls)
    events.values.requires_grad_()
    weights = bench.noise("weights", len(events.values), D).double()
    results, asked = [], []

    def recorded(*arguments: Any, **rest: Any) -> Tensor:
        asked.append(rest)
        return jagged_attention(*arguments, **rest)

    monkeypatch.setattr(f"gemkit_baselines.sequence.{name}.jagged_attention", recorded)
    for kernels in (False, True):
        monkeypatch.setattr(f"gemkit_baselines.sequence.{name}.has_kernels", lambda *_, kernels=kernels: kernels)
        out = encoder(events, torch.empty(0))
        loss = (out.values * weights).sum() + out.cls.square().sum()
        results.append([out.values, out.cls, *torch.autograd.grad(loss, [events.values, *encoder.parameters()])])
        assert len(asked) == kernels
    for plain, jagged in zip(*results, strict=True):
        # The angles of rotary positions are in single precision without the kernels.
        torch.testing.assert_close(jagged, plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("align", ["newest", "oldest"])
def test_blocks_without_padding(align: str) -> None:
    encoder = build("blocks", block_size=5, align=align)
    events = make_events(encoder)
    qkv, cls = (
        bench.noise("qkv", len(events.values), 3 * D).double(),
        bench.noise("cls", len(events.cls), 3, 3 * D).double(),
    )
    torch.testing.assert_close(
        encoder.attend_jagged(qkv, events), encoder.attend(qkv, cls, events)[0], rtol=1e-5, atol=1e-6
    )


@pytest.mark.parametrize("name", [*ATTENTION, "hstu"])
def test_only_the_first_layer_adds_ages(name: str) -> None:
    assert build(name, 0).ages is not None and build(name, 1).ages is None


@pytest.mark.parametrize("name", ATTENTION)
def test_heads_that_do_not_fit_are_refused(name: str) -> None:
    with pytest.raises(GemkitError, match="num_heads = 3") as caught:
        build(name, num_heads=3)
    assert caught.value.allowed == "1, 2, 4, 8"


@pytest.mark.parametrize(
    ("name", "options", "reached"),
    [
        ("transformer", {}, range(0, 40)),
        ("transformer", {"causal": True}, range(0, 21)),
        ("sliding_window", {"window": 6}, range(15, 21)),
        ("sliding_window", {"window": 6, "both_sides": True}, range(15, 26)),
        ("blocks", {"block_size": 16}, range(8, 24)),
        ("blocks", {"block_size": 16, "align": "oldest"}, range(16, 32)),
        ("hstu", {}, range(0, 21)),
        ("hstu", {"causal": False}, range(0, 40)),
    ],
    ids=str,
)
def test_what_reaches_an_event(name: str, options: dict[str, Any], reached: range) -> None:
    """The gradient of event 20 of 40 is nonzero at exactly the events that it may see."""
    encoder = build(name, **options)
    events = make_events(encoder, np.array([3, 40, 2]))
    values = events.values.clone().requires_grad_()
    out = encoder(events._replace(values=values), torch.empty(0))
    (gradient,) = torch.autograd.grad(out.values[3 + 20].sum(), values, retain_graph=True)
    assert torch.nonzero(gradient.abs().sum(1)).flatten().tolist() == [3 + i for i in reached]
    (gradient,) = torch.autograd.grad(out.cls[1].sum(), values)
    assert torch.nonzero(gradient.abs().sum(1)).flatten().tolist() == [3 + i for i in range(40)]


def test_a_window_does_not_wrap_around() -> None:
    """In a batch of one history the chunk before the first is not the last."""
    encoder = build("sliding_window", window=6, both_sides=True)
    events = make_events(encoder, np.array([40]))
    values = events.values.clone().requires_grad_()
    out = encoder(events._replace(values=values), torch.empty(0)).values
    for event, reached in ((0, range(0, 6)), (39, range(34, 40))):
        (gradient,) = torch.autograd.grad(out[event].sum(), values, retain_graph=True)
        assert torch.nonzero(gradient.abs().sum(1)).flatten().tolist() == list(reached)


def test_window_attention_of_three_events_by_hand() -> None:
    """With equal scores each event is the mean of those that it sees."""
    encoder = build("sliding_window", window=2, num_heads=1, ffn_ratio=0, age_buckets=0)
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        encoder.norm.weight.fill_(1.0)
        encoder.qkv.weight[2 * D :] = torch.eye(D)  # values are the normed events, queries and keys are zero
        encoder.out.weight.copy_(torch.eye(D))
    events = make_events(encoder, np.array([3]), num_cls=1)
    out = encoder(events, torch.empty(0))
    a, b, c = normed = layer_norm(encoder.norm, array(events.values))
    cls = layer_norm(encoder.norm, array(events.cls[0, 0]))
    assert_same(out.values - events.values, np.stack([a, (a + b) / 2, (b + c) / 2]), "events")
    assert_same(out.cls[0, 0] - events.cls[0, 0], (normed.sum(0) + cls) / 4, "CLS token")


# --- HSTU ---------------------------------------------------------------------------------------------------


def hstu_layer(encoder: Any, values: np.ndarray, ages: np.ndarray, cls: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The paper's three equations on one history."""
    if encoder.ages is not None:
        table = array(encoder.ages.weight)
        values = values + np.array([table[bucket_of(age, len(table))] for age in ages]).reshape(-1, D)
    tokens, count = np.concatenate([values, cls]), len(values)
    u, v, q, k = np.split(silu(linear(encoder.uvqk, layer_norm(encoder.norm, tokens))), 4, axis=1)
    width = u.shape[1] // encoder.num_heads
    mixed = np.zeros_like(u)
    for head in range(encoder.num_heads):
        part = slice(head * width, (head + 1) * width)
        for i in range(len(tokens)):
            for j in range(len(tokens)):
                if encoder.causal and i < j < count:
                    continue
                score = q[i, part] @ k[j, part] * encoder.scale
                if max(i, j) < count and encoder.bias is not None:
                    score += relative_bias(encoder.bias, i - j, abs(float(ages[i]) - float(ages[j])))
                mixed[i, part] += silu(score) * v[j, part] / (encoder.length or len(tokens))
    tokens = tokens + linear(encoder.out, layer_norm(encoder.mixed_norm, mixed) * u)
    return tokens[:count], tokens[count:]


def relative_bias(bias: Any, distance: int, seconds: float) -> float:
    total = 0.0
    if bias.position is not None:
        last = len(bias.position) // 2
        total += array(bias.position)[last + max(min(distance, last), -last)]
    if bias.time is not None:
        total += array(bias.time)[bucket_of(seconds, len(bias.time))]
    return total


@pytest.mark.parametrize("num_cls", [0, 3])
@pytest.mark.parametrize(
    "options",
    [
        {},
        {"causal": False, "num_heads": 3, "num_positions": 8, "time_buckets": 5},
        {"scale": "sqrt", "length": 50, "num_positions": 0, "expansion": 0.5},
        {"time_buckets": 0, "num_heads": 1, "age_buckets": 0, "expansion": 2.0},
        {"time_buckets": 0, "num_positions": 0},
    ],
    ids=str,
)
def test_hstu_equals_plain_loops(options: dict[str, Any], num_cls: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gemkit_baselines.sequence.hstu.TILE", 7)
    encoder = build("hstu", **options)
    events = make_events(encoder, num_cls=num_cls)
    out = encoder(events, torch.empty(0))
    for u, part in enumerate(histories(events)):
        values, ages, cls = array(events.values[part]), events.ages[part].numpy(), array(events.cls[u])
        expected = hstu_layer(encoder, values, ages, cls)
        assert_same(out.values[part], expected[0], f"history {u}")
        assert_same(out.cls[u], expected[1], f"CLS of history {u}")


def test_hstu_counts_what_softmax_would_share_out() -> None:
    """Twice the same events: a sum twice as large, before the norm; softmax would have given the same mean."""
    encoder = build("hstu", causal=False, num_positions=0, time_buckets=0, length=10, age_buckets=0)
    events = make_events(encoder, np.array([4, 8]), num_cls=0)
    once = events.values[:4]
    sums = []
    for rows in (once, torch.cat([once, once])):
        _, vqk = encoder._project(rows)
        valid = torch.ones(1, len(rows), dtype=torch.bool)
        sums.append(encoder._attend(vqk.unsqueeze(0), valid, torch.zeros(1, len(rows)))[0, :4])
    torch.testing.assert_close(sums[1], 2 * sums[0])


# --- DIN ----------------------------------------------------------------------------------------------------


def activation(module: Any, x: np.ndarray) -> np.ndarray:
    """One of the four, on the hidden vector of one event."""
    kind = type(module).__name__
    if kind == "Dice":  # in evaluation: the running statistics
        mean, variance = array(module.norm.running_mean), array(module.norm.running_var)
        p = 1 / (1 + np.exp(-(x - mean) / np.sqrt(variance + module.norm.eps)))
        return p * x + (1 - p) * array(module.alpha) * x
    if kind == "PReLU":
        return np.where(x > 0, x, array(module.weight) * x)
    return np.maximum(x, 0.0) if kind == "ReLU" else 1 / (1 + np.exp(-x))


def din_pool(encoder: Any, values: np.ndarray, query: np.ndarray) -> np.ndarray:
    """Equation 3 for one example."""
    target = linear(encoder.target, query.reshape(-1))
    scores = []
    for event in values:
        x = np.concatenate([target, event, target - event, target * event])
        for part in encoder.unit.mlp:
            x = linear(part, x) if isinstance(part, torch.nn.Linear) else activation(part, x)
        scores.append(float(x[0]))
    weights = softmax(scores) if encoder.softmax and scores else scores
    return sum((w * e for w, e in zip(weights, values, strict=True)), np.zeros(D))


@pytest.mark.parametrize("softmax", [False, True])
@pytest.mark.parametrize("activation", ["prelu", "dice", "relu", "sigmoid"])
def test_din_equals_plain_loops(activation: str, softmax: bool) -> None:
    encoder = build("din", activation=activation, softmax=softmax, hidden=(7, 5))
    events, query = make_events(encoder), bench.noise("query", len(LENGTHS), 2, D).double()
    encoder.train()
    encoder(events, query)  # gives Dice statistics that are not those of a fresh module
    out = encoder.eval()(events, query)
    assert out.offsets.tolist() == list(range(len(LENGTHS) + 1))
    assert encoder.lengths_out(LENGTHS).tolist() == [1] * len(LENGTHS)
    for u, part in enumerate(histories(events)):
        assert_same(out.values[u], din_pool(encoder, array(events.values[part]), array(query[u])), f"history {u}")
        age = array(events.ages[part]).mean() if LENGTHS[u] else 0.0
        assert_same(out.ages[u], age, f"age of history {u}", 1e-6)  # ages are in single precision


def test_dice_bends_where_the_batch_is() -> None:
    """In training E[s] and Var[s] are those of the batch, and one event, which has no variance, still passes."""
    dice = build("din", activation="dice", hidden=(3,)).unit.mlp[1].train()
    x = bench.noise("dice", 6, 3).double()
    p = 1 / (1 + np.exp(-(array(x) - array(x).mean(0)) / np.sqrt(array(x).var(0) + dice.norm.eps)))
    assert_same(dice(x), p * array(x) + (1 - p) * array(dice.alpha) * array(x), "dice")
    assert torch.isfinite(dice(x[:1])).all() and dice(x[:0]).shape == (0, 3)


def test_din_of_two_events_by_hand() -> None:
    """A unit that measures the product with the target: weights 3 and -2, and their sum is not one."""
    encoder = build("din", activation="relu", hidden=(2,))
    with torch.no_grad():
        for parameter in encoder.parameters():
            parameter.zero_()
        encoder.target.weight[:, :D] = torch.eye(D)  # the first query token alone
        first, last = encoder.unit.mlp[0], encoder.unit.mlp[2]
        first.weight[0, 3 * D], first.weight[1, 3 * D] = 1.0, -1.0  # the first number of target * event, and minus it
        last.weight[0, 0], last.weight[0, 1] = 1.0, -1.0  # relu(z) - relu(-z) = z
    events = make_events(encoder, np.array([2]))
    values = torch.zeros(2, D, dtype=torch.float64)
    values[0, 0], values[0, 5], values[1, 0] = 3.0, 1.0, -2.0
    query = torch.zeros(1, 2, D, dtype=torch.float64)
    query[0, 0, 0] = 1.0
    out = encoder(events._replace(values=values), query).values[0]
    expected = np.zeros(D)
    expected[0], expected[5] = 3 * 3 + -2 * -2, 3 * 1
    assert_same(out, expected, "3 * (3, 1) - 2 * (-2, 0)")


# --- buckets and ages ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("lengths", [[0], [5, 0, 3], [300, 20, 17, 40, 299, 210, 0, 16, 15], [7, 1000]], ids=str)
def test_buckets_there_and_back(lengths: list[int]) -> None:
    plan = bucket_plan(np.array(lengths))
    total, count = sum(lengths), len(lengths)
    values, cls = bench.noise("rows", 1100, 4)[:total].double(), bench.noise("cls", 9, 2, 4)[:count].double()
    values.requires_grad_()
    buckets, valid = to_buckets(values, cls, plan), valid_slots(plan)
    bounds = np.concatenate([[0], np.cumsum(lengths)])
    row = 0
    for bucket, mask in zip(buckets, valid, strict=True):
        own = [lengths[u] for u in plan.order[row : row + len(bucket)].tolist()]
        assert bucket.shape[1] == max([*own, SHORTEST]) + 2
        assert bucket.shape[1] == SHORTEST + 2 or min(own) >= RATIO * max(own)
        for i, length in enumerate(own):
            u = int(plan.order[row + i])
            assert mask[i].tolist() == [False] * (mask.shape[1] - length) + [True] * length
            assert torch.equal(bucket[i, mask.shape[1] - length : -2], values[bounds[u] : bounds[u + 1]])
            assert torch.equal(bucket[i, -2:], cls[u])
        row += len(bucket)
    back, back_cls = from_buckets(buckets, plan)
    assert torch.equal(back, values) and torch.equal(back_cls, cls)
    if total:
        weights = bench.noise("weights", 1100, 4)[:total].double()
        (gradient,) = torch.autograd.grad((back.sin() * weights).sum(), values)
        torch.testing.assert_close(gradient, values.cos() * weights)


def test_buckets_waste_little() -> None:
    """The squares of the buckets' widths, which attention costs, against those of the lengths themselves."""
    lengths = np.random.default_rng(1).lognormal(5.0, 1.0, 256).astype(np.int64)
    squares = sum(rows * width**2 for rows, width in bucket_plan(lengths).shapes)
    assert squares < 1.5 * (lengths**2).sum()
    assert squares < 0.1 * len(lengths) * lengths.max() ** 2


def test_ages_fall_into_log_spaced_buckets() -> None:
    ages = torch.tensor([0.0, 1.0, 59.0, 3600.0, 86400.0 * 365, LONGEST_S, 1e12])
    expected = [bucket_of(float(age), 32) for age in ages]
    assert age_bucket(ages, 32).tolist() == expected
    assert expected == sorted(expected) and expected[0] == 0 and expected[-1] == 31


def test_mean_pooling_is_the_mean() -> None:
    encoder = build("mean_pooling")
    events = make_events(encoder)
    out = encoder(events, torch.empty(0))
    owner = row_index(events.offsets, len(events.values))
    for u in range(len(LENGTHS)):
        rows = array(events.values[owner == u])
        assert_same(out.values[u], rows.mean(0) if len(rows) else np.zeros(D), f"history {u}")
    assert encoder.lengths_out(LENGTHS).tolist() == [1] * len(LENGTHS)
