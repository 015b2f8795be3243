"""A page as a script: blocks that name a file become that file, Python and the commands of bash blocks run.

A training on data that would have to be downloaded runs for two steps on synthetic data instead. What nobody
knows how to check is an error.
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import yaml
from pages import ROOT, Block

from gemkit.cli.ablate import study_config
from gemkit.cli.main import main, parse
from gemkit.cli.scale import ladder_config
from gemkit.config.compose import GROUPS, compose, compose_section
from gemkit.config.files import read_config_file
from gemkit.config.ladder import GROUP as LADDERS
from gemkit.config.ladder import read_ladder
from gemkit.config.run import RunConfig
from gemkit.config.study import StudyConfig, is_study, read_study, studies_in
from gemkit.cost import model_cost
from gemkit.errors import GemkitError
from gemkit.registry import load_registry
from gemkit.session import open_dataset
from gemkit.studies.plan import make_plan
from gemkit.studies.scaling.plan import make_ladder
from gemkit.testing.runs import silent, table_config
from gemkit.testing.teaching import write_log
from gemkit.train import train
from gemkit.transfer.cycle.config import CycleConfig
from gemkit.transfer.cycle.run import CycleRunner
from gemkit.transfer.graph.config import GraphConfig
from gemkit.transfer.graph.run import GraphRunner
from gemkit.transfer.reading import read
from gemkit.transfer.units import Units

TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
STEPS = 2


@functools.cache
def shipped() -> list[StudyConfig]:
    """The studies in configs/."""
    return [read_study(name, [ROOT / "configs"]) for name in studies_in([ROOT / "configs"])]


class Script:
    """Runs the blocks of one page.

    Args:
        folder: The working folder, in which the caller already is.
        data: A folder for synthetic data.

    Attributes:
        done: How many blocks and commands were handled in which way.
    """

    def __init__(self, folder: Path, data: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder, self.data, self.capsys = folder, data, capsys
        self.site = folder / ".site"
        self.done: Counter[str] = Counter()
        self._namespace: dict[str, Any] = {"__name__": "snippet"}
        self._error = ""
        """What the last command complained about, until a block has shown it."""
        self._choices: list[Path] = []
        self._studies: list[Path] = []
        self._ladders: list[Path] = []

    def run(self, block: Block) -> None:
        """Handles one block."""
        if block.title == "error":
            assert self._error.rstrip() == block.text.rstrip()
            self._error = ""
            self.done["error"] += 1
            return
        assert not self._error, f"the page does not say that this is an error: {self._error}"
        if block.title:
            self._write(block)
        elif block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                if words := shlex.split(line, comments=True):
                    self._command(words)
        elif block.language == "python":
            exec(compile(block.text, "snippet", "exec"), self._namespace)
            self.done["python"] += 1
        elif block.language == "json":
            json.loads(block.text)
            self.done["json"] += 1
        else:
            assert block.language == "text", f"nobody checks a block of {block.language!r}"

    def finish(self) -> None:
        """Checks what could not be checked before the end."""
        assert not self._error, f"the page does not say that this is an error: {self._error}"
        for path in self._choices:
            compose([f"{path.parent.name}={path.stem}"], load_registry(), [path.parent.parent])
            self.done["choice"] += 1
        for path in self._studies:
            study = read_study(path.stem, [path.parent.parent])
            make_plan(study, load_registry(), [path.parent.parent])
            self.done["study"] += 1
        for path in self._ladders:
            make_ladder(read_ladder(path.stem, [path.parent.parent]), load_registry(), [path.parent.parent])
            self.done["ladder"] += 1

    def _write(self, block: Block) -> None:
        path = self.folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
        if block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict)
            if path.parent.name == LADDERS:
                self._ladders.append(path)
            elif path.parent.name in ("graphs", "cycles"):
                read(path, GraphConfig if path.parent.name == "graphs" else CycleConfig, "page")
            else:
                assert path.parent.name in GROUPS, f"{block.title} is no choice of a group"
                (self._studies if is_study(read_config_file(path)) else self._choices).append(path)
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "python":
            compile(block.text, block.title, "exec")
        else:
            assert block.language == "csv", f"nobody checks the file {block.title}"
        self.done["file"] += 1

    def _command(self, words: list[str]) -> None:
        program, *rest = words
        local = self.folder / rest[-1]
        if program == "gemkit":
            self._gemkit(rest)
        elif program == "make":
            targets = [word for word in rest if "=" not in word]
            assert targets and TARGETS.issuperset(targets), f"the Makefile does not have all of {targets}"
            for word in rest:
                if word.startswith("ARGS="):
                    self._gemkit(["train", *shlex.split(word.removeprefix("ARGS="))])
            self.done["make"] += 1
        elif program == "python" and rest[0].endswith(".py"):
            help_text = subprocess.run([sys.executable, str(ROOT / rest[0]), "--help"], capture_output=True, text=True)
            assert help_text.returncode == 0 and all(word in help_text.stdout for word in rest[1:]), words
            self.done["program"] += 1
        elif program == "pip" and rest[0] == "install" and local.is_dir() and local != self.folder:
            self._install(local)
        elif program == "pytest" and local.exists():
            self._pytest(local)
        elif "pytest" in words:
            assert (ROOT / rest[-1]).exists(), rest[-1]
            self.done["tests"] += 1
        else:
            # They are about the reader's machine.
            assert program in ("source", "pip"), f"nobody checks the command {shlex.join(words)}"
            self.done["not run"] += 1

    def _gemkit(self, argv: list[str]) -> None:
        self.done[f"gemkit {argv[0]}"] += 1
        try:
            args = parse(argv)
            if argv[0] == "cost" or (argv[0] == "train" and args.resume is None):
                run = compose(args.overrides, load_registry(), args.config_dir)
                if run.data.name != "table":
                    self._train(run) if argv[0] == "train" else self._count(run)
                    return
            elif argv[0] == "data":
                config = compose_section(
                    "data", [f"data={args.name}", *args.overrides], load_registry(), args.config_dir
                )
                if config.name != "table":
                    return
            elif argv[0] == "ablate":
                if args.overrides or args.toggle:  # else it goes on with a folder that the reader has
                    self._plan(study_config(args, load_registry()), args.config_dir)
                return
            elif argv[0] == "scale":
                if args.overrides or args.rung:
                    make_ladder(ladder_config(args, load_registry()), load_registry(), args.config_dir)
                    self.done["planned"] += 1
                return
            elif argv[0] in ("transfer", "cycle"):
                out = self.folder / "out"
                if argv[0] == "transfer":
                    GraphRunner(read(args.graph, GraphConfig, "GRAPH"), out, Units(load_registry())).check()
                else:
                    CycleRunner(read(args.cycle, CycleConfig, "CYCLE"), out, Units(load_registry())).check()
                self.done["planned"] += 1
                return
            elif argv[0] == "teach":
                run = self._synthetic(compose([], load_registry()))
                write_log(self.folder / args.log, open_dataset(run, load_registry(), silent()))
                self.done["taught"] += 1
                return
            elif argv[0] not in ("train", "config", "components") or argv[0] == "train":
                return  # of a run folder that the reader has, or, for the doctor, slow and tested elsewhere
        except GemkitError:
            pass  # the command says it better
        self.capsys.readouterr()
        code = main(argv)
        shown = self.capsys.readouterr().err
        self._error = shown[shown.find("error:") :] if code else ""
        assert code in (0, 2), shown

    def _plan(self, study: StudyConfig, config_dirs: Sequence[Path]) -> None:
        """All runs of a study; those of a study in configs/ are composed by tests/core/test_config.py."""
        if study in shipped() and not config_dirs:
            self.done["shipped"] += 1
            return
        make_plan(study, load_registry(), config_dirs)
        self.done["planned"] += 1

    def _train(self, run: RunConfig) -> None:
        """Two steps of the run on synthetic data."""
        run = self._synthetic(run)
        assert train(run, load_registry(), progress=silent())["train"]["steps"] == STEPS
        self.done["trained"] += 1

    def _count(self, run: RunConfig) -> None:
        """The cost of the run on synthetic data."""
        run = self._synthetic(run)
        cost = model_cost(run, load_registry(), open_dataset(run, load_registry(), silent()))
        assert cost.flops_per_example > 0
        self.done["counted"] += 1

    def _synthetic(self, run: RunConfig) -> RunConfig:
        """The run on synthetic data, cut short."""
        values = table_config(self.data, num_examples=300, num_events=900)
        short = dataclasses.replace(run.train, max_steps=STEPS, batch_size=64, eval_batch_size=64)
        data = load_registry().config("data", values)
        return dataclasses.replace(run, data=data, train=short, runs=str(self.folder / "runs"))

    def _pytest(self, tests: Path) -> None:
        # Without the slowest contract: what is tested here is the page.
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-k", "not compiles", "-p", "no:cacheprovider", tests]
        environment = os.environ | {"PYTHONPATH": str(self.site)}
        done = subprocess.run(command, cwd=self.folder, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 10
        self.done["pytest"] += 1

    def _install(self, package: Path) -> None:
        """Installs a page's plugin into a folder of its own, and lets this process find it."""
        options = ["--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check"]
        command: Sequence[str] = [sys.executable, "-m", "pip", "install", *options, "--target", self.site, package]
        subprocess.run(command, check=True)
        sys.path.insert(0, str(self.site))
        importlib.invalidate_caches()
        load_registry.cache_clear()
        self.done["pip install"] += 1
