"""Every snippet of a page is run, or checked as far as it can be without a network or a long training.

A page is one script, read from top to bottom in an empty folder: blocks that name a file become that file,
Python and the commands of bash blocks run. A command that would download something, or train for long, is
parsed and composed instead. What a test does not know how to check fails.
"""

from __future__ import annotations

import importlib
import json
import os
import re
import shlex
import subprocess
import sys
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import tomllib
import yaml

from gemkit.cli.main import main, parse
from gemkit.config.compose import GROUPS, compose, compose_section
from gemkit.registry import load_registry
from tests.docs.pages import PAGES, ROOT, Block, blocks, name_of

MAKE_TARGETS = set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.MULTILINE))
NOT_RUN = ("source", "pip")
"""Commands about the reader's environment; `pip install ./folder` of a page's own package is run all the same."""


class Script:
    """Runs a page's blocks in `folder`.

    Attributes:
        done: How many blocks or commands were handled in which way.
    """

    def __init__(self, folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
        self.folder = folder
        self.capsys = capsys
        self.done: Counter[str] = Counter()
        self.site = folder / ".site"
        self._namespace: dict[str, Any] = {}
        self._printed = ""

    def run(self, block: Block) -> None:
        """Handles one block."""
        if block.title and block.title != "error":
            self._write(block)
        elif block.language == "bash":
            for line in block.text.replace("\\\n", " ").splitlines():
                words = shlex.split(line, comments=True)
                if words:
                    self._command(words)
        elif block.language == "python":
            exec(compile(block.text, "snippet", "exec"), self._namespace)
            self.done["python"] += 1
        elif block.language == "json":
            json.loads(block.text)
            self.done["json"] += 1
        elif block.language == "text":
            if block.title == "error":
                assert self._printed == block.text
                self.done["error"] += 1
        else:
            raise AssertionError(f"nobody checks a block of {block.language!r} {block.title!r}")

    def _write(self, block: Block) -> None:
        path = self.folder / block.title
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(block.text, encoding="utf-8")
        if block.language == "yaml":
            values = yaml.safe_load(block.text)
            assert isinstance(values, dict)
            if path.parent.name in GROUPS and "configs" in path.parent.parent.name:
                compose([f"{path.parent.name}={path.stem}", *_without_events(values)], *self._search(path))
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "python":
            compile(block.text, block.title, "exec")
        else:
            assert block.language == "csv", block
        self.done["file"] += 1

    def _search(self, path: Path) -> tuple[Any, list[Path]]:
        # A plugin's own YAML files name components that are not installed yet: gemkit finds them after `pip install`.
        return load_registry(), [path.parent.parent]

    def _command(self, words: list[str]) -> None:
        program, *rest = words
        if program == "gemkit":
            self._gemkit(rest)
        elif program == "make":
            targets = [w for w in rest if "=" not in w]
            assert targets and MAKE_TARGETS.issuperset(targets), words
            for word in rest:
                if word.startswith("ARGS="):
                    self._gemkit(["train", *shlex.split(word.removeprefix("ARGS="))])
            self.done["make"] += 1
        elif program in ("python", ".venv/bin/python") and rest[0].endswith(".py"):
            self._script(ROOT / rest[0], rest[1:])
        elif program == "pytest" or rest[:2] == ["-m", "pytest"]:
            self._pytest(rest[-1])
        elif program == "pip" and rest[0] == "install" and (self.folder / rest[-1]).is_dir() and len(rest) == 2:
            self._install(self.folder / rest[-1])
        else:
            assert program in NOT_RUN, f"nobody checks the command {shlex.join(words)}"
            self.done["not run"] += 1

    def _gemkit(self, argv: list[str]) -> None:
        self.capsys.readouterr()
        if not _is_long(argv):
            code = main(argv)
            self._printed = self.capsys.readouterr().err
            self._printed = self._printed[max(0, self._printed.find("error:")) :]
            assert code in (0, 2) and (code == 2) == self._printed.startswith("error:"), self._printed
            self._code = code
        self.done[f"gemkit {argv[0]}"] += 1

    def _script(self, path: Path, arguments: list[str]) -> None:
        """Our own programs: the file is there, and takes these arguments, as far as its help says."""
        shown = subprocess.run([sys.executable, str(path), "--help"], capture_output=True, text=True, check=True).stdout
        assert [a for a in arguments if a not in shown] == []
        self.done["script"] += 1

    def _pytest(self, tests: str) -> None:
        if (ROOT / tests).exists():
            self.done["not run"] += 1
            return
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-x", tests]
        done = subprocess.run(command, cwd=self.folder, env=os.environ | {"PYTHONPATH": str(self.site)}, text=True,
                              capture_output=True)
        assert done.returncode == 0, done.stdout + done.stderr
        assert int(re.findall(r"(\d+) passed", done.stdout)[0]) > 10
        self.done["pytest"] += 1

    def _install(self, package: Path) -> None:
        """Installs a page's plugin into a folder of its own, and lets this process find it."""
        command = [sys.executable, "-m", "pip", "install", "--quiet", "--no-index", "--no-deps", "--no-build-isolation"]
        command += ["--disable-pip-version-check", "--target", str(self.site), str(package)]
        subprocess.run(command, check=True)
        sys.path.insert(0, str(self.site))
        importlib.invalidate_caches()
        load_registry.cache_clear()
        self.done["pip install"] += 1
