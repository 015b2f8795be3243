"""`parallel.saved_activations`: what training keeps for its backward pass, and that all else stays as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from gemkit_hsdp import activations
from gemkit_kernels.fp8 import saved
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gemkit.cli.main import main
from gemkit.config.compose import compose
from gemkit.errors import GemkitError
from gemkit.evaluate import evaluate
from gemkit.registry import load_registry
from gemkit.runs import checkpoint
from gemkit.runs.folder import RunFolder
from gemkit.session import open_dataset
from gemkit.testing.runs import silent, stopped_run, tiny_run
from gemkit.testing.teaching import write_log
from gemkit.train import Training, train

LARGE = 2**16
FP8 = "parallel.saved_activations=fp8"
SIZE = ("train.batch_size=1024", "size.num_tokens=12")
"""So that most activations have 65,536 numbers or more."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data set of this file's runs lives; it is built once."""
    return tmp_path_factory.mktemp("data")


@contextlib.contextmanager
def training(data: Path, tmp_path: Path, *overrides: str) -> Iterator[Training]:
    run = tiny_run(data, *SIZE, *overrides, f"runs={tmp_path / 'open'}")
    with contextlib.ExitStack() as resources:
        yield Training(run, load_registry(), None, silent(), ["gemkit", "train"], resources)


def finished(data: Path, folder: Path, *overrides: str) -> RunFolder:
    run = tiny_run(data, *overrides, f"runs={folder}")
    train(run, load_registry(), progress=silent())
    (path,) = folder.iterdir()
    return RunFolder.open(path)


def losses(folder: RunFolder) -> list[float]:
    return [row["loss"] for row in folder.rows() if row["split"] == "train"]


@pytest.fixture
def casts(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Tensor, int]]:
    """Each tensor that is cast to FP8, and how many bytes are kept in its place."""
    found: list[tuple[Tensor, int]] = []
    cast: Callable[..., tuple[Tensor, Tensor]] = saved.fp8_quantise

    def recorded(x: Tensor, tiled: bool) -> tuple[Tensor, Tensor]:
        values, scales = cast(x, tiled)
        found.append((x.detach(), values.nbytes + scales.nbytes))
        return values, scales

    monkeypatch.setattr(saved, "fp8_quantise", recorded)
    return found


