"""Stopped and resumed equals uninterrupted, bit for bit; and what refuses to be resumed."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from gemkit.cli.main import main
from gemkit.config.run import RunConfig
from gemkit.errors import GemkitError
from gemkit.registry import load_registry
from gemkit.runs import checkpoint, keeping
from gemkit.runs.clock import Clock
from gemkit.runs.folder import RunFolder
from gemkit.runs.inspect import inspect_run
from gemkit.runs.lock import is_locked, locked
from gemkit.runs.log import logged
from gemkit.runs.stopping import Stopped
from gemkit.session import open_dataset
from gemkit.testing.runs import silent, tiny_run
from gemkit.testing.teaching import write_log
from gemkit.train import Training, train

WithoutRights = Callable[[], contextlib.AbstractContextManager[None]]

# 8 steps an epoch: rows of the history, validations, checkpoints and epochs all end at different steps.
OVERRIDES = (
    *("train.epochs=2", "train.max_steps=13", "train.log_every=3", "train.eval_every=5", "train.checkpoint_every=4"),
    *("tokenizer.dropout=0.1", "optimizer.weight_decay=0.01", "train.patience=3", "train.accumulate=2"),
)
TIMES = {
    *("examples_per_s", "wall_s", "data_wait", "train_s", "wait_s", "matmul_peak_flops_per_s", "mfu"),
    *("start_s", "effective_time", "checkpoint_wait_s", "checkpoints", "busy_s"),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data set of this file's runs lives; it is built once."""
    return tmp_path_factory.mktemp("data")


@pytest.fixture(scope="module")
def whole(data: Path) -> RunFolder:
    """A run that nothing interrupted."""
    train(tiny_run(data, *OVERRIDES, f"runs={data / 'whole'}"), load_registry(), progress=silent())
    return only_run(data / "whole")


def only_run(runs: Path) -> RunFolder:
    (path,) = runs.iterdir()
    return RunFolder.open(path)


def without_times(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: without_times(v) for k, v in value.items() if k not in TIMES}
    return [without_times(v) for v in value] if isinstance(value, list) else value


def assert_same(folder: RunFolder, other: RunFolder) -> None:
    """Metrics, history, and both checkpoints with all that is in them."""
    assert without_times(folder.metrics()) == without_times(other.metrics())
    assert without_times(folder.rows()) == without_times(other.rows())
    for name in (keeping.BEST, keeping.LAST):
        (first, a), (second, b) = (checkpoint.load(f.checkpoints / name) for f in (folder, other))
        assert first.keys() == second.keys() and len(first) > 50
        for key, tensor in first.items():
            assert torch.equal(tensor, second[key]), f"{name}: {key}"
        a, b = without_times(a), without_times(b)
        a["config"]["runs"] = b["config"]["runs"]
        assert a == b


def stopped(run: RunConfig, at: str, step: int, number: int = signal.SIGTERM) -> tuple[RunFolder, Stopped]:
    """Trains until `at` of step `step` ("step", or inside "validate"), where the signal comes."""
    with pytest.raises(Stopped) as caught, contextlib.ExitStack() as resources:
        training = Training(run, load_registry(), None, silent(), ["gemkit", "train"], resources)
        inner: Callable[..., Any] = getattr(training, at)

        def signalled(*arguments: Any) -> Any:
            if training.state.step == step:
                os.kill(os.getpid(), number)
            return inner(*arguments)

        setattr(training, at, signalled)
        with training.stop:
            training.fit()
            training.finish()
    return training.folder, caught.value


@pytest.mark.parametrize(
    ("at", "step"),
    [("step", 0), ("step", 1), ("step", 4), ("step", 7), ("validate", 5), ("step", 10), ("validate", 13)],
)
def test_stopped_and_resumed_equals_uninterrupted(
    data: Path, tmp_path: Path, whole: RunFolder, at: str, step: int
) -> None:
    run = tiny_run(data, *OVERRIDES, f"runs={tmp_path}")
    folder, _ = stopped(run, at, step)
    done = step if at == "validate" else step + 1
    assert inspect_run(folder.path)["step"] == done
    train(run, load_registry(), folder.path, progress=silent())
    assert_same(folder, whole)


def test_the_same_sentence_goes_on_with_a_run_that_has_not_ended(data: Path, tmp_path: Path, whole: RunFolder) -> None:
    run = tiny_run(data, *OVERRIDES, "train.autoresume=true", f"runs={tmp_path}")
    folder, _ = stopped(run, "step", 4)
    train(dataclasses.replace(run, seed=run.seed + 1), load_registry(), progress=silent())  # newer, another run
    train(run, load_registry(), progress=silent())
    assert len(list(tmp_path.iterdir())) == 2 and without_times(folder.rows()) == without_times(whole.rows())
    train(run, load_registry(), progress=silent())  # that one has come to its end
    assert len(list(tmp_path.iterdir())) == 3


