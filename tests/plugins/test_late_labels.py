"""Labels that come late: both likelihoods against plain loops, and against worlds in which the truth is known."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest
import torch
from torch import Tensor

from gemkit.data.batch import Batch
from gemkit.errors import GemkitError
from gemkit.registry import load_registry
from gemkit.testing import bench

DAY_S = 86_400.0
WINDOWS = (3_600.0, DAY_S, 7 * DAY_S)
HEADS = ("multitask", "single_task", "per_surface", "mmoe", "ple")
LATE = 1
"""The task of the contracts' data that comes late; the other is known at once."""


def head(kind: str, name: str = "multitask", **options: Any) -> Any:
    spec = load_registry().get("head", name)
    return bench.build(spec, spec.config(late_labels=kind, windows_s=WINDOWS, **options)).double()


def observed(seed: int = 0) -> Batch:
    """A batch of which every case occurs: happened in each window and after the last, without saying when, not yet."""
    batch, generator = bench.make_batch(), torch.Generator().manual_seed(seed)
    size = batch.size
    elapsed = torch.rand(size, generator=generator) ** 3 * 20 * DAY_S
    delays = torch.full((size, 2), float("nan"))
    delays[:, LATE] = torch.rand(size, generator=generator) ** 4 * 12 * DAY_S
    delays[::3, LATE] = float("nan")
    delays[delays > elapsed[:, None]] = float("nan")
    labels = torch.stack([torch.arange(size) % 2, (~delays[:, LATE].isnan()).long()], 1).float()
    labels[::9, LATE] = 1.0
    elapsed[::5] = torch.where(delays[::5, LATE].isnan(), float("inf"), elapsed[::5])
    masks = (torch.rand(size, 2, generator=generator) < 0.8).float()
    return batch._replace(labels=labels, delays=delays, elapsed=elapsed, masks=masks)


def scores_of(batch: Batch, num: int) -> Tensor:
    return bench.noise("scores", batch.size, 2, num).double() * 2


def sigmoid(x: float) -> float:
    return 1 / (1 + math.exp(-x))


def delayed_feedback(scores: list[float], label: float, delay: float, elapsed: float) -> float:
    p, rate = sigmoid(scores[0]), math.exp(scores[1]) / DAY_S
    if label and math.isnan(delay):
        return -math.log(p)
    if label:
        return -math.log(p) - math.log(rate * DAY_S) + rate * delay
    return -math.log(1 - p + p * math.exp(-rate * elapsed))


def windows(scores: list[float], label: float, delay: float, elapsed: float) -> float:
    if label and math.isnan(delay):
        return -math.log(1 - math.prod(1 - sigmoid(s) for s in scores))
    loss = 0.0
    for score, start, end in zip(scores, (0.0, *WINDOWS), WINDOWS, strict=False):
        if elapsed < end:  # not over
            return loss
        if label and start < delay <= end:
            return loss - math.log(sigmoid(score))
        loss -= math.log(1 - sigmoid(score))
    return loss


@pytest.mark.parametrize(("kind", "plain", "num"), [("delayed_feedback", delayed_feedback, 2), ("windows", windows, 3)])
def test_the_loss_is_that_of_plain_loops(kind: str, plain: Any, num: int) -> None:
    batch, module = observed(), head(kind)
    batch = batch._replace(elapsed=batch.elapsed.double(), delays=batch.delays.double(), labels=batch.labels.double())
    scores = scores_of(batch, num)
    late = module.late.losses(scores, batch)[:, LATE]
    kinds = set()
    for i in range(batch.size):
        label, delay, elapsed = (float(x) for x in (batch.labels[i, LATE], batch.delays[i, LATE], batch.elapsed[i]))
        expected = plain(scores[i, LATE].tolist(), label, delay, elapsed)
        assert float(late[i]) == pytest.approx(expected, rel=1e-9), (i, label, delay, elapsed)
        kinds.add((label, math.isnan(delay), math.isinf(elapsed)))
    assert len(kinds) == 5, kinds  # happened: known when (not yet final), unknown when (both); not: final or not

    counts = batch.masks.double() * batch.weights.double().unsqueeze(1)
    both = torch.stack(
        [torch.nn.functional.softplus(scores[:, 0, 0]) - scores[:, 0, 0] * batch.labels[:, 0], late.detach()], 1
    )
    expected = ((both * counts).sum(0) / counts.sum(0)).sum()
    module = head(kind).float()
    assert float(module.loss(scores.float(), observed())) == pytest.approx(float(expected), rel=1e-5)


