"""Soft labels: who learns what from whom, by hand and by finite differences."""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gemkit_transfer.gate import Gate
from torch import Tensor

from gemkit.config.compose import compose
from gemkit.config.run import RunConfig
from gemkit.data.batch import Batch
from gemkit.interfaces import Answers, Outputs, TransferStrategy
from gemkit.nn.init import init_parameters
from gemkit.registry import load_registry
from gemkit.session import Model, build_model
from gemkit.testing import bench
from gemkit.testing.teaching import write_log

P = 2


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("transfer") / "log"
    write_log(folder, bench.dataset())
    return folder


@pytest.fixture(scope="module")
def run() -> RunConfig:
    return compose(["data=table", f"size.dim={bench.DIM}", "parallel.accelerator=cpu"], load_registry())


@pytest.fixture
def student(run: RunConfig) -> Iterator[Model]:
    backend = load_registry().build("parallel", run.parallel)
    backend.launch(run)
    yield build_model(run, bench.dataset().schema, load_registry(), backend)


def strategy_of(student: Model, name: str, log: Path, **options: Any) -> TransferStrategy:
    strategy: TransferStrategy = load_registry().build(
        "transfer", {"name": name, "log": str(log), **options}, bench.context()
    )
    strategy.prepare(student.dense, student.embeddings)
    init_parameters(strategy, 1)
    return strategy.train()


def batch_of(student: Model) -> Batch:
    return bench.make_batch(student.dense.shares_histories, student.dense.layout)


def outputs_of(logits: Tensor, readout: Tensor) -> Outputs:
    return Outputs(logits, readout, {}, logits)


def made_up(batch: Batch, seed: int = 0) -> Answers:
    generator = torch.Generator().manual_seed(seed)
    known = torch.ones_like(batch.labels)
    known[0] = 0
    return Answers(
        torch.randn(batch.size, P, generator=generator), known, torch.full((batch.size,), 3600.0), torch.zeros(0)
    )


def cross_entropy(logit: float, target: float) -> float:
    p = 1 / (1 + math.exp(-logit))
    return -target * math.log(p) - (1 - target) * math.log(1 - p)


def by_hand(logits: Tensor, target: Tensor, counted: Tensor) -> float:
    """Sum over tasks of the weighted mean cross-entropy, in plain Python."""
    total = 0.0
    for task in range(P):
        weight = counted[:, task].tolist()
        values = [cross_entropy(a, b) for a, b in zip(logits[:, task].tolist(), target[:, task].tolist(), strict=True)]
        total += sum(w * v for w, v in zip(weight, values, strict=True)) / sum(weight)
    return total


def test_distillation_by_hand(student: Model, log: Path) -> None:
    batch, t = batch_of(student), 2.0
    strategy = strategy_of(student, "distill", log, temperature=t, weight=0.5)
    answers, logits = made_up(batch), torch.randn(batch.size, P)
    expected = by_hand(logits / t, torch.sigmoid(answers.logits / t), answers.known * batch.weights.unsqueeze(1))
    found = strategy.loss(outputs_of(logits, torch.zeros(batch.size, 1)), answers, batch)
    assert found.item() == pytest.approx(0.5 * t * t * expected, rel=1e-5)


def test_the_auxiliary_head_by_hand(student: Model, log: Path) -> None:
    batch, alpha = batch_of(student), 1.5
    strategy = strategy_of(student, "auxiliary_head", log, alpha=alpha, weight=2.0)
    outputs, answers = student(batch), made_up(batch)
    target = (alpha * torch.sigmoid(answers.logits)).clamp(max=1)
    assert (target == 1).any(), "nothing is clipped"
    logits = strategy.head(outputs.readout)  # type: ignore[operator]
    counted = answers.known * batch.weights.unsqueeze(1)
    expected = by_hand(logits.detach(), target.clamp(max=1 - 1e-7), counted)
    assert strategy.loss(outputs, answers, batch).item() == pytest.approx(2.0 * expected, rel=1e-5)


@pytest.mark.parametrize("name", ["auxiliary_head", "student_adapter"])
def test_the_serving_head_never_sees_a_soft_label(student: Model, log: Path, name: str) -> None:
    strategy, batch = strategy_of(student, name, log), batch_of(student)
    strategy.loss(student(batch), made_up(batch), batch).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is None for p in student.dense.head.parameters())
    below = [p.grad for n, p in student.dense.named_parameters() if n.startswith("blocks")]
    assert any(g is not None and g.abs().sum() > 0 for g in below), "the backbone learns nothing"


def test_distillation_does_reach_the_serving_head(student: Model, log: Path) -> None:
    strategy, batch = strategy_of(student, "distill", log), batch_of(student)
    strategy.loss(student(batch), made_up(batch), batch).backward()  # type: ignore[no-untyped-call]
    assert all(p.grad is not None for p in student.dense.head.parameters())


