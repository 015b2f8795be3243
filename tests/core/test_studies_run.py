"""Studies end to end: tiny runs through the command line, stopped, failing, listed and gone on with."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import yaml

from gemkit.cli.main import main, parse
from gemkit.config.compose import compose
from gemkit.metrics import functional as M
from gemkit.registry import load_registry
from gemkit.runs.folder import RunFolder
from gemkit.runs.lock import locked
from gemkit.runs.predictions import load_predictions
from gemkit.studies import execute
from gemkit.studies.report import read_result
from gemkit.studies.result import StudyResult
from gemkit.studies.statistics import NORMAL_95, t_quantile
from gemkit.testing.runs import SMALL, table_config

pytestmark = pytest.mark.xdist_group("studies")
"""On one worker, so that the study that many tests look at is run once."""

SHORT = (*SMALL, "size.num_blocks=1", "train.batch_size=64", "sequence=none", "cross=none", "train.eval_every=2")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a small data set, ``data=tiny``."""
    folder = tmp_path_factory.mktemp("studies")
    (folder / "configs" / "data").mkdir(parents=True)
    values = table_config(folder / "data", num_users=20, num_examples=500, num_events=500)
    (folder / "configs" / "data" / "tiny.yaml").write_text(yaml.safe_dump(values))
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def ablate(out: str, *words: str, steps: int = 4) -> list[str]:
    """The command line of a tiny study."""
    base = ["data=tiny", *SHORT, f"train.max_steps={steps}"]
    return ["ablate", "--config-dir", "configs", *base, "--out", out, "--resamples", "100", *words]


FIRST = ("--toggle", "interaction=none", "--jobs", "2")


@pytest.fixture(scope="module")
def study(home: Path) -> StudyResult:
    """Two seeds of the base and of a variant: the listed commands, run one by one, and then collected."""
    words = ablate("studies/first", *FIRST, "--seeds", "2")
    with contextlib.redirect_stdout(io.StringIO()) as listed:
        assert main([*words, "--list"]) == 0
    for line in listed.getvalue().splitlines():
        assert main(shlex.split(line)[1:]) == 0
    assert main(words) == 0
    return read_result(Path("studies/first"))


def run_folder(variant: str, seed: int, out: str = "studies/first") -> Path:
    (path,) = (p.parent for p in Path(out, "runs", variant, f"seed{seed}").glob("*/config.yaml"))
    return path


# --- what a study leaves ------------------------------------------------------------------------------------


def test_scores_are_those_of_the_runs(study: StudyResult) -> None:
    base, variant = study.variants
    assert (base.name, variant.name) == ("base", "interaction=none")
    for result, folder in ((base, "base"), (variant, "interaction-none")):
        for task in ("click", "buy"):
            for metric in ("auc", "logloss", "ne", "gauc_impressions", "calibration"):
                values = [RunFolder(run_folder(folder, s)).metrics()["test"][task][metric] for s in (1, 2)]
                score = result.scores[task][metric]
                assert score.by_seed == tuple(values)
                assert (score.mean, score.sd) == (pytest.approx(mean(values)), pytest.approx(stdev(values)))
        train = RunFolder(run_folder(folder, 1)).metrics()["train"]
        assert result.params == train["params"] and result.flops_per_example == train["flops_per_example"]
    assert set(base.scores["click"]) >= {"auc", "ece", "pr_auc"} and "examples" not in base.scores["click"]


def test_differences_are_paired_by_seed(study: StudyResult) -> None:
    base, variant = study.variants
    assert base.differences == {} and "calibration" not in variant.differences["click"]
    for metric in ("auc", "ne", "gauc_impressions"):
        pairs = zip(variant.scores["click"][metric].by_seed, base.scores["click"][metric].by_seed, strict=True)
        by_seed = [v - b for v, b in pairs if v is not None and b is not None]
        one = variant.differences["click"][metric]
        assert one.mean == pytest.approx(mean(by_seed)) and one.num_seeds == 2
        assert one.seeds_part == pytest.approx(t_quantile(1) * stdev(by_seed) / 2**0.5)
        assert (one.examples_part is None) == (metric == "gauc_impressions")
        half = ((one.seeds_part or 0) ** 2 + (one.examples_part or 0) ** 2) ** 0.5
        assert (one.low, one.high) == (pytest.approx(one.mean - half), pytest.approx(one.mean + half))
    ne, logloss = (variant.differences["click"][m].examples_part for m in ("ne", "logloss"))
    base_run = RunFolder(run_folder("base", 1)).metrics()["test"]["click"]
    assert ne is not None and logloss is not None
    assert ne / logloss == pytest.approx(base_run["ne"] / base_run["logloss"])