def test_a_run_with_teachers_resumes_too(data: Path, tmp_path: Path) -> None:
    """With heads and an adapter beside the student, their optimisers, and gates that remember."""
    dataset = open_dataset(tiny_run(data), load_registry(), silent())
    write_log(tmp_path / "log", dataset)
    overrides = [*OVERRIDES, "transfer=[auxiliary_head,student_adapter,representation]", f"transfer.log={tmp_path}/log"]
    overrides += ["transfer.parts.student_adapter.gate=true", "transfer.parts.auxiliary_head.gate=true"]
    train(tiny_run(data, *overrides, f"runs={tmp_path / 'whole'}"), load_registry(), progress=silent())
    run = tiny_run(data, *overrides, f"runs={tmp_path / 'stopped'}")
    folder, _ = stopped(run, "step", 6)
    train(run, load_registry(), folder.path, progress=silent())
    assert_same(folder, only_run(tmp_path / "whole"))
    gates = [row["transfer/auxiliary_head/gate/click"] for row in folder.rows() if row["split"] == "train"]
    assert gates[-1] < 1, "the gate has nothing to remember"


def test_stopped_while_the_test_split_is_evaluated(data: Path, tmp_path: Path, whole: RunFolder) -> None:
    run = tiny_run(data, *OVERRIDES, f"runs={tmp_path}")
    folder, _ = stopped(run, "finish", 13)
    assert not (folder.path / "metrics.json").exists()
    train(run, load_registry(), folder.path, progress=silent())
    assert_same(folder, whole)


def test_the_message_says_how_to_go_on(data: Path, tmp_path: Path) -> None:
    folder, stop = stopped(tiny_run(data, *OVERRIDES, f"runs={tmp_path}"), "step", 2, signal.SIGINT)
    assert f"stopped at step 3 of 13; a checkpoint is written\n  go on:   gemkit train --resume {folder.path}" in str(
        stop
    )
    assert stop.exit_code == 130
    assert str(stop) in (folder.path / "log.txt").read_text()
    assert inspect_run(folder.path)["state"].startswith("stopped with a checkpoint of step 3; go on: ")


