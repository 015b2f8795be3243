"""Ladders end to end: planned, trained on tiny data, collected, gone on with, and what is refused."""

from __future__ import annotations

import contextlib
import io
import json
import os
import shlex
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from statistics import mean
from typing import Any

import pytest
import yaml

from gemkit.cli.main import main
from gemkit.config.folders import config_folders
from gemkit.config.ladder import LadderConfig, ladders_in, read_ladder
from gemkit.errors import GemkitError
from gemkit.registry import load_registry
from gemkit.runs.folder import METRICS, RunFolder
from gemkit.studies.scaling.plan import make_ladder
from gemkit.studies.scaling.report import read_scale
from gemkit.studies.scaling.result import ScaleResult
from gemkit.testing.runs import SMALL, table_config

BASE = (
    "data=tiny",
    *SMALL,
    "size.num_blocks=1",
    "train.batch_size=64",
    "train.eval_every=2",
    "sequence=none",
    "cross=none",
)
ARCHS = ("--arch", "interaction=wukong", "--arch", "interaction=dlrm interaction.self_products=true")
pytestmark = pytest.mark.slow  # twelve trainings

RUNGS = tuple(
    word
    for dim, hidden, steps in ((4, 8, 2), (8, 16, 4), (16, 32, 6))
    for word in ("--rung", f"size.dim={dim} interaction.hidden=[{hidden}] train.max_steps={steps}")
)
DLRM, DLRM_SLUG = "interaction=dlrm interaction.self_products=true", "interaction-dlrm-interaction.self_products-true"


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A working folder with a small data set, ``data=tiny``."""
    folder = tmp_path_factory.mktemp("ladders")
    (folder / "configs" / "data").mkdir(parents=True)
    values = table_config(folder / "data", num_users=20, num_examples=500, num_events=500)
    (folder / "configs" / "data" / "tiny.yaml").write_text(yaml.safe_dump(values))
    before = Path.cwd()
    os.chdir(folder)
    yield folder
    os.chdir(before)


def scale(out: str, *words: str) -> list[str]:
    """The command line of a tiny ladder."""
    return ["scale", "--config-dir", "configs", *BASE, *ARCHS, *RUNGS, "--out", out, *words]


@pytest.fixture(scope="module")
def ladder(home: Path) -> ScaleResult:
    """Two architectures on three rungs with two seeds, trained in this process: twelve others would take longer."""
    with contextlib.redirect_stdout(io.StringIO()) as shown:
        assert main(scale("studies/first", "--seeds", "2", "--list")) == 0
    lines = shown.getvalue().splitlines()
    assert len(lines) == 12
    for line in lines:
        assert main(shlex.split(line)[1:]) == 0
    assert main(["scale", "--out", "studies/first", "--report"]) == 0
    return read_scale(Path("studies/first"))


@pytest.fixture
def copy(ladder: ScaleResult) -> Iterator[Path]:
    """The finished ladder in a folder of its own, to be spoilt."""
    shutil.copytree("studies/first", "studies/copy")
    yield Path("studies/copy")
    shutil.rmtree("studies/copy")


def run_folder(folder: Path, slug: str, seed: int) -> Path:
    (path,) = (p.parent for p in (folder / "runs" / slug / f"seed{seed}").glob("*/config.yaml"))
    return path


def spoil(folder: Path, slug: str, change: Callable[[dict[str, Any]], None]) -> None:
    """Changes metrics.json of all seeds."""
    for seed in (1, 2):
        path = run_folder(folder, slug, seed) / METRICS
        metrics = json.loads(path.read_text())
        change(metrics)
        path.write_text(json.dumps(metrics))


# --- what a ladder leaves -----------------------------------------------------------------------------------


def test_points_are_those_of_the_runs(ladder: ScaleResult) -> None:
    assert [arch.name for arch in ladder.archs] == ["wukong", DLRM]
    for arch, slug in zip(ladder.archs, ("wukong", DLRM_SLUG), strict=True):
        assert [point.rung for point in arch.points] == [1, 2, 3]
        for point in arch.points:
            folders = [run_folder(Path("studies/first"), f"{slug}-rung-{point.rung}", seed) for seed in (1, 2)]
            metrics = [RunFolder(folder).metrics() for folder in folders]
            assert point.score.by_seed == tuple(m["test"]["click"]["ne"] for m in metrics)
            assert point.score.mean == pytest.approx(mean(m["test"]["click"]["ne"] for m in metrics))
            assert point.flops_per_example == metrics[0]["train"]["flops_per_example"]
            assert point.dense_params == metrics[0]["train"]["dense_params"]
            assert point.examples == 64 * 2 * point.rung
            assert point.training_flops == point.flops_per_example * point.examples
            assert yaml.safe_load(point.config)["size"]["dim"] == 2 ** (point.rung + 1)
            assert "seed" not in yaml.safe_load(point.config)
        costs = [point.flops_per_example for point in arch.points]
        assert costs == sorted(costs)  # type: ignore[type-var]


def test_each_has_a_law_and_both_are_compared(ladder: ScaleResult) -> None:
    assert (ladder.metric, ladder.task, ladder.cost, ladder.floor_from) == (
        "ne",
        "click",
        "flops_per_example",
        "fitted",
    )
    for arch in ladder.archs:
        assert arch.fit is not None and not arch.obstacle
        assert arch.fit.unit == arch.points[0].flops_per_example
        assert arch.fit.seed_sd is not None and arch.fit.seed_sd > 0
    (one,) = ladder.comparisons
    assert (one.arch, one.other) == ("wukong", DLRM) and bool(one.levels) != bool(one.obstacle)
    assert Path("studies/first/scale.svg").stat().st_size > 1000


def test_the_folder_is_enough_to_go_on_with(
    ladder: ScaleResult, copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ladder.command
    assert command.startswith("gemkit scale data=tiny") and f"--arch '{DLRM}'" in command
    again = ["scale", "--out", str(copy)]
    assert main([*again, "--cost", "training_flops", "--metric", "logloss", "--report"]) == 0
    found = read_scale(copy)
    assert (found.cost, found.metric, found.command) == ("training_flops", "logloss", command)
    fit, point = found.archs[0].fit, found.archs[0].points[0]
    assert fit is not None and fit.unit == point.training_flops
    capsys.readouterr()
    assert main([*again, "--seeds", "3", "--list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 6 and all("seed=3" in line and "--config-dir configs" in line for line in lines)
    assert main([*again, "--report"]) == 0
    assert "6 of 18 runs have no NE yet" in " ".join(read_scale(copy).notes)


def test_what_is_left_is_run(copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(copy / "runs" / "wukong-rung-1" / "seed2")
    assert main(["scale", "--out", str(copy), "--seeds", "2", "--jobs", "1"]) == 0
    shown = capsys.readouterr().out
    assert "12 runs, 11 finished before" in shown and "[12/12] wukong rung 1, seed 2: done" in shown
    assert "laws" in shown and "scale.html" in shown


# --- what goes wrong ----------------------------------------------------------------------------------------


def test_a_failed_run_is_told_and_its_size_keeps_the_other_seeds(copy: Path) -> None:
    (run_folder(copy, "wukong-rung-3", 2) / METRICS).unlink()
    (copy / "runs" / "wukong-rung-3" / "seed2" / "error.txt").write_text("error: the loss is nan\n(exit code 2)\n")
    assert main(["scale", "--out", str(copy), "--seeds", "2", "--report"]) == 1
    found = read_scale(copy)
    point = found.archs[0].points[2]
    assert point.score.by_seed[1] is None and point.score.mean == point.score.by_seed[0]
    assert point.failures == {2: "error: the loss is nan\n(exit code 2)"}
    assert found.archs[0].fit is not None
    assert any(note.startswith("1 of 12 runs failed: wukong rung 3 (seed 2).") for note in found.notes)
    assert "error: the loss is nan" in (copy / "scale.md").read_text()


def test_a_size_without_a_value_leaves_too_few(copy: Path) -> None:
    spoil(copy, "wukong-rung-2", lambda metrics: metrics["test"]["click"].update(ne=None))
    assert main(["scale", "--out", str(copy), "--seeds", "2", "--report"]) == 0
    found = read_scale(copy)
    assert found.archs[0].fit is None and found.archs[1].fit is not None
    assert found.archs[0].obstacle == "2 of 3 sizes have a value: a law takes 3"
    assert found.comparisons[0].obstacle == "wukong has no law"
    notes = " ".join(found.notes)
    assert "2 of 12 runs have no NE yet, or none that is defined: wukong rung 2 (seed 1)" in notes
    assert "wukong has no law: 2 of 3 sizes" in notes


def test_uncounted_and_equal_costs(copy: Path) -> None:
    spoil(copy, "wukong-rung-2", lambda metrics: metrics["train"].update(flops_per_example=None))
    same = RunFolder(run_folder(copy, f"{DLRM_SLUG}-rung-1", 1)).metrics()["train"]["flops_per_example"]
    spoil(copy, f"{DLRM_SLUG}-rung-2", lambda metrics: metrics["train"].update(flops_per_example=same))
    assert main(["scale", "--out", str(copy), "--seeds", "2", "--report"]) == 0
    found = read_scale(copy)
    assert "The FLOPs of wukong rung 2 could not be counted" in " ".join(found.notes)
    assert found.archs[1].obstacle == "3 of 3 sizes have a value, and 2 different costs: a law takes 3"
    assert "are not comparable" in (copy / "scale.md").read_text()


def test_floors(ladder: ScaleResult, copy: Path, capsys: pytest.CaptureFixture[str]) -> None:
    report = ["scale", "--out", str(copy), "--seeds", "2", "--report", "--floor"]
    assert main([*report, "0.5"]) == 0
    found = read_scale(copy)
    assert found.floor_from == "given" and {arch.fit.floor for arch in found.archs if arch.fit} == {0.5}
    assert main([*report, "3"]) == 0
    assert "below the floor of 3.0000: it is no floor" in read_scale(copy).archs[0].obstacle
    assert main([*report, "data"]) == 2
    assert "does not know the true probabilities of click" in capsys.readouterr().err
    for slug in ("wukong", DLRM_SLUG):
        for rung in (1, 2, 3):
            spoil(copy, f"{slug}-rung-{rung}", lambda metrics: metrics["test"]["click"].update(ne_floor=0.7))
    assert main([*report, "data"]) == 0
    found = read_scale(copy)
    assert (found.floor_from, found.known_floor) == ("data", 0.7)
    assert main([*report, "fit"]) == 0
    assert any("The floor was fitted. The data set's own is 0.7000" in note for note in read_scale(copy).notes)
    assert main([*report, "data", "--metric", "logloss"]) == 0
    metrics = RunFolder(run_folder(copy, "wukong-rung-1", 1)).metrics()["test"]["click"]
    assert read_scale(copy).known_floor == pytest.approx(0.7 * metrics["logloss"] / metrics["ne"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ([*scale("x")[:-4], "--out", "x"], "the ladder has too few rungs: 2"),
        (scale("x", "--arch", "interaction=wukogn"), "unknown interaction 'wukogn'"),
        (scale("x", "--rung", "size.dmi=4"), "unknown key size.dmi"),
        (scale("x", "--arch", "interaction=wukong"), "two architectures are called wukong"),
        (scale("x", "--arch", "interaction=wukong train.epochs=1"), "are the same run"),
        (scale("x", "--arch", "a='"), "cannot read --arch"),
        (scale("x", "--rung", " "), "--rung names no words"),
        (scale("x", "--metric", "auc"), "metric = 'auc' is not one of its choices"),
        (scale("x", "--cost", "params"), "cost = 'params' is not one of its choices"),
        (scale("x", "--floor", "best"), "floor = 'best' is no floor"),
        (scale("x", "--floor", "-1"), "floor = -1.0 is out of range"),
        (scale("x", "--floor", "nan"), "floor = nan is out of range"),
        (scale("x", "--seeds", "0"), "--seeds '0' is no whole number"),
        (scale("x", "--floor", "data"), "does not know the true probabilities of click"),
        (scale("x", "--task", "like"), "the data set has no task like"),
        (scale("x", "seed=3"), "the study itself sets seed"),
        (scale("x", "--list", "--report"), "exclude each other"),
        (scale("x", "--report"), "x holds no study"),
        (["scale", "--out", "x"], "x holds no ladder to go on with"),
        (["scale", "nowhere"], "unknown ladder 'nowhere'"),
    ],
)
def test_what_cannot_be_is_an_error_before_anything_starts(
    home: Path, words: list[str], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(words) == 2
    assert said in capsys.readouterr().err
    assert not Path("x").exists()


def test_other_folders_are_refused(ladder: ScaleResult, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(scale("studies/first", "--seeds", "3", "train.epochs=2")) == 2
    assert "the folder holds another study" in capsys.readouterr().err
    ablation = ["ablate", "--config-dir", "configs", *BASE, "--toggle", "interaction=none", "--seeds", "1", "--list"]
    assert main([*ablation, "--out", "studies/ablation"]) == 0
    assert main(["scale", "--out", "studies/ablation"]) == 2
    assert "the folder holds an ablation, no ladder" in capsys.readouterr().err
    assert main(["ablate", "--out", "studies/first"]) == 2
    assert "the folder holds another study" in capsys.readouterr().err


# --- plans and YAML files -----------------------------------------------------------------------------------

LADDER = """
base: [sequence=none, cross=none, interaction=wukong, interaction.rank=8]
archs:
  small rank: []
  dot products: [interaction=dlrm]
