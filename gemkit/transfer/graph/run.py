"""Trains a graph: each node after its teachers, and nothing that is there already.

OUT/
NODE/seed1-3f2ac09b1d/          runs of a node under one config, teachers included
2026-..._s1/                the run folder
log/                        its answers, if somebody learns from it
NODE/alone-seed1-77b0c1d2e3/    the same model without teachers
report.json  report.md  graph.svg
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from gemkit.config.compose import compose
from gemkit.config.fields import to_mapping
from gemkit.config.run import RunConfig
from gemkit.errors import GemkitError
from gemkit.registry import Registry
from gemkit.runs.files import write_text
from gemkit.runs.folder import CONFIG, METRICS, RunFolder
from gemkit.runs.progress import Progress
from gemkit.session import open_dataset
from gemkit.train import train
from gemkit.transfer.graph.config import GraphConfig, NodeConfig, in_order, strategies
from gemkit.transfer.teach import Lesson, teach

DEFAULT_CODES = 32


class Trained(NamedTuple):
    """One finished run of a graph.

    Attributes:
        key: Equal for equal configs, data and teachers.
        folder: Holds the run folder, and the log.
        run: The run folder.
        log: The teacher log, or None if nobody learns from it.
    """

    node: str
    seed: int
    alone: bool
    key: str
    folder: Path
    run: RunFolder
    log: Path | None


class GraphRunner:
    """Runs what is not there yet.

    Args:
        overrides: Words after those of the graph, for every node.
        config_dirs: As for `compose`.
    """

    def __init__(
        self,
        graph: GraphConfig,
        out: Path,
        registry: Registry,
        overrides: Sequence[str] = (),
        config_dirs: Sequence[Path] = (),
        progress: Progress | None = None,
    ) -> None:
        self.graph, self.out, self.registry = graph, out, registry
        self.overrides, self.config_dirs, self.given = overrides, config_dirs, progress
        self.students = {n for node in graph.nodes.values() for n in node.teachers}
        self._fingerprints: dict[str, str] = {}

    def check(self) -> None:
        """Composes every node with placeholders for its teachers: a word that is wrong is found before any training.

        Raises:
            GemkitError: A word or a strategy is not what it should be; the node is named.
        """
        for name in in_order(self.graph):
            with _naming(name):
                self._config(name, 1, dict.fromkeys(self.graph.nodes[name].teachers))

    def run(self) -> list[Trained]:
        """All runs of the graph, those that were there included, seed by seed.

        Raises:
            GemkitError: A run fails; those before it stay.
        """
        self.check()
        self.out.mkdir(parents=True, exist_ok=True)
        found: list[Trained] = []
        for seed in range(1, self.graph.seeds + 1):
            done: dict[str, Trained] = {}
            for name in in_order(self.graph):
                node = self.graph.nodes[name]
                with _naming(name):
                    if node.teachers and node.alone:
                        found.append(self._trained(name, seed, {}, alone=True))
                    teachers = {teacher: done[teacher] for teacher in node.teachers}
                    done[name] = self._taught(self._trained(name, seed, teachers, alone=False), node)
                    found.append(done[name])
        return found

    def _trained(self, name: str, seed: int, teachers: dict[str, Trained], alone: bool) -> Trained:
        run = self._config(name, seed, dict(teachers))
        key = self._key(name, run, teachers)
        folder = self.out / name / f"{'alone-' if alone else ''}seed{seed}-{key[:10]}"
        title = f"{name}{', alone' if alone else ''}, seed {seed}"
        progress = self._progress()
        if not _finished(folder):
            progress.print(f"{title}: training")
            run = dataclasses.replace(run, runs=str(folder))
            started = next(iter(sorted(folder.glob(f"*/{CONFIG}"))), None)
            train(run, self.registry, started and started.parent, progress)
        else:
            progress.print(f"{title}: is there")
        log = folder / "log" if name in self.students and not alone else None
        return Trained(name, seed, alone, key, folder, RunFolder.open(_finished(folder)[0].parent), log)

    def _taught(self, trained: Trained, node: NodeConfig) -> Trained:
        """Writes the log of a node that somebody learns from; a marker says that it is complete."""
        if trained.log is None or (trained.folder / "taught.json").is_file():
            return trained
        width = node.codes or (DEFAULT_CODES if self._codes_are_read(trained.node) else None)
        lesson = Lesson(code_width=width, code_bits=node.code_bits)
        taught = teach(trained.run.path, trained.log, lesson, self.registry, self._progress())
        write_text(trained.folder / "taught.json", json.dumps(taught._asdict()) + "\n")
        return trained

    def _codes_are_read(self, teacher: str) -> bool:
        read = [strategies(n.teachers[teacher], "") for n in self.graph.nodes.values() if teacher in n.teachers]
        return any(options.get("name", s) == "representation" for found in read for s, options in found.items())

    def _config(self, name: str, seed: int, teachers: dict[str, Any]) -> RunConfig:
        """The run of a node. Teachers that are None stand for some that do not exist yet."""
        words = [*self.graph.base, *self.graph.nodes[name].words, *self.overrides, f"seed={seed}"]
        run = compose([*words, "train.save_predictions=true"], self.registry, self.config_dirs)
        parts: dict[str, Any] = {}
        for teacher, trained in teachers.items():
            found = strategies(self.graph.nodes[name].teachers[teacher], f"teachers.{teacher}")
            for strategy, options in found.items():
                values = {"name": strategy, **options}
                fields = {f.name for f in dataclasses.fields(self.registry.get("transfer", values["name"]).config)}
                if "log" in fields:
                    values.setdefault("log", str(trained.log) if trained else "log")
                elif "teacher" in fields:
                    values.setdefault("teacher", str(trained.run.path) if trained else "run")
                parts[f"{teacher}_{strategy}"] = values
        if not parts:
            return run
        return dataclasses.replace(run, transfer=self.registry.config("transfer", {"name": "several", "parts": parts}))

    def _key(self, name: str, run: RunConfig, teachers: dict[str, Trained]) -> str:
        """What the result of a run depends on: its config, its data, what it learns, and from whom."""
        learned = {
            teacher: [trained.key, strategies(self.graph.nodes[name].teachers[teacher], "")]
            for teacher, trained in teachers.items()
        }
        config = to_mapping(dataclasses.replace(run, transfer=None, runs=""))
        node = self.graph.nodes[name]
        text = json.dumps([config, self._fingerprint(run), learned, node.codes, node.code_bits], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def _fingerprint(self, run: RunConfig) -> str:
        name = json.dumps([run.data.name, run.data.root, run.data.build_options], sort_keys=True, default=str)
        if name not in self._fingerprints:
            self._fingerprints[name] = open_dataset(run, self.registry, self._progress()).fingerprint
        return self._fingerprints[name]

    def _progress(self) -> Progress:
        return self.given or Progress()


def _finished(folder: Path) -> list[Path]:
    return sorted(folder.glob(f"*/{METRICS}"))


@contextlib.contextmanager
def _naming(node: str) -> Iterator[None]:
    """Errors inside say which node they are about."""
    try:
        yield
    except GemkitError as error:
        where = f"node {node}, {error.where}" if error.where else f"node {node}"
        raise GemkitError(error.what, where=where, allowed=error.allowed, fix=error.fix) from error