class Recorder:
    """What autograd keeps while hooks of `saved_in_fp8`, or none, see it first: bytes of each storage."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.bytes: dict[int, int] = {}
        self.storages: list[Any] = []  # so that no address is given twice
        self.hooks = torch.autograd.graph.saved_tensors_hooks
        monkeypatch.setattr(torch.autograd.graph, "saved_tensors_hooks", self)

    def __call__(self, pack: Callable[[Tensor], Any], unpack: Callable[[Any], Tensor]) -> Any:
        return self.hooks(lambda x: self.seen(pack(x)), unpack)

    def seen(self, packed: Any) -> Any:
        small = getattr(packed, "small", None)
        for x in (small.values, small.scales) if small else (getattr(packed, "tensor", packed),):
            storage = x.untyped_storage()
            self.storages.append(storage)
            self.bytes[storage._cdata] = storage.nbytes()
        return packed


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["eager", "compiled"])
def test_large_activations_take_about_a_quarter(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compiled: bool
) -> None:
    found = []
    for words in ([], [FP8]):
        with training(data, tmp_path, f"train.compile={compiled}", *words) as one:
            batch = next(iter(one.loader.epoch(0)))
            embedded = one.model.embeddings(batch.ids)
            recorder = Recorder(monkeypatch)
            with contextlib.nullcontext() if words else recorder(lambda x: x, lambda x: x):
                out = one.model.forward(batch, embedded)
            monkeypatch.undo()
            out.logits.sum().backward()
            alive = [*one.model.dense.parameters(), *(x for x in tree_leaves(batch) if isinstance(x, Tensor))]
            for x in alive:
                recorder.bytes.pop(x.untyped_storage()._cdata, None)
            found.append(sum(recorder.bytes.values()))
    # What is smaller stays as it is, and rows of 16 numbers share a scale of 4 bytes.
    assert found[0] > 30e6 and 0.25 < found[1] / found[0] < 0.4


def test_only_large_activations_of_training_are_cast(data: Path, tmp_path: Path, casts: Any) -> None:
    with training(data, tmp_path, FP8) as one:
        batch = next(iter(one.loader.epoch(0)))
        embedded = one.model.embeddings(batch.ids)
        assert not casts, "lookups are exact"
        one.model.forward(batch, embedded)
        assert len(casts) > 20
        alive = [*one.model.dense.parameters(), *(x for x in tree_leaves(batch) if isinstance(x, Tensor))]
        addresses = {x.untyped_storage().data_ptr() for x in alive}
        for x, kept in casts:
            assert x.numel() >= LARGE and x.untyped_storage().data_ptr() not in addresses
            assert kept <= x.nbytes * (0.25 + 1 / 16)
        casts.clear()
        with torch.no_grad():
            one.model(batch)
        one.model.dense.eval()
        one.model(batch).logits.sum().backward()
        assert not casts, "evaluation is exact, also if somebody wants gradients there"


def test_exact_is_as_if_the_option_were_not_there(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, casts: Any
) -> None:
    monkeypatch.setattr(activations, "SavedInFp8", None)
    with training(data, tmp_path) as one:
        assert one.model.forward.module is one.model.dense
        one.model(next(iter(one.loader.epoch(0)))).logits.sum().backward()
    assert not casts


def test_forward_is_exact_and_training_goes_on_nearly_alike(data: Path, tmp_path: Path) -> None:
    words = ["train.batch_size=512", "size.num_tokens=12", "train.epochs=8", "train.eval_every=16", "optimizer.lr=3e-3"]
    exact, fp8 = (finished(data, tmp_path / str(i), *words, *more) for i, more in enumerate(([], [FP8])))
    a, b = losses(exact), losses(fp8)
    assert a[0] == b[0] and a[1:] != b[1:]
    assert b[-1] < 0.8 * b[0] and abs(a[-1] - b[-1]) < 0.05 * a[-1]
    first, second = (checkpoint.load(f.checkpoints / "best.safetensors")[0] for f in (exact, fp8))
    assert first.keys() == second.keys(), "a model is the same whatever its training kept"
    assert evaluate(fp8.path, load_registry(), silent()) == fp8.metrics()["test"]


def test_stopped_and_resumed_equals_uninterrupted(data: Path, tmp_path: Path) -> None:
    """With accumulation, dropout and a teacher, whose taps are returned from inside."""
    write_log(tmp_path / "log", open_dataset(tiny_run(data), load_registry(), silent()))
    words = [*SIZE, FP8, "train.accumulate=2", "train.epochs=2", "tokenizer.dropout=0.1"]
    words += ["transfer=distill", f"transfer.log={tmp_path / 'log'}"]
    whole = finished(data, tmp_path / "whole", *words)
    run = tiny_run(data, *words, f"runs={tmp_path / 'stopped'}")
    folder = stopped_run(run)
    train(run, load_registry(), folder.path, progress=silent())
    assert losses(folder) == losses(whole) and len(losses(whole)) == 2
    first, second = (checkpoint.load(f.checkpoints / "last.safetensors")[0] for f in (whole, folder))
    for name, tensor in first.items():
        assert torch.equal(tensor, second[name]), name


def test_taps_come_out(data: Path, tmp_path: Path) -> None:
    with training(data, tmp_path, FP8) as one:
        batch = next(iter(one.loader.epoch(0)))
        out = one.model(batch, ("block0.x",))
        (gradient,) = torch.autograd.grad(out.logits.sum(), out.taps["block0.x"])
        assert gradient.shape == out.taps["block0.x"].shape and gradient.abs().sum() > 0


def test_what_is_refused() -> None:
    with pytest.raises(GemkitError) as caught:
        compose(["parallel.saved_activations=fp16"], load_registry())
    assert caught.value.where == "parallel.saved_activations" and "exact, fp8" in str(caught.value.allowed)
    with pytest.raises(GemkitError, match="checkpoint_activations") as caught:
        compose([FP8, "train.checkpoint_activations=true"], load_registry())
    assert caught.value.where == "parallel.saved_activations"
    for word in (FP8, "train.checkpoint_activations=true"):
        compose([word], load_registry())


def test_components_show_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["components", "parallel/single"]) == 0
    shown = capsys.readouterr().out
    assert 'parallel.saved_activations = "exact"    text, exact | fp8' in shown
    assert "in FP8, a byte each. Tables and evaluation are exact" in " ".join(shown.split())
