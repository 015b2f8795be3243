"""Low-rank tuning of shared parts: what moves and what stays, gradients, resuming, serving."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from gemkit_transfer.low_rank import Factors, factors_adamw
from torch import Tensor

from gemkit.errors import GemkitError
from gemkit.evaluate import evaluate
from gemkit.predict import predict
from gemkit.registry import load_registry
from gemkit.runs import checkpoint
from gemkit.runs.folder import RunFolder
from gemkit.runs.stopping import Stopped
from gemkit.testing.runs import silent, tiny_run
from gemkit.testing.tolerances import assert_close
from gemkit.train import Training, train

RANK = 2
SIZE = ("size.num_blocks=1", "sequence=none", "cross=none", "train.batch_size=64", "optimizer.weight_decay=0.1")
HEAD = ("head=mmoe", "head.num_experts=3", "head.expert_hidden=[8,7]")  # weights of three dimensions
SHARED = ("dense.tokenizer.", "dense.head.")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("low_rank")


@pytest.fixture(scope="module")
def teacher(data: Path) -> RunFolder:
    return finished(data, data / "teacher", "train.max_steps=4")


def low_rank(teacher: RunFolder, *words: str) -> list[str]:
    """Words of a student that takes the tokenizer, the head and a table."""
    share = "tables.item_id,dense.tokenizer.*,dense.head.*"
    own = [f"teacher={teacher.path}", f"share=[{share}]", "tuning=low_rank", f"rank={RANK}", "lr=0.01"]
    return ["transfer=parameter_sharing", *(f"transfer.{word}" for word in own), "seed=2", *words]


def finished(data: Path, runs: Path, *words: str) -> RunFolder:
    train(tiny_run(data, *SIZE, *HEAD, *words, f"runs={runs}"), load_registry(), progress=silent())
    (path,) = runs.iterdir()
    return RunFolder.open(path)


def tensors_of(folder: RunFolder, name: str = "best") -> Any:
    return checkpoint.load(folder.checkpoints / f"{name}.safetensors")[0]


def assert_moved_at_low_rank(after: Any, before: Any) -> None:
    """All shared matrices differ, each by a matrix of rank `RANK` at most; shared vectors and the table do not."""
    shared = [name for name in before if name.startswith(SHARED)]
    matrices = [name for name in shared if before[name].dim() >= 2]
    assert {before[name].dim() for name in shared} == {1, 2, 3}
    for name in matrices:
        values = torch.linalg.svdvals(after[name].double() - before[name].double())
        assert (values[..., 0] > 1e-3).all(), f"{name} stayed"
        assert (values[..., RANK:] < 1e-5).all(), f"{name} moved at more than rank {RANK}"
    assert sum(min(before[name].shape[-2:]) > RANK for name in matrices) > 5
    for name in [*(set(shared) - set(matrices)), "tables.item_id"]:
        assert torch.equal(after[name], before[name]), name


def test_what_is_shared_moves_at_low_rank_alone(data: Path, tmp_path: Path, teacher: RunFolder) -> None:
    run = tiny_run(data, *SIZE, *HEAD, *low_rank(teacher, "train.max_steps=6", f"runs={tmp_path}"))
    theirs = tensors_of(teacher)
    with contextlib.ExitStack() as resources:
        training = Training(run, load_registry(), None, silent(), ["gemkit"], resources)
        for name, value in training.model.dense.state_dict().items():
            assert torch.equal(value, theirs[f"dense.{name}"]) == f"dense.{name}".startswith(SHARED), name
        training.fit()
        ours = tensors_of(training.folder, "last")
    assert_moved_at_low_rank(ours, theirs)
    others = [name for name in theirs if not name.startswith(SHARED) and name != "tables.item_id"]
    assert others and not any(torch.equal(ours[name], theirs[name]) for name in others)
    for name, value in training.model.dense.named_parameters():
        if f"dense.{name}".startswith(SHARED):
            assert value not in training.optimizer.state, f"the student's optimiser has moments of {name}"


def test_a_student_is_served_without_strategy_and_teacher(data: Path, tmp_path: Path, teacher: RunFolder) -> None:
    copy = tmp_path / "teacher"
    shutil.copytree(teacher.path, copy)
    words = low_rank(RunFolder.open(copy), "train.max_steps=3")
    student = finished(data, tmp_path / "student", *words)
    shutil.rmtree(copy)
    assert tensors_of(student).keys() == tensors_of(teacher).keys()
    assert evaluate(student.path, load_registry(), silent()) == student.metrics()["test"]
    examples = data / "examples.parquet"
    assert predict(student.path, examples, tmp_path / "out.csv", load_registry(), silent()) == 1200


# --- gradients ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("banks", [(), (3,)], ids=["2-D", "3-D"])
def test_steps_are_those_of_an_explicit_low_rank_path(banks: tuple[int, ...]) -> None:
    """Gradients and weights, beside an optimiser of the student that would move W."""
    torch.manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(*banks, 5, 7, dtype=torch.float64))
    base = weight.detach().clone()
    factors = Factors(weight, RANK)
    u, v = (p.detach().clone().requires_grad_() for p in (factors.u, factors.v))
    optimizer, expected = factors_adamw([(weight, factors)], 0.05), torch.optim.AdamW([u, v], 0.05, weight_decay=0.0)
    student = torch.optim.AdamW([weight], 0.1, weight_decay=0.5)
    for step in range(4):
        x = torch.randn(*banks, 4, 7, dtype=torch.float64)
        (x @ weight.mT).tanh().sum().backward()  # type: ignore[no-untyped-call]
        (x @ base.mT + (x @ v.mT) @ u.mT).tanh().sum().backward()
        optimizer.step()
        expected.step()
        for name, ours, explicit in (("U", factors.u, u), ("V", factors.v, v)):
            assert ours.grad is not None and explicit.grad is not None
            assert_close(ours.grad, explicit.grad, f"gradient of {name} in step {step}")
            assert bool(explicit.grad.any()) or (name, step) == ("V", 0)  # U begins at zero
        for each in (optimizer, expected, student):
            if each is student:
                each.step()
            each.zero_grad()
        assert_close(weight.detach(), base + u.detach() @ v.detach(), f"W after step {step}")
    assert not student.state


def test_the_rank_is_at_most_the_smaller_side() -> None:
    factors = Factors(torch.zeros(3, 5, 7), 64)
    assert factors.u.shape == (3, 5, 5) and factors.v.shape == (3, 5, 7)


# --- going on -----------------------------------------------------------------------------------------------


def stopped(data: Path, *words: str, step: int) -> RunFolder:
    """A run that was asked to stop after `step` steps."""
    run = tiny_run(data, *SIZE, *HEAD, *words)
    with pytest.raises(Stopped), contextlib.ExitStack() as resources:
        training = Training(run, load_registry(), None, silent(), ["gemkit"], resources)
        inner = training.step

        def signalled(batches: Any) -> Tensor:
            loss = inner(batches)
            if training.state.step == step:
                os.kill(os.getpid(), signal.SIGTERM)
            return loss

        training.step = signalled  # type: ignore[method-assign]
        with training.stop:
            training.fit()
    return training.folder


def test_stopped_and_resumed_equals_uninterrupted(data: Path, tmp_path: Path, teacher: RunFolder) -> None:
    """In a list of strategies; what the teacher's folder holds by then does not matter."""
    copy = tmp_path / "teacher"
    shutil.copytree(teacher.path, copy)
    words = low_rank(RunFolder.open(copy), "train.max_steps=6", "train.accumulate=2", "tokenizer.dropout=0.1")
    words = ["transfer=[parameter_sharing]", *words[1:]]
    words = [word.replace("transfer.", "transfer.parts.parameter_sharing.") for word in words]
    whole = finished(data, tmp_path / "whole", *words)
    assert_moved_at_low_rank(tensors_of(whole, "last"), tensors_of(teacher))
    folder = stopped(data, *words, f"runs={tmp_path / 'stopped'}", step=3)
    other = finished(data, tmp_path / "other", "train.max_steps=1", "seed=9")
    shutil.copy(other.checkpoints / "best.safetensors", copy / "checkpoints" / "best.safetensors")
    run = tiny_run(data, *SIZE, *HEAD, *words, f"runs={tmp_path / 'stopped'}")
    train(run, load_registry(), folder.path, progress=silent())
    assert folder.metrics()["test"] == whole.metrics()["test"]
    for name in ("best", "last"):
        one, two = tensors_of(folder, name), tensors_of(whole, name)
        assert one.keys() == two.keys()
        assert any(key.startswith("transfer.") for key in one) == (name == "last")
        for key in one:
            assert torch.equal(one[key], two[key]), f"{name}: {key}"


