"""The run folder: made whole, found again, and its history."""

from __future__ import annotations

import importlib.metadata
import json
import subprocess
import threading
from pathlib import Path

import numpy as np
import pytest
import torch

import gemkit
from gemkit.errors import GemkitError
from gemkit.runs import folder as folder_module
from gemkit.runs.environment import describe_environment, git_state
from gemkit.runs.files import replacing, write_text
from gemkit.runs.folder import RunFolder

COMMAND = ["gemkit", "train", "data=movielens1m", "transfer.aux={a: 1}"]


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    return RunFolder.create(tmp_path / "runs", "wukong-pyramid_s1", "seed: 1\n", COMMAND, {"gemkit_wukong": "0.1.0"})


def test_a_new_folder_holds_config_command_and_environment(run: RunFolder) -> None:
    assert run.config_yaml == "seed: 1\n"
    assert (run.path / "command.txt").read_text() == "gemkit train data=movielens1m 'transfer.aux={a: 1}'\n"
    environment = json.loads((run.path / "environment.json").read_text())
    assert environment["gemkit"] == gemkit.__version__
    assert environment["plugins"] == {"gemkit_wukong": "0.1.0"}
    assert environment["packages"]["torch"] == importlib.metadata.version("torch")
    assert environment["threads"] == torch.get_num_threads()
    assert environment["memory_bytes"] > 2**28
    assert run.checkpoints.is_dir()
    assert run.rows() == []
    assert RunFolder.open(run.path) == run
    assert run.path.name.endswith("_wukong-pyramid_s1")
    assert len(list(run.path.parent.iterdir())) == 1  # no draft left


def test_slug_becomes_a_file_name(tmp_path: Path) -> None:
    run = RunFolder.create(tmp_path, "../a b/ç interaction=wukong" + "x" * 300, "", ["gemkit"])
    assert run.path.parent == tmp_path
    assert run.path.name[20:].startswith("a-b-interaction=wukong")
    assert len(run.path.name) < 130


def test_runs_that_start_together_get_folders_of_their_own(tmp_path: Path) -> None:
    runs: list[RunFolder] = []
    threads = [
        threading.Thread(target=lambda i=i: runs.append(RunFolder.create(tmp_path, "same", f"seed: {i}\n", ["x"])))
        for i in range(6)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({run.path for run in runs}) == 6
    assert {run.config_yaml for run in runs} == {f"seed: {i}\n" for i in range(6)}


def test_a_failure_while_making_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(plugins: object) -> dict[str, object]:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(folder_module, "describe_environment", fail)
    with pytest.raises(GemkitError, match=r"No space left(.|\n)*free some space"):
        RunFolder.create(tmp_path, "x", "", ["x"])
    assert list(tmp_path.iterdir()) == []


def test_runs_that_is_a_file_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "runs").write_text("")
    with pytest.raises(GemkitError, match="cannot write runs"):
        RunFolder.create(tmp_path / "runs", "x", "", ["x"])


def test_open_says_what_is_wrong(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(GemkitError, match=f"does not exist(.|\n)*did you mean '{run.path.name}'"):
        RunFolder.open(run.path.with_name(run.path.name + "x"))
    with pytest.raises(GemkitError, match="is a file"):
        RunFolder.open(run.path / "config.yaml")
    with pytest.raises(GemkitError, match=r"not a run folder(.|\n)*one of the folders inside"):
        RunFolder.open(run.path.parent)
    (tmp_path / "other").mkdir()
    with pytest.raises(GemkitError, match=r"not a run folder(.|\n)*config\.yaml"):
        RunFolder.open(tmp_path / "other")


def test_history_holds_numbers_only_json_knows(run: RunFolder) -> None:
    run.append(10, "train", {"loss": torch.tensor(0.5), "lr": np.float32(0.25), "grad_norm": float("inf")})
    run.append(10, "valid", {"like": {"auc": 0.75, "gauc_impressions": None, "surfaces": {"feed": {"auc": 1}}}})
    assert run.rows() == [
        {"step": 10, "split": "train", "loss": 0.5, "lr": 0.25, "grad_norm": None},
        {
            "step": 10,
            "split": "valid",
            "like": {"auc": 0.75, "gauc_impressions": None, "surfaces": {"feed": {"auc": 1}}},
        },
    ]


def test_rewind_drops_what_came_after_the_checkpoint_and_a_torn_line(run: RunFolder) -> None:
    for step in (10, 20, 30):
        run.append(step, "train", {"loss": 1 / step})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write('{"step": 40, "spl')
    assert [row["step"] for row in run.rows()] == [10, 20, 30]
    run.rewind(20)
    run.append(21, "train", {"loss": 0.1})
    assert [row["step"] for row in run.rows()] == [10, 20, 21]


def test_a_damaged_line_is_named(run: RunFolder) -> None:
    run.append(1, "train", {})
    with (run.path / "metrics.jsonl").open("a") as file:
        file.write("[1]\n")
    with pytest.raises(GemkitError, match="line 2"):
        run.rows()


def test_final_metrics(run: RunFolder) -> None:
    with pytest.raises(GemkitError, match=r"has not finished(.|\n)*--resume"):
        run.metrics()
    run.write_metrics({"test": {"like": {"auc": 0.8, "ne": float("nan")}}})
    assert run.metrics() == {"test": {"like": {"auc": 0.8, "ne": None}}}


def test_replacing_keeps_the_old_file_when_writing_fails(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text(path, "old")
    with pytest.raises(RuntimeError), replacing(path) as temporary:
        temporary.write_text("half")
        raise RuntimeError
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_git_state_is_that_of_the_checkout_only(tmp_path: Path) -> None:
    def git(*arguments: str) -> None:
        identity = ["-c", "user.name=a", "-c", "user.email=a@example.org"]
        subprocess.run(["git", "-C", str(tmp_path), *identity, *arguments], check=True, capture_output=True)

    assert git_state(tmp_path) is None
    git("init")
    (tmp_path / "a.txt").write_text("1")
    git("add", "a.txt")
    git("commit", "-m", "a")
    clean = git_state(tmp_path)
    assert clean is not None and len(clean["commit"]) == 40 and clean["dirty"] is False
    (tmp_path / "a.txt").write_text("2")
    assert git_state(tmp_path) == {"commit": clean["commit"], "dirty": True}
    (tmp_path / "site-packages").mkdir()
    assert git_state(tmp_path / "site-packages") is None


def test_environment_is_json() -> None:
    assert json.loads(json.dumps(describe_environment())) == describe_environment()


@pytest.mark.usefixtures("pictures")
def test_curves(run: RunFolder, tmp_path: Path) -> None:
    from matplotlib.image import imread

    run.draw_curves()
    empty = imread(run.curves)
    for step in range(0, 100, 10):
        run.append(step, "train", {"loss": 1 / (step + 1), "lr": 1e-3, "examples_per_s": 3e4, "grad_norm": None})
    run.append(90, "valid", {"like": {"auc": 0.7, "logloss": 0.5}, "love": {"auc": None, "logloss": 0.4}})
    run.draw_curves()
    full = imread(run.curves)
    assert full.shape[0] > 1.5 * empty.shape[0]  # several panels
    assert sorted(p.name for p in run.path.iterdir() if "tmp" in p.name) == []