rungs:
  - [size.dim=8, train.max_steps=10]
  - [size.dim=16, train.max_steps=40]
  - [size.dim=32, train.max_steps=160]
seeds: [3, 7]
floor: 0.8
note: Which one scales?
"""


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    def _write(name: str, text: str) -> Path:
        (tmp_path / "scale").mkdir(exist_ok=True)
        (tmp_path / "scale" / f"{name}.yaml").write_text(text)
        return tmp_path

    return _write


def test_a_ladder_is_a_file(write: Callable[[str, str], Path]) -> None:
    registry, folder = load_registry(), write("two", LADDER)
    folders = config_folders(registry, [folder])
    config = read_ladder("two", folders)
    found = make_ladder(config, registry, [folder])
    assert list(found.points) == ["small rank", "dot products"] and found.plan.seeds == (3, 7)
    assert [v.name for v in found.plan.variants] == [
        f"{arch} rung {i}" for i in (1, 2, 3) for arch in ("small rank", "dot products")
    ]
    point = found.points["dot products"][1]
    assert point.run.interaction.name == "dlrm" and (point.run.size.dim, point.run.train.max_steps) == (16, 40)
    assert found.points["small rank"][2].run.interaction.rank == 8
    assert (config.floor, config.metric, config.note) == (0.8, "ne", "Which one scales?")
    assert {"two", "adsworld_interactions"} <= set(ladders_in(folders))


def test_a_ladder_of_the_base_alone() -> None:
    rungs = tuple((f"size.dim={dim}",) for dim in (8, 16, 32))
    found = make_ladder(LadderConfig(base=("interaction=dcnv2",), rungs=rungs), load_registry())
    assert list(found.points) == ["dcnv2"] and [v.run.size.dim for v in found.points["dcnv2"]] == [8, 16, 32]


@pytest.mark.parametrize("path", ladders_in(config_folders(load_registry())).values(), ids=lambda p: p.stem)
def test_every_ladder_of_ours_composes(path: Path) -> None:
    registry = load_registry()
    found = make_ladder(read_ladder(path.stem, config_folders(registry)), registry)
    assert len(found.plan.seeds) >= 3
    for variants in found.points.values():
        sizes = [v.run.train.max_steps for v in variants]
        assert len(variants) >= 4 and None not in sizes and sizes == sorted(sizes)  # type: ignore[type-var]
        assert all(v.run.train.epochs == 1 for v in variants)


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("rugs: [[a=b]]\n", "unknown key rugs", "top level"),
        ("rungs: [size.dim=8]\n", "rungs[0] = 'size.dim=8' has the wrong type", "rungs[0]"),
        ("archs: [interaction=dlrm]\n", "has the wrong type", "archs"),
        ("archs: {dlrm: interaction=dlrm}\n", "has the wrong type", "archs.dlrm"),
        ("seeds: [1, 1]\n", "names a seed twice", "seeds"),
        ("metric: auc\n", "metric = 'auc' is not one of its choices", "metric"),
        ("floor: low\n", "floor = 'low' is no floor", "floor"),
        ("floor: [1]\n", "floor = [1] has the wrong type", "floor"),
        ("cost: params\n", "cost = 'params' is not one of its choices", "cost"),
        ("rungs: [\n", "broken YAML", "line 2"),
        ("# @package _global_\nseeds: 3\n", "a ladder has no header", ""),
    ],
)
def test_errors_name_file_and_field(write: Callable[[str, str], Path], text: str, what: str, where: str) -> None:
    folder = write("wrong", text)
    with pytest.raises(GemkitError) as caught:
        read_ladder("wrong", config_folders(load_registry(), [folder]))
    assert what in caught.value.what
    assert str(folder / "scale" / "wrong.yaml") in str(caught.value.where) and where in str(caught.value.where)


def test_a_misspelt_ladder_is_told_the_nearest(write: Callable[[str, str], Path]) -> None:
    folder = write("interactions", LADDER)
    with pytest.raises(GemkitError, match="unknown ladder 'interactoins'") as caught:
        read_ladder("interactoins", config_folders(load_registry(), [folder]))
    assert caught.value.fix == "did you mean 'interactions'?"


@pytest.mark.parametrize("name", ["", " ", "a\nb", "x" * 61])
def test_names_of_architectures(name: str) -> None:
    rungs = tuple((f"size.dim={dim}",) for dim in (8, 16, 32))
    with pytest.raises(GemkitError, match="is no name for an architecture"):
        make_ladder(LadderConfig(archs={name: ()}, rungs=rungs), load_registry())