def test_it_starts_from_the_weights_of_another_run(data: Path, tmp_path: Path, teacher: RunFolder) -> None:
    """W0 is what the run starts from, also when that is not the teacher's; a run after it keeps W0 and the factors."""
    plain = finished(data, tmp_path / "plain", "train.max_steps=2", "transfer=none", "seed=3")
    words = low_rank(teacher, "train.max_steps=4")
    second = finished(data, tmp_path / "second", *words, f"train.start_from={plain.path}")
    third = finished(data, tmp_path / "third", *words, f"train.start_from={second.path}")
    for folder in (second, third):
        assert_moved_at_low_rank(tensors_of(folder, "last"), tensors_of(plain, "last"))
    earlier, later = (tensors_of(f, "last")["dense.tokenizer.dense.out.weight"] for f in (second, third))
    assert not torch.equal(earlier, later)


# --- errors -------------------------------------------------------------------------------------------------


def test_tables_and_vectors_alone_are_refused(data: Path, tmp_path: Path, teacher: RunFolder) -> None:
    for share in ("tables.*", "dense.tokenizer.norm.*"):
        with pytest.raises(GemkitError, match="nothing that is shared can be tuned at low rank") as caught:
            finished(data, tmp_path, *low_rank(teacher, f"transfer.share=[{share}]"))
        assert caught.value.where == "transfer.share" and "two dimensions" in str(caught.value.allowed)
    assert not list(tmp_path.iterdir())