@pytest.mark.parametrize("beta", [0.0, 0.25, 3.0])
def test_beta_scales_what_reaches_the_backbone_and_nothing_else(student: Model, log: Path, beta: float) -> None:
    batch = batch_of(student)
    readout = student(batch).readout.detach()
    grads, own = [], []
    for value in (1.0, beta):
        strategy = strategy_of(student, "auxiliary_head", log, beta=value)
        leaf = readout.clone().requires_grad_()
        strategy.loss(outputs_of(torch.zeros(batch.size, P), leaf), made_up(batch), batch).backward()  # type: ignore[no-untyped-call]
        assert leaf.grad is not None
        grads.append(leaf.grad)
        own.append([p.grad for p in strategy.parameters()])
    torch.testing.assert_close(grads[1], beta * grads[0])
    for first, second in zip(*own, strict=True):
        torch.testing.assert_close(first, second)


# --- Student Adapter ----------------------------------------------------------------------------------------


def finite_difference(function: Any, tensor: Tensor, direction: Tensor, step: float = 1e-5) -> float:
    with torch.no_grad():
        tensor += step * direction
        above = function().item()
        tensor -= 2 * step * direction
        below = function().item()
        tensor += step * direction
    return float(above - below) / (2 * step)


def test_stop_gradients_hold_by_finite_differences(student: Model, log: Path) -> None:
    """Autograd moves the adapter as its own loss falls, and not as the student's would."""
    batch = batch_of(student)
    strategy = strategy_of(student, "student_adapter", log, head="serving").double()
    generator = torch.Generator().manual_seed(5)
    strategy.adapter.top.weight.data.normal_(0, 0.3, generator=generator)  # type: ignore[union-attr, operator]
    answers = Answers(*(t.double() for t in made_up(batch)))
    logits = torch.randn(batch.size, P, generator=generator, dtype=torch.float64, requires_grad=True)
    double = batch._replace(labels=batch.labels.double(), masks=batch.masks.double(), weights=batch.weights.double())
    outputs = outputs_of(logits, torch.zeros(batch.size, 1, dtype=torch.float64))

    def whole() -> Tensor:
        return strategy.loss(outputs, answers, double)

    def fit() -> Tensor:
        weight, strategy.options.__dict__["weight"] = strategy.options.weight, 0.0  # type: ignore[union-attr]
        loss = strategy.loss(outputs, answers, double)
        strategy.options.__dict__["weight"] = weight  # type: ignore[union-attr]
        return loss

    whole().backward()  # type: ignore[no-untyped-call]
    leaks = []
    for parameter in strategy.adapter.parameters():  # type: ignore[union-attr]
        direction = torch.randn(parameter.shape, generator=generator, dtype=torch.float64)
        assert parameter.grad is not None
        found = (parameter.grad * direction).sum().item()
        assert found == pytest.approx(finite_difference(fit, parameter, direction), rel=1e-4, abs=1e-8)
        leaks.append(abs(found - finite_difference(whole, parameter, direction)) / abs(found))
    assert max(leaks) > 0.05, "the student's loss does not depend on the adapter: there is nothing to stop"
    direction = torch.randn(logits.shape, generator=generator, dtype=torch.float64)
    assert logits.grad is not None
    expected = finite_difference(whole, logits, direction)
    assert (logits.grad * direction).sum().item() == pytest.approx(expected, rel=1e-4)
    assert finite_difference(fit, logits, direction) == pytest.approx(0, abs=1e-9)


def test_the_adapter_begins_as_the_teacher_and_follows_the_labels(student: Model, log: Path) -> None:
    batch = batch_of(student)
    strategy = strategy_of(student, "student_adapter", log, adapter_lr=0.05)
    answers = made_up(batch)
    readout = student(batch).readout.detach()
    first = strategy.adapter(answers.logits, answers.known, readout)  # type: ignore[operator]
    torch.testing.assert_close(first, answers.logits)
    (optimizer,) = strategy.optimizers()
    outputs, labels = outputs_of(torch.zeros(batch.size, P), readout), torch.ones_like(batch.labels)
    positive = batch._replace(labels=labels, masks=labels)
    for _ in range(60):
        strategy.loss(outputs, answers, positive).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        optimizer.zero_grad()
    adapted = strategy.adapter(answers.logits, answers.known, readout)  # type: ignore[operator]
    assert (adapted[1:] - answers.logits[1:]).min() > 1


def test_the_adapter_learns_only_from_labels_newer_than_the_teacher(student: Model, log: Path) -> None:
    strategy, batch = strategy_of(student, "student_adapter", log), batch_of(student)
    answers = made_up(batch)._replace(ages=torch.full((batch.size,), -1.0))
    strategy.loss(student(batch), answers, batch).backward()  # type: ignore[no-untyped-call]
    grads = [p.grad for p in strategy.adapter.parameters()]  # type: ignore[union-attr]
    assert all(g is None or not g.any() for g in grads)
    assert any(p.grad is not None and p.grad.any() for p in strategy.head.parameters())  # type: ignore[union-attr]