def test_what_is_served() -> None:
    batch = observed()
    scores = scores_of(batch, 3)
    served = torch.sigmoid(head("windows").logits(scores))
    for i in range(batch.size):
        chance = 1 - math.prod(1 - sigmoid(s) for s in scores[i, LATE].tolist())
        assert float(served[i, LATE]) == pytest.approx(chance, rel=1e-9)
        assert float(served[i, 0]) == pytest.approx(sigmoid(float(scores[i, 0, 0])), rel=1e-9)
    assert torch.equal(head("delayed_feedback").logits(scores[..., :2]), scores[..., 0])


@pytest.mark.parametrize("kind", ["delayed_feedback", "windows"])
@pytest.mark.parametrize("value", [-200.0, 0.0, 200.0])
def test_extreme_scores_have_finite_losses_and_gradients(kind: str, value: float) -> None:
    batch, module = observed(), head(kind).float()
    scores = torch.full((batch.size, 2, module.num_scores), value, requires_grad=True)
    loss = module.loss(scores, batch) + module.logits(scores).sum() * 1e-3
    loss.backward()
    assert torch.isfinite(loss) and scores.grad is not None and torch.isfinite(scores.grad).all()


@pytest.mark.parametrize("name", HEADS)
@pytest.mark.parametrize(("kind", "num"), [("naive", 1), ("delayed_feedback", 2), ("windows", 3)])
def test_every_head_makes_as_many_scores_as_it_needs(name: str, kind: str, num: int) -> None:
    batch, module = observed(), head(kind, name)
    scores = module(bench.noise("readout", batch.size, bench.READOUT_DIM).double(), batch)
    assert scores.shape == ((batch.size, 2) if num == 1 else (batch.size, 2, num))
    assert module.logits(scores).shape == (batch.size, 2)


def a_world(p: float, mean_days: float, size: int = 200_000) -> tuple[Batch, float]:
    """Examples of one kind over seven days, seen at the end of the last; and how many labels are 1 by then."""
    generator = torch.Generator().manual_seed(3)
    batch = bench.make_batch()
    delays = -torch.log(torch.rand(size, generator=generator)) * mean_days * DAY_S
    elapsed = torch.rand(size, generator=generator) * 7 * DAY_S
    happens = torch.rand(size, generator=generator) < p
    known = happens & (delays <= elapsed)
    column = torch.where(known, delays, float("nan"))
    ones = torch.ones(size)
    seen = batch._replace(
        labels=torch.stack([ones, known.float()], 1),
        delays=torch.stack([torch.full((size,), float("nan")), column], 1),
        elapsed=elapsed,
        masks=torch.stack([0 * ones, ones], 1),
        weights=ones,
    )
    return seen, float(known.float().mean())


@pytest.mark.parametrize(("kind", "limit_days"), [("delayed_feedback", math.inf), ("windows", 6.9)])
def test_the_chance_is_found_although_labels_are_missing(kind: str, limit_days: float) -> None:
    p, mean_days = 0.3, 2.0
    batch, rate = a_world(p, mean_days)
    assert rate < 0.75 * p  # what a naive head would learn
    spec = load_registry().get("head", "multitask")
    module = bench.build(spec, spec.config(late_labels=kind, windows_s=(DAY_S, 3 * DAY_S, 6.9 * DAY_S)))
    scores = torch.zeros(1, 2, module.num_scores, requires_grad=True)
    optimizer = torch.optim.LBFGS([scores], max_iter=60, line_search_fn="strong_wolfe")

    def closure() -> float:
        optimizer.zero_grad()
        loss = module.loss(scores.expand(len(batch.weights), -1, -1), batch)
        loss.backward()
        return float(loss.detach())

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    found = float(torch.sigmoid(module.logits(scores.detach()))[0, LATE])
    assert found == pytest.approx(p * (1 - math.exp(-limit_days / mean_days)), abs=0.015)
    if kind == "delayed_feedback":
        assert math.exp(float(scores.detach()[0, LATE, 1])) == pytest.approx(1 / mean_days, rel=0.1)


@pytest.mark.parametrize("ends", [(), (60.0, 60.0), (60.0, 30.0)])
def test_windows_follow_each_other(ends: tuple[float, ...]) -> None:
    with pytest.raises(GemkitError, match="follow each other"):
        load_registry().get("head", "mmoe").config(windows_s=ends)


def test_a_data_set_without_delays_is_refused() -> None:
    context = bench.context()
    tasks = tuple(dataclasses.replace(task, delay=None) for task in context.schema.tasks)
    context = dataclasses.replace(context, schema=dataclasses.replace(context.schema, tasks=tasks), readout_dim=8)
    with pytest.raises(GemkitError, match="needs a task whose labels come with a delay") as caught:
        load_registry().build("head", {"name": "multitask", "late_labels": "windows"}, context)
    assert caught.value.where == "head.late_labels"
