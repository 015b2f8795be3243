"""The command line: exit codes, messages, `components`, `data`, and how fast help is."""

from __future__ import annotations

import dataclasses
import functools
import json
import resource
import signal
import subprocess
import sys
import time
import types
from pathlib import Path
from typing import Any

import pytest
import yaml
from fake_plugins import FakePlugin, broken_plugin, fake_registry, make

import gemkit.registry
from gemkit import __version__
from gemkit.cli.main import main
from gemkit.config.build import CORE
from gemkit.config.fields import Config, option

GEMKIT = [sys.executable, "-m", "gemkit.cli.main"]


class Faulty(Config):
    """A config with a programming error."""

    def check(self) -> None:
        raise ZeroDivisionError("a defect of this plugin")


class Stopped(Config):
    """A config during whose check somebody presses Ctrl-C."""

    def check(self) -> None:
        raise KeyboardInterrupt


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fake plugins instead of the installed ones."""
    mine = FakePlugin(
        make("interaction", "faulty", Faulty),
        make("interaction", "stopped", Stopped),
        make("interaction", "opinionated", sizes=("list[int]", option([1, 2], "Sizes."))),
    )
    registry = functools.cache(lambda: fake_registry(mine=mine, broken=broken_plugin()))
    monkeypatch.setattr(gemkit.registry, "load_registry", registry)


@pytest.mark.usefixtures("installed")
class TestErrors:
    @pytest.mark.parametrize(
        ("argv", "words"),
        [
            (["config", "interaction.rnak=4"], ["interaction.rnak", "rank, gate", "'rank'"]),
            (["config", "interaction.rank=many"], ["interaction.rank", "'many'", "whole number"]),
            (["config", "interaction.rank=0"], ["interaction.rank", "0", ">= 1"]),
            (["train", "interaction=wukogn"], ["interaction", "'wukogn'", "dcn, ", "did you mean 'wukong'", "broken"]),
            (["train", "interactoin=wukong"], ["interactoin", "interaction, sequence", "did you mean 'interaction'"]),
            (["config", "interaction=torn", "--config-dir", "{folder}"], ["broken YAML", "torn.yaml, line 3"]),
            (["config", "--config-dir", "/no/such/folder"], ["--config-dir", "/no/such/folder"]),
            (["trian"], ["'trian'", "train, ablate", "did you mean 'train'"]),
            (["data", "biuld", "movielens1m"], ["'biuld'", "fetch, build, merge", "did you mean 'build'"]),
            (["train", "--resmue", "runs/x"], ["'--resmue'", "did you mean '--resume'"]),
            (["train", "--resum", "runs/x"], ["does not take '--resum'", "did you mean '--resume'"]),
            (["train", "--resume", "/no/such/run"], ["no saved config", "/no/such/run"]),
            (["evaluate"], ["required", "RUN", "gemkit evaluate --help"]),
            (["evaluate", "runs/x", "more"], ["does not take 'more'"]),
            (["predict", "runs/x"], ["--input", "--output"]),
            ([], ["required", "COMMAND"]),
            (["components", "interaction/wukogn"], ["'wukogn'", "did you mean 'wukong'"]),
            (["components", "interactoin"], ["'interactoin'", "did you mean 'interaction'"]),
            (["data", "inspect", "movielens2m"], ["'movielens2m'", "did you mean 'movielens1m'"]),
            (["data", "fetch", "movielens1m", "data.splt=time"], ["data.splt", "did you mean 'split'"]),
            (["data", "fetch", "movielens1m", "train.epochs=3"], ["train.epochs does not matter here"]),
        ],
    )
    def test_what_the_user_can_mend(
        self, argv: list[str], words: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "interaction").mkdir()
        (tmp_path / "interaction" / "torn.yaml").write_text("name: wukong\nrank: {\n")
        code = main([text.replace("{folder}", str(tmp_path)) for text in argv])
        shown = capsys.readouterr()
        assert code == 2
        assert [word for word in words if word not in shown.err] == [], shown.err
        assert "Traceback" not in shown.err and shown.out == ""
        assert len(shown.err.splitlines()) <= 6

    def test_traceback_on_demand(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["config", "--traceback", "interaction.rank=0"]) == 2
        assert main(["--traceback", "config", "interaction.rank=0"]) == 2
        assert capsys.readouterr().err.count("Traceback") >= 2

    @pytest.mark.parametrize("name", ["DistNetworkError", "DistBackendError", "DistStoreError", "gloo"])
    def test_a_lost_connection_is_no_defect(
        self, name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        import torch.distributed

        kind = RuntimeError if name == "gloo" else getattr(torch.distributed, name)

        def lose(*args: Any) -> None:
            raise kind("[/pytorch/third_party/gloo/gloo/transport/tcp/pair.cc:553] Connection closed by peer")

        monkeypatch.setattr("gemkit.config.compose.compose", lose)
        assert main(["config"]) == 2
        told = capsys.readouterr().err
        assert "another process has ended" in told and "a defect of" not in told

    def test_a_defect_names_the_plugin_and_exits_with_1(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["config", "interaction=faulty"]) == 1
        shown = capsys.readouterr().err
        assert "ZeroDivisionError: a defect of this plugin" in shown
        assert "--traceback" in shown and "Traceback (" not in shown

    def test_of_several_processes_the_first_speaks_first(
        self, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
    ) -> None:
        waited: list[float] = []
        monkeypatch.setattr("gemkit.cli.main.time.sleep", waited.append)
        monkeypatch.setattr("gemkit.cli.main.time.monotonic", lambda: sum(waited))
        assert main(["config", "interaction.rank=0"]) == 2
        assert "interaction.rank" in capsys.readouterr().err and not waited
        monkeypatch.setenv("LOCAL_RANK", "1")
        assert main(["config", "interaction.rank=0"]) == 2
        assert "interaction.rank" in capsys.readouterr().err and 3 <= sum(waited) < 4
        monkeypatch.setattr("gemkit.cli.main.os.getppid", lambda: sum(waited))  # the first one has gone meanwhile
        assert main(["config", "interaction.rank=0"]) == 2
        assert capsys.readouterr().err == ""

    def test_ctrl_c(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["config", "interaction=stopped"]) == 130
        assert capsys.readouterr().err == "\nstopped\n"

    def test_a_file_that_cannot_be_read_is_named(
        self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        (tmp_path / "config.yaml").mkdir()
        assert main(["train", "--resume", str(tmp_path)]) == 2
        assert str(tmp_path / "config.yaml") in capsys.readouterr().err

        def unreadable(*_: Any) -> None:
            (tmp_path / "nothing").read_text()

        monkeypatch.setattr("gemkit.cli.config.run", unreadable)
        assert main(["config"]) == 2
        shown = capsys.readouterr().err
        assert "No such file" in shown and str(tmp_path / "nothing") in shown


@pytest.mark.parametrize("name", ["plugin_of_defect", "gemkit.cli.config"])
def test_whose_defect(
    name: str, installed: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:

    def fail(args: object) -> None:
        raise ValueError

    registry = gemkit.registry.load_registry()
    monkeypatch.setitem(registry.modules, "guilty", "plugin_of_defect")
    monkeypatch.setattr("gemkit.cli.config.run", types.FunctionType(fail.__code__, {"__name__": name}))
    assert main(["config"]) == 1
    assert f"a defect of {'plugin guilty' if 'plugin' in name else 'gemkit'}:" in capsys.readouterr().err


def test_config_prints_yaml_that_says_all(installed: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["config", "train.epochs=2", "--config-dir", "configs", "interaction.rank=3"]) == 0
    values = yaml.safe_load(capsys.readouterr().out)
    assert (values["train"]["epochs"], values["interaction"]) == (2, {"name": "wukong", "rank": 3, "gate": "sigmoid"})


def test_components_table(installed: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["components"]) == 0
    shown = capsys.readouterr().out
    row = next(line for line in shown.splitlines() if " wukong " in line)
    assert row.split() == [
        "interaction",
        "wukong",
        "builtin",
        "0",
        "Nobody,",
        "2026,",
        "eq.",
        "1.",
        "A",
        "fake",
        "wukong.",
    ]
    assert "plugin broken (broken 0) failed to load:" in shown
    assert "ModuleNotFoundError: No module named 'a_module_that_is_not_installed'" in shown


@pytest.mark.parametrize("section", ["train", "size", "optimizer", "loader"])
def test_components_of_a_section_of_every_run(section: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["components", section]) == 0
    shown = capsys.readouterr().out
    fields = [field.name for field in dataclasses.fields(CORE[section])]
    assert [name for name in fields if f"  {section}.{name} = " not in shown] == []
    assert main(["components"]) == 0
    assert "gemkit components train|size|optimizer|loader shows" in capsys.readouterr().out


def test_components_of_one_kind(installed: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["components", "sequence"]) == 0
    shown = capsys.readouterr().out
    assert "pyramid" in shown and "wukong" not in shown


def test_one_component(installed: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["components", "interaction/wukong"]) == 0
    shown = capsys.readouterr().out
    assert "interaction.rank = 16    whole number, >= 1, <= 512" in shown
    assert 'interaction.gate = "sigmoid"    text, sigmoid | none' in shown
    assert "Columns k of the projection Y." in shown
    assert "A fake wukong." in shown and "Paper: Nobody" in shown
    assert main(["components", "tokenizer/plain"]) == 0
    assert "no fields" in capsys.readouterr().out


def test_resume_reads_the_runs_own_config(
    installed: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    calls = []
    module = type(sys)("gemkit.train")
    module.train = lambda run, registry, resume, command, started_s: calls.append((run, resume, command))  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "gemkit.train", module)
    assert main(["config", "seed=9"]) == 0
    (tmp_path / "config.yaml").write_text(capsys.readouterr().out)
    assert main(["train", "--resume", str(tmp_path)]) == 0
    assert main(["train", "seed=5", "--config-dir", str(tmp_path), "train.epochs=3"]) == 0
    assert [(run.seed, run.train.epochs, resume) for run, resume, _ in calls] == [(9, 1, tmp_path), (5, 3, None)]
    assert calls[1][2] == ["gemkit", "train", "--config-dir", str(tmp_path), "seed=5", "train.epochs=3"]


def test_data_build_and_inspect_ones_own_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    rows = [f"u{i % 7},{i % 5},{1000 + i},{i % 2}" for i in range(200)]
    Path("clicks.csv").write_text("\n".join(["user,item,time,click", *rows]) + "\n")
    options = [
        "data.examples=clicks.csv",
        "data.timestamp=time",
        "data.user=user",
        "data.categorical=[{name: item, role: item}]",
        "data.tasks=[{name: click}]",
    ]
    assert main(["data", "inspect", "table", *options]) == 2
    assert "gemkit data build table data.examples=clicks.csv" in capsys.readouterr().err
    assert main(["data", "build", "table", *options]) == 0
    assert "data set in datasets" in capsys.readouterr().out
    assert main(["data", "inspect", "table", *options, "--json"]) == 0
    assert json.loads(capsys.readouterr().out)["examples"] == 200
    assert main(["data", "inspect", "table", *options]) == 0
    assert "click" in capsys.readouterr().out
    examples = next(Path("datasets").glob("*/segments/0000/000/examples.arrow"))
    examples.write_bytes(examples.read_bytes()[:-1])
    assert main(["data", "build", "table", *options]) == 2
    assert "examples.arrow has changed since the data set was built" in capsys.readouterr().err
    assert main(["data", "build", "table", *options, "--again"]) == 0


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--version"])
    assert caught.value.code == 0
    assert capsys.readouterr().out == f"gemkit {__version__}\n"


@pytest.mark.parametrize("argv", [["--help"], ["train", "--help"], ["data", "build", "--help"], ["doctor", "--help"]])
def test_help_imports_nothing_heavy(argv: list[str]) -> None:
    code = (
        f"import sys\nfrom gemkit.cli.main import main\ntry:\n    main({argv!r})\nexcept SystemExit as e:\n"
        "    assert e.code == 0\n"
        "print('HEAVY', *{'torch', 'numpy', 'pyarrow', 'hydra', 'rich', 'pluggy'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "usage: gemkit" in done.stdout
    assert done.stdout.splitlines()[-1] == "HEAVY"


def test_help_is_fast() -> None:
    times_s = []
    for _ in range(3):
        start = time.perf_counter()
        subprocess.run([*GEMKIT, "--help"], capture_output=True, check=True)
        times_s.append(time.perf_counter() - start)
    assert min(times_s) < 0.5


def test_components_of_the_installation() -> None:
    """Their modules import torch; importing Lightning or TorchRec as well would take several times as long."""

    def cpu_s(command: list[str]) -> tuple[str, float]:
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        done = subprocess.run(command, capture_output=True, text=True)
        after = resource.getrusage(resource.RUSAGE_CHILDREN)
        assert done.returncode == 0, done.stderr
        return done.stdout, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime

    _, torch_s = cpu_s([sys.executable, "-c", "import torch"])
    shown, components_s = cpu_s([*GEMKIT, "components"])
    assert "movielens1m" in shown
    assert components_s < 2.5 * torch_s


def test_a_closed_pipe_is_no_defect() -> None:
    command = f"{sys.executable} -m gemkit.cli.main components | head -n 1"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True)
    assert len(done.stdout.splitlines()) == 1
    assert done.stderr == ""


def test_ctrl_c_in_a_process() -> None:
    code = (
        "import os, signal, sys, gemkit.cli.config, gemkit.cli.main as m\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a background shell job ignores it
        "gemkit.cli.config.run = lambda args: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(m.main(['config']))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 128 + signal.SIGINT
    assert "Traceback" not in done.stderr