def test_labels_that_may_still_come_are_left_out(student: Model, log: Path) -> None:
    """By the adapter and by the gate, of the task that comes late and of no other."""
    week = 604_800.0
    options = {"settled_after_s": week, "gate": True}
    strategy, batch = strategy_of(student, "student_adapter", log, **options), batch_of(student)
    assert strategy.late.tolist() == [False, True]  # type: ignore[operator]
    answers, young = made_up(batch), batch._replace(elapsed=torch.full((batch.size,), week - 1))
    other = young._replace(labels=torch.stack([young.labels[:, 0], 1 - young.labels[:, 1]], 1))
    outputs = student(batch)
    assert strategy.loss(outputs, answers, young).item() == strategy.loss(outputs, answers, other).item()
    assert strategy.gate.count.tolist()[1] == 0 < strategy.gate.count.tolist()[0]  # type: ignore[union-attr]
    settled = [b._replace(elapsed=torch.full((batch.size,), week)) for b in (young, other)]
    one, two = (strategy.loss(outputs, answers, b).item() for b in settled)
    assert one != two and strategy.gate.count.tolist()[1] > 0  # type: ignore[union-attr]


# --- gate ---------------------------------------------------------------------------------------------------


def test_a_gate_closes_in_proportion_to_the_disadvantage() -> None:
    gate = Gate(3, tolerance=0.1, half_life=5)
    assert gate().tolist() == [1, 1, 1]
    for _ in range(3):
        gate.observe(torch.tensor([0.40, 0.42, 0.50]), torch.tensor([0.45, 0.40, 0.40]), torch.tensor([5.0, 5.0, 5.0]))
    assert gate().tolist() == pytest.approx([1, 0.5, 0])


def test_a_gate_forgets_and_counts_labels() -> None:
    gate = Gate(1, tolerance=0.1, half_life=1)
    gate.observe(torch.tensor([1.0]), torch.tensor([0.5]), torch.tensor([100.0]))
    gate.observe(torch.tensor([9.0]), torch.tensor([9.0]), torch.tensor([0.0]))  # no label: says nothing
    assert gate().tolist() == [0]
    gate.observe(torch.tensor([0.5]), torch.tensor([0.5]), torch.tensor([100.0]))
    # Half the weight of the newest: (1/4 * 1 + 1 * .5) / (1/4 * .5 + 1 * .5) is 1.2, in halves again.
    assert (gate.target / gate.rival).item() == pytest.approx((0.25 * 1 + 1 * 0.5) / (0.25 * 0.5 + 1 * 0.5))


@pytest.mark.parametrize("name", ["distill", "auxiliary_head"])
def test_a_bad_teacher_is_shut_out_and_a_good_one_is_not(student: Model, log: Path, name: str) -> None:
    batch = batch_of(student)
    strategy = strategy_of(student, name, log, gate=True)
    sign = 2 * batch.labels - 1
    for answer, opening in ((4 * sign, 1.0), (-4 * sign, 0.0)):
        for _ in range(80):
            logits, readout = torch.zeros(batch.size, P, requires_grad=True), student(batch).readout.detach()
            answers = Answers(answer, torch.ones_like(answer), torch.ones(batch.size), torch.zeros(0))
            loss = strategy.loss(outputs_of(logits, readout), answers, batch)
        assert strategy.report()["transfer/gate/click"] == opening
        assert (loss.item() > 0) == (opening > 0)


def test_the_gate_learns_nothing_from_examples_seen_before(student: Model, log: Path) -> None:
    batch = batch_of(student)
    strategy = strategy_of(student, "distill", log, gate=True)
    strategy.fresh = False
    strategy.loss(student(batch), made_up(batch), batch)
    assert strategy.gate is not None and not strategy.gate.count.any()  # type: ignore[union-attr, operator]


# --- several ------------------------------------------------------------------------------------------------


def test_losses_of_several_add_up(student: Model, log: Path) -> None:
    batch = batch_of(student)
    names = ("distill", "auxiliary_head", "student_adapter")
    together: Any = strategy_of(student, "several", log, parts={name: {} for name in names})
    outputs = student(batch)
    single = [together.parts[name].loss(outputs, together.parts[name].answer(batch), batch).item() for name in names]
    assert together.loss(outputs, together.answer(batch), batch).item() == pytest.approx(sum(single), rel=1e-6)
    assert len(list(together.optimizers())) == 2
    report = together.report()
    assert {"transfer/distill/answered", "transfer/student_adapter/answered"} <= report.keys()