def test_the_chance_of_examples_is_that_of_their_losses(study: StudyResult) -> None:
    found = {(v, s): load_predictions(run_folder(v, s)) for v in ("base", "interaction-none") for s in (1, 2)}

    def losses(variant: str, seed: int) -> np.ndarray:
        p = found[variant, seed]
        assert p is not None
        keep = p.masks[:, 0]
        z = p.logits[keep, 0].astype(np.float64)
        return np.logaddexp(0, z) - p.labels[keep, 0] * z

    by_example = np.mean([losses("interaction-none", s) - losses("base", s) for s in (1, 2)], axis=0)
    weights = found["base", 1].weights[found["base", 1].masks[:, 0]].astype(np.float64)  # type: ignore[union-attr]
    center = (weights * by_example).sum() / weights.sum()
    expected = NORMAL_95 * ((weights * (by_example - center)) ** 2).sum() ** 0.5 / weights.sum()
    part = study.variants[1].differences["click"]["logloss"].examples_part
    assert part == pytest.approx(expected, rel=0.35)  # of 100 resamples


def test_predictions_are_what_the_metrics_were_made_of(study: StudyResult) -> None:
    import torch

    for folder in (run_folder("base", 2), run_folder("interaction-none", 1)):
        found = load_predictions(folder)
        assert found is not None and found.tasks == ("click", "buy")
        assert (np.diff(found.example_id) > 0).all() and found.masks.any(1).all()
        for p, task in enumerate(found.tasks):
            keep = found.masks[:, p] & (found.weights > 0)
            columns = (found.logits[:, p], found.labels[:, p], found.weights)
            z, y, w = (torch.from_numpy(x[keep].astype(np.float64)) for x in columns)
            metrics = RunFolder(folder).metrics()["test"][task]
            assert M.auc(z, y, w) == pytest.approx(metrics["auc"])
            assert M.logloss(z, y, w) == pytest.approx(metrics["logloss"])


def test_all_reports_are_there(study: StudyResult) -> None:
    assert not any(v.failures for v in study.variants)
    assert study.num_examples == len(load_predictions(run_folder("base", 1)).example_id)  # type: ignore[union-attr]
    assert "| interaction=none |" in Path("studies/first/report.md").read_text()
    assert "first,interaction=none,click,ne,2," in Path("studies/first/report.csv").read_text()
    assert Path("studies/first/report.html").read_text().lstrip().lower().startswith("<!doctype html>")


def test_configs_and_curves_are_in_the_result(study: StudyResult) -> None:
    base, variant = study.variants
    assert (
        yaml.safe_load(variant.config)["interaction"] == "none" or yaml.safe_load(variant.config)["interaction"] is None
    )
    assert "seed" not in yaml.safe_load(base.config) and "runs" not in yaml.safe_load(base.config)
    changed = [line for line in variant.config_diff.splitlines() if line[0] in "+-" and line[:3] not in ("+++", "---")]
    assert any(line.startswith("-") and "wukong" in line for line in changed)
    assert [row["step"] for row in base.curves[1]] == [2, 4]
    assert [row["examples"] for row in base.curves[1]] == [128, 256] and 0 < base.curves[1][0]["auc"] < 1