def test_ctrl_c_on_the_command_line_exits_with_130(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tiny_run(data, *OVERRIDES, f"runs={tmp_path}")
    folder, _ = stopped(run, "step", 2)
    step = Training.step

    def signalled(self: Training, batches: Any) -> Any:
        os.kill(os.getpid(), signal.SIGINT)
        return step(self, batches)

    monkeypatch.setattr(Training, "step", signalled)
    before = signal.getsignal(signal.SIGINT)
    assert main(["train", "--resume", str(folder.path)]) == 130
    assert signal.getsignal(signal.SIGINT) is before
    assert f"gemkit train --resume {folder.path}" in capsys.readouterr().err
    assert inspect_run(folder.path)["step"] == 4


def test_a_damaged_last_checkpoint_falls_back_to_the_one_before(data: Path, tmp_path: Path, whole: RunFolder) -> None:
    run = tiny_run(data, *OVERRIDES, f"runs={tmp_path}")
    folder, _ = stopped(run, "step", 9)
    files = sorted(p.name for p in folder.checkpoints.iterdir())
    assert files == ["best.safetensors", "last.safetensors", "step-00000008.safetensors"]
    last = folder.checkpoints / keeping.LAST
    damaged = bytearray(last.read_bytes())
    damaged[-100] ^= 1
    last.write_bytes(damaged)
    rows = {row["file"]: row["sound"] for row in inspect_run(folder.path, verify=True)["checkpoints"]}
    assert rows == {"best.safetensors": True, "last.safetensors": False, "step-00000008.safetensors": True}
    assert main(["inspect", str(folder.path), "--verify"]) == 2
    train(run, load_registry(), folder.path, progress=silent())
    assert_same(folder, whole)
    assert "do not match its sha256; trying the one before" in (folder.path / "log.txt").read_text()


def test_a_run_that_was_killed_before_its_first_checkpoint_starts_again(
    data: Path, tmp_path: Path, whole: RunFolder
) -> None:
    run = tiny_run(data, *OVERRIDES, f"runs={tmp_path}")
    folder, _ = stopped(run, "step", 3)
    for path in folder.checkpoints.iterdir():
        path.unlink()
    assert inspect_run(folder.path)["state"].startswith("stopped before its first checkpoint; go on: ")
    train(run, load_registry(), folder.path, progress=silent())
    assert_same(folder, whole)


@pytest.mark.parametrize("keep", [0, 1, 3])
def test_older_checkpoints_are_pruned(data: Path, tmp_path: Path, keep: int) -> None:
    overrides = ["train.max_steps=6", "train.checkpoint_every=1", f"train.keep_checkpoints={keep}"]
    train(tiny_run(data, *overrides, f"runs={tmp_path}"), load_registry(), progress=silent())
    names = sorted(p.name for p in only_run(tmp_path).checkpoints.iterdir())
    older = [f"step-{step:08d}.safetensors" for step in range(6 - keep, 6)]
    assert names == ["best.safetensors", "last.safetensors", *older]
    steps = [checkpoint.summarise(only_run(tmp_path).checkpoints / name).state["counters"]["step"] for name in older]
    assert steps == list(range(6 - keep, 6))


@pytest.fixture
def run(data: Path, tmp_path: Path) -> Iterator[tuple[RunConfig, RunFolder]]:
    """A run that stopped after three steps."""
    config = tiny_run(data, *OVERRIDES, f"runs={tmp_path}")
    yield config, stopped(config, "step", 2)[0]


def test_a_run_folder_in_use_is_refused(run: tuple[RunConfig, RunFolder]) -> None:
    config, folder = run
    assert not is_locked(folder.path)
    with locked(folder.path):
        assert is_locked(folder.path)
        assert inspect_run(folder.path)["state"].startswith(f"running: process {os.getpid()} on ")
        with pytest.raises(GemkitError, match=f"is in use by process {os.getpid()}"):
            train(config, load_registry(), folder.path, progress=silent())
    assert not is_locked(folder.path)
    train(config, load_registry(), folder.path, progress=silent())


def test_another_config_is_refused_with_the_first_differences(run: tuple[RunConfig, RunFolder], data: Path) -> None:
    config, folder = run
    other = tiny_run(data, *OVERRIDES, f"runs={config.runs}", "optimizer.lr=0.5", "train.num_threads=1")
    with pytest.raises(GemkitError, match=r"of another config: 1 .* optimizer.lr: 0.5 here, 0.001 in the checkpoint"):
        train(other, load_registry(), folder.path, progress=silent())
    allowed = tiny_run(data, *OVERRIDES, f"runs={config.runs}", "train.num_threads=1", "train.checkpoint_every=2")
    train(allowed, load_registry(), folder.path, progress=silent())


def test_a_full_disk_is_noticed_before_training_and_before_each_checkpoint(
    run: tuple[RunConfig, RunFolder], monkeypatch: pytest.MonkeyPatch
) -> None:
    config, folder = run
    before = (folder.checkpoints / keeping.LAST).read_bytes()
    usage = keeping.shutil.disk_usage(folder.path)
    monkeypatch.setattr(keeping.shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(GemkitError, match=r"a checkpoint needs .* MB, and 0.0 MB are free"):
        train(config, load_registry(), folder.path, progress=silent())
    monkeypatch.setattr("gemkit.prepare.check_room", lambda *arguments: None)
    with pytest.raises(GemkitError) as caught:
        train(config, load_registry(), folder.path, progress=silent())
    assert f"gemkit train --resume {folder.path}" in str(caught.value.fix)
    assert (folder.checkpoints / keeping.LAST).read_bytes() == before
    monkeypatch.undo()
    train(config, load_registry(), folder.path, progress=silent())


def test_a_folder_that_became_read_only_keeps_its_checkpoints(
    data: Path, open_folder: Path, without_rights: WithoutRights
) -> None:
    run = tiny_run(data, *OVERRIDES, f"runs={open_folder}")
    with contextlib.ExitStack() as resources:
        training = Training(run, load_registry(), None, silent(), ["gemkit", "train"], resources)
        training.clock = Clock(0.0, 0)
        training.save()
        last = training.folder.checkpoints / keeping.LAST
        before = last.read_bytes()
        training.state.step = 7
        training.folder.checkpoints.chmod(0o555)
        with without_rights(), pytest.raises(GemkitError, match=r"cannot write .*: Permission denied") as caught:
            training.save()
        assert f"gemkit train --resume {training.folder.path}" in str(caught.value.fix)
        assert last.read_bytes() == before and sorted(training.folder.checkpoints.iterdir()) == [last]


def test_leftovers_of_a_killed_process_are_removed(run: tuple[RunConfig, RunFolder]) -> None:
    config, folder = run
    leftover = folder.checkpoints / ".last.safetensors.0badcafe.tmp"
    leftover.write_bytes(b"half")
    train(config, load_registry(), folder.path, progress=silent())
    assert not leftover.exists()


def test_the_log_rotates(run: tuple[RunConfig, RunFolder], monkeypatch: pytest.MonkeyPatch) -> None:
    config, folder = run
    monkeypatch.setattr("gemkit.runs.log.MAX_BYTES", 300)
    train(config, load_registry(), folder.path, progress=silent())
    files = sorted(folder.path.glob("log.txt*"))
    assert 1 < len(files) <= 4 and all(file.stat().st_size < 1000 for file in files)


def test_what_operations_say_at_each_step_is_in_the_log_once_and_nowhere_else(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Libraries give the root logger, where `caplog` listens, a handler that prints to the terminal."""
    with caplog.at_level(logging.INFO), logged(tmp_path, silent()):
        for _ in range(3):
            logging.getLogger("gemkit_kernels").info("an operation runs in PyTorch")
    assert (tmp_path / "log.txt").read_text().count("an operation runs") == 1 and not caplog.records
    logging.getLogger("gemkit_kernels").warning("afterwards as before")
    assert len(caplog.records) == 1


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda s: s["counters"].pop("step"), "KeyError"),
        (lambda s: s["rest"].pop("rng0"), "KeyError"),
        (lambda s: s["rest"].update(rng0={"$dict": [["python", [1, 2]]]}), "Error"),
        (lambda s: s.update(rest=[]), "TypeError"),
        (lambda s: s["schema"].update(surfaces=["x"]), "another schema: .*surfaces"),
        (lambda s: s.update(fingerprint="0" * 64), "has changed since the checkpoint"),
    ],
)
def test_a_forged_state_is_refused(
    run: tuple[RunConfig, RunFolder], change: Callable[[dict[str, Any]], Any], message: str
) -> None:
    """The sha256 protects against damage; against a stranger's file everything in it is checked."""
    config, folder = run
    for path in folder.checkpoints.glob("step-*"):
        path.unlink()
    tensors, state = checkpoint.load(folder.checkpoints / keeping.LAST)
    change(state)
    checkpoint.save(folder.checkpoints / keeping.LAST, tensors, state)
    with pytest.raises(GemkitError, match=message):
        train(config, load_registry(), folder.path, progress=silent())


@pytest.mark.parametrize("state", [{}, {"schema": [1], "counters": 3, "fingerprint": {}, "step": "x"}])
def test_inspecting_a_forged_header_tells_nothing_and_does_not_fail(
    run: tuple[RunConfig, RunFolder], state: dict[str, Any]
) -> None:
    _, folder = run
    for path in folder.checkpoints.iterdir():
        checkpoint.save(path, {"dense.x": torch.zeros(2)}, state)
    assert main(["inspect", str(folder.path), "--verify"]) == 0


def test_a_pickle_in_place_of_a_checkpoint_runs_nothing(run: tuple[RunConfig, RunFolder], tmp_path: Path) -> None:
    config, folder = run
    trap = tmp_path / "trap"

    class Payload:
        def __reduce__(self) -> tuple[Any, ...]:
            return (Path.touch, (trap,))

    for path in folder.checkpoints.iterdir():
        torch.save({"model": Payload()}, path)
    with pytest.raises(GemkitError, match="cannot be read"):
        train(config, load_registry(), folder.path, progress=silent())
    assert main(["evaluate", str(folder.path)]) == 2
    assert main(["inspect", str(folder.path)]) == 2
    assert not trap.exists()


def test_damaged_metrics_are_named(run: tuple[RunConfig, RunFolder], capsys: pytest.CaptureFixture[str]) -> None:
    config, folder = run
    train(config, load_registry(), folder.path, progress=silent())
    metrics = folder.metrics()
    (folder.path / "metrics.json").write_text('{"test": ')
    assert main(["inspect", str(folder.path)]) == 2
    assert "metrics.json is damaged" in capsys.readouterr().err
    train(config, load_registry(), folder.path, progress=silent())
    assert without_times(folder.metrics()) == without_times(metrics)


def test_inspect_shows_what_is_inside(whole: RunFolder, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["inspect", str(whole.path), "--verify"]) == 0
    text = capsys.readouterr().out
    for part in (
        "finished",
        "interaction=wukong",
        "seed=1",
        "last.safetensors",
        "dense.blocks.0",
        "tables.",
        "test click",
    ):
        assert part in text, part
    assert main(["inspect", str(whole.path), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert sum(facts["parameters"].values()) == facts["metrics"]["train"]["params"]
    assert [row["step"] for row in facts["checkpoints"]][1] == 13


@pytest.mark.slow
def test_killed_at_random_moments(tmp_path: Path) -> None:
    """The benchmark in small: its exit code says whether the bits are the same."""
    script = Path(__file__).resolve().parents[2] / "benchmarks" / "robustness_kills.py"
    words = [sys.executable, str(script), "--count", "3", "--out", str(tmp_path / "kills.json")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    assert json.loads((tmp_path / "kills.json").read_text())["kills"] == 3