def test_runs_share_the_cores(study: StudyResult) -> None:
    config = yaml.safe_load((run_folder("base", 1) / "config.yaml").read_text())
    assert (config["train"]["num_threads"], config["train"]["save_predictions"], config["seed"]) == (
        max(1, len(os.sched_getaffinity(0)) // 2),
        True,
        1,
    )


# --- again, elsewhere, otherwise ----------------------------------------------------------------------------


def test_what_has_finished_is_not_run_again(study: StudyResult, capsys: pytest.CaptureFixture[str]) -> None:
    before = {path: path.stat().st_mtime_ns for path in Path("studies/first/runs").rglob("*")}
    assert main(["ablate", "--out", "studies/first"]) == 0
    assert "4 runs, 4 finished before" in capsys.readouterr().out
    assert {path: path.stat().st_mtime_ns for path in Path("studies/first/runs").rglob("*")} == before
    assert read_result(Path("studies/first")) == study


def test_the_commands_of_what_is_left(study: StudyResult, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["ablate", "--out", "studies/first", "--seeds", "3", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[:2] for line in lines] == [["gemkit", "train"]] * 2
    runs = []
    for line in lines:
        args = parse(shlex.split(line)[1:])
        run = compose(args.overrides, load_registry(), args.config_dir)
        assert run.seed == 3 and run.train.save_predictions and run.train.num_threads is None  # no --jobs
        runs.append(run.runs)
    assert runs == [f"studies/first/runs/{name}/seed3" for name in ("base", "interaction-none")]
    assert json.loads(Path("studies/first/study.json").read_text())["seeds"] == [1, 2, 3]


def test_what_has_finished_is_reported(home: Path, study: StudyResult, capsys: pytest.CaptureFixture[str]) -> None:
    words = ablate("studies/half", *FIRST, "--seeds", "2")
    assert main([*words, "--list"]) == 0
    capsys.readouterr()
    assert main(["ablate", "--out", "studies/half", "--report"]) == 0
    assert "nothing to report" in capsys.readouterr().out
    shutil.copytree("studies/first/runs/base/seed1", "studies/half/runs/base/seed1")
    assert main(["ablate", "--out", "studies/half", "--report"]) == 0
    base, variant = read_result(Path("studies/half")).variants
    assert base.scores["click"]["ne"].by_seed == (study.variants[0].scores["click"]["ne"].by_seed[0], None)
    assert (variant.scores, variant.differences) == ({}, {})
    shutil.copytree("studies/first/runs/interaction-none", "studies/half/runs/interaction-none")
    assert main(["ablate", "--out", "studies/half", "--report"]) == 0
    result = read_result(Path("studies/half"))
    one = result.variants[1].differences["click"]["ne"]
    assert (one.num_seeds, one.low, one.verdict, one.seeds_needed) == (1, None, "not resolved", None)
    assert one.examples_part is not None
    assert "1 of 4 runs not finished: base (seed 2)." in result.notes
    assert main(["ablate", "--out", "studies/nothing", "--report"]) == 2


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--toggle", "interaction=dcnv2", "--seeds", "3"], "variant interaction=none is only there"),
        ([*FIRST, "--seeds", "1"], "there, not here"),
        ([*FIRST, "--seeds", "3", "train.epochs=2"], "variant base.train.epochs: 2 here, 1 there"),
        ([*FIRST, "--seeds", "3", "--task", "like"], "the data set has no task like"),
    ],
)
def test_another_study_is_refused(
    study: StudyResult, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(ablate("studies/first", *words)) == 2
    assert said in capsys.readouterr().err


def test_one_process_works_on_a_study(study: StudyResult, capsys: pytest.CaptureFixture[str]) -> None:
    with locked(Path("studies/first")):
        assert main(["ablate", "--out", "studies/first"]) == 2
    assert f"studies/first is in use by process {os.getpid()}" in capsys.readouterr().err


def test_runs_with_other_test_examples_are_refused(study: StudyResult, capsys: pytest.CaptureFixture[str]) -> None:
    """Somebody has built the data set anew between two runs."""
    path = run_folder("interaction-none", 2) / "predictions.safetensors"
    before = path.read_bytes()
    found = load_predictions(path.parent)
    assert found is not None
    from gemkit.runs.predictions import save_predictions

    try:
        moved = found._replace(example_id=found.example_id + 1)._asdict()
        save_predictions(path.parent, found.tasks, moved)
        assert main(["ablate", "--out", "studies/first", "--report"]) == 2
        shown = capsys.readouterr().err
        assert "the runs base, seed 1 and interaction=none, seed 2 have other test examples" in shown
        path.write_bytes(b"no safetensors")
        assert main(["ablate", "--out", "studies/first", "--report"]) == 2
        assert "predictions.safetensors cannot be read" in capsys.readouterr().err
    finally:
        path.write_bytes(before)


def test_variants_with_other_test_examples_are_refused(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    values = yaml.safe_load(Path("configs/data/tiny.yaml").read_text())
    other = table_config(home / "other", num_users=20, num_examples=300, num_events=300)
    Path("configs/data/other.yaml").write_text(yaml.safe_dump(values | other | {"folder": "other"}))
    assert main(ablate("studies/other", "--toggle", "data=other", "--seeds", "1")) == 2
    assert "variant 'data=other' is tested on other examples than the base" in capsys.readouterr().err
    assert not Path("studies/other").exists()


def test_variants_do_not_build_each_others_data_anew(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(ablate("studies/anew", "--toggle", "data.min_count=1,2", "--seeds", "1")) == 2
    shown = capsys.readouterr().err
    assert "variant 'data.min_count=2' would build the data set of others anew" in shown


def test_costs_are_matched_before_anything_starts(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["interaction=dlrm", "--toggle", "interaction=dcnv2", "--match", "params", "--seeds", "1", "--list"]
    assert main(ablate("studies/matched", *words)) == 0
    assert "interaction.hidden=[" in capsys.readouterr().out
    (variant,) = list(json.loads(Path("studies/matched/study.json").read_text())["variants"].values())[1:]
    assert list(variant["matched"]) == ["interaction.hidden"]
    ratio = float(variant["note"].partition("]: ")[2].partition(" ")[0]) if "]: " in variant["note"] else None
    assert ratio is not None and abs(ratio - 1) <= 0.02


# --- stopping -----------------------------------------------------------------------------------------------


def start(words: list[str]) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "gemkit.cli.main", *words], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def wait_for(condition: Callable[[], Any], seconds: float = 60) -> None:
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.05)


def test_a_study_that_is_stopped_goes_on(home: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What is under way writes a checkpoint, from which it goes on."""
    words = ablate("studies/stopped", "--toggle", "interaction=none", "--seeds", "1", "--jobs", "1", steps=100)
    # An epoch has a few steps only: these are enough for the signal to come before the end.
    process = start([*words, "train.epochs=1000", "train.eval_every=50", "train.checkpoint_every=5"])
    base = Path("studies/stopped/runs/base/seed1")
    try:
        wait_for(lambda: list(base.glob("*/checkpoints/last.safetensors")))
        process.send_signal(signal.SIGTERM)
        shown, _ = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 143, shown
    assert "stopping: what is under way writes a checkpoint" in shown and "nothing to report" in shown
    assert "go on:   gemkit ablate --out studies/stopped" in shown
    assert sorted(p.name for p in base.parent.parent.iterdir()) == ["base"]
    folder = run_folder("base", 1, "studies/stopped")
    assert "stopped at step" in (folder / "log.txt").read_text()
    assert not (folder / "metrics.json").exists() and not (base / "error.txt").exists()
    assert main(["ablate", "--out", "studies/stopped", "--list"]) == 0
    resumed, new = [shlex.split(line) for line in capsys.readouterr().out.splitlines()]
    assert resumed == ["gemkit", "train", "--resume", str(folder)]
    assert new[-2:] == ["runs=studies/stopped/runs/interaction-none/seed1", "train.save_predictions=true"]
    assert main(["ablate", "--out", "studies/stopped", "--jobs", "2"]) == 0
    assert "2 runs, 0 finished before, 2 at a time" in capsys.readouterr().out
    assert folder == run_folder("base", 1, "studies/stopped") and (folder / "metrics.json").exists()
    result = read_result(Path("studies/stopped"))
    assert result.variants[1].differences["click"]["auc"].num_seeds == 1
    assert any("One seed says nothing" in note for note in result.notes)


# --- the executor, with a program that only looks like a training ---------------------------------------------

FAKE = """
import json, os, pathlib, sys, time
words = dict(word.split("=", 1) for word in sys.argv[2:] if "=" in word)
folder = pathlib.Path(words["runs"]) / "now"
(folder / "checkpoints").mkdir(parents=True)
(folder / "config.yaml").write_text("")
started = time.monotonic()
time.sleep(0.4)
facts = {"threads": os.environ["OMP_NUM_THREADS"], "num_threads": words["train.num_threads"], "started": started}
(folder / "facts.json").write_text(json.dumps(facts | {"ended": time.monotonic()}))
if words["interaction.rank"] == "3":
    print("one line\\n" * 50, "error: no", "  where:   here", sep="\\n")
    sys.exit(2)
if words["interaction.rank"] == "4":
    os.kill(os.getpid(), 9)
row = {"auc": 0.5, "logloss": 0.6, "ne": 0.9, "examples": 10}
metrics = {"test": {"click": row}, "train": {"examples_per_s": 1.0, "params": 1}}
(folder / "metrics.json").write_text(json.dumps(metrics))
"""


@pytest.fixture
def fake_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "fake.py").write_text(FAKE)
    monkeypatch.setattr(execute, "GEMKIT", (sys.executable, str(tmp_path / "fake.py")))


def facts_of(out: str) -> dict[tuple[int, int], dict[str, Any]]:
    """(rank, seed) -> what the fake training saw."""
    found = {}
    for path in Path(out, "runs").rglob("facts.json"):
        variant, seed = path.parts[-4], path.parts[-3]
        rank = 16 if variant == "base" else int(variant.rpartition("-")[2])
        found[rank, int(seed.removeprefix("seed"))] = json.loads(path.read_text())
    return found


@pytest.mark.usefixtures("fake_training", "home")
def test_seeds_come_one_after_the_other_and_jobs_at_once() -> None:
    words = ("--toggle", "interaction.rank=1,2", "--seeds", "2", "--jobs", "3", "interaction.rank=16")
    assert main(ablate("studies/fake", *words)) == 0
    facts = facts_of("studies/fake")
    assert sorted(facts) == [(rank, seed) for rank in (1, 2, 16) for seed in (1, 2)]
    first, second = ([facts[rank, seed] for rank in (16, 1, 2)] for seed in (1, 2))
    assert max(f["started"] for f in first) < min(f["ended"] for f in first)  # all three at once
    assert max(f["ended"] for f in first) < max(f["started"] for f in second)
    threads = str(max(1, len(os.sched_getaffinity(0)) // 3))
    assert {(f["threads"], f["num_threads"]) for f in facts.values()} == {(threads, threads)}


@pytest.mark.usefixtures("fake_training", "home")
def test_threads_that_the_user_chose_are_kept() -> None:
    words = (
        "--toggle",
        "interaction.rank=1",
        "--seeds",
        "1",
        "--jobs",
        "1",
        "interaction.rank=16",
        "train.num_threads=7",
    )
    assert main(ablate("studies/threads", *words)) == 0
    assert {(f["threads"], f["num_threads"]) for f in facts_of("studies/threads").values()} == {("7", "7")}


@pytest.mark.usefixtures("fake_training", "home")
def test_a_run_that_fails_does_not_stop_the_others(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("--toggle", "interaction.rank=3,4,5", "--seeds", "1", "--jobs", "2", "interaction.rank=16")
    assert main(ablate("studies/failing", *words)) == 1
    base, refused, killed, good = read_result(Path("studies/failing")).variants
    assert refused.failures == {1: "error: no\n  where:   here\n(exit code 2)"}
    assert killed.failures == {1: "(ended by SIGKILL)"}
    assert (refused.scores, refused.differences, refused.params, refused.curves) == ({}, {}, None, {})
    assert base.failures == good.failures == {} and good.differences["click"]["ne"].mean == 0
    shown = capsys.readouterr().out
    assert "interaction.rank=3, seed 1: failed" in shown and "    error: no" in shown
    assert "2 of 4 runs failed: interaction.rank=3 (seed 1), interaction.rank=4 (seed 1)." in shown
    assert "error: no" in Path("studies/failing/report.md").read_text()

    # They are tried again; the others are not.
    finished = {p: p.stat().st_mtime_ns for p in Path("studies/failing/runs").rglob("metrics.json")}
    for name in ("3", "4"):
        shutil.rmtree(f"studies/failing/runs/interaction.rank-{name}/seed1/now")
    assert main(["ablate", "--out", "studies/failing"]) == 1
    shown = capsys.readouterr().out
    assert "4 runs, 2 finished before" in shown and shown.count("seed 1: failed") == 2
    assert {p: p.stat().st_mtime_ns for p in Path("studies/failing/runs").rglob("metrics.json")} == finished

    # A run that finishes elsewhere has not failed.
    again = Path("studies/failing/runs/interaction.rank-3/seed1/now/metrics.json")
    shutil.copy("studies/failing/runs/base/seed1/now/metrics.json", again)
    assert main(["ablate", "--out", "studies/failing", "--report"]) == 1
    assert [len(v.failures) for v in read_result(Path("studies/failing")).variants] == [0, 0, 1, 0]


@pytest.mark.usefixtures("fake_training", "home")
def test_a_run_that_another_process_works_on_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    words = ablate("studies/shared", "--toggle", "interaction.rank=1", "--seeds", "1", "interaction.rank=16")
    assert main([*words, "--list"]) == 0
    other = Path("studies/shared/runs/base/seed1/elsewhere")
    (other / "checkpoints").mkdir(parents=True)
    (other / "config.yaml").write_text("")
    with contextlib.ExitStack() as work:
        work.enter_context(locked(other))
        looked = 0

        def sleep(seconds: float) -> None:
            nonlocal looked
            looked += 1
            if looked == 8:
                row = {"auc": 0.5, "logloss": 0.6, "ne": 0.9, "examples": 10}
                metrics = {"test": {"click": row}, "train": {"examples_per_s": 1.0, "params": 1}}
                (other / "metrics.json").write_text(json.dumps(metrics))
                work.close()
            time.sleep(seconds)

        monkeypatch.setattr(execute, "sleep", sleep)
        assert main(words) == 0
    assert [p.name for p in Path("studies/shared/runs/base/seed1").iterdir()] == ["elsewhere"]
