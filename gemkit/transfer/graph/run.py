"""Trains a graph: each node after its teachers, and nothing that is there already.

    OUT/
        NODE/seed1-3f2ac09b1d/          runs of a node under one config, teachers included
            2026-..._s1/                the run folder
            log-32x8/                   its answers, if somebody learns from it, here with codes of 32 numbers of 8 bits
        NODE/alone-seed1-77b0c1d2e3/    the same model without teachers
        report.json  report.md  graph.svg

The end of a folder's name stands for all that its run depends on: config, data, and teachers.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

from gemkit.config.run import RunConfig
from gemkit.runs.files import write_text
from gemkit.runs.folder import RunFolder
from gemkit.transfer.codes import Coding
from gemkit.transfer.coding import log_name
from gemkit.transfer.graph.config import GraphConfig, in_order, strategies
from gemkit.transfer.teach import Lesson, teach
from gemkit.transfer.units import Units, naming

TAUGHT = "taught.json"


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
    """Runs what is not there yet."""

    def __init__(self, graph: GraphConfig, out: Path, units: Units) -> None:
        self.graph, self.out, self.units = graph, out, units

    def check(self) -> None:
        """Composes every node with placeholders for its teachers: a word that is wrong is found before any training.

        Raises:
            GemkitError: A word or a strategy is not what it should be; the node is named.
        """
        for name in in_order(self.graph):
            with naming(f"node {name}"):
                self.config(name, 1, dict.fromkeys(self.graph.nodes[name].teachers))

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
                with naming(f"node {name}"):
                    if node.teachers and node.alone:
                        found.append(self._trained(name, seed, {}, alone=True))
                    teachers = {teacher: done[teacher] for teacher in node.teachers}
                    done[name] = self._taught(self._trained(name, seed, teachers, alone=False))
                    found.append(done[name])
        return found

    def config(self, name: str, seed: int, teachers: dict[str, Any]) -> RunConfig:
        """The run of a node. Teachers that are None stand for some that do not exist yet."""
        parts: dict[str, Any] = {}
        for teacher, trained in teachers.items():
            found = strategies(self.graph.nodes[name].teachers[teacher], f"teachers.{teacher}")
            for strategy, options in found.items():
                values = {"name": strategy, **options}
                if self.units.reads(values["name"], "log"):
                    values.setdefault("log", str(trained.log) if trained else "log")
                elif self.units.reads(values["name"], "teacher"):
                    values.setdefault("teacher", str(trained.run.path) if trained else "run")
                parts[f"{teacher}_{strategy}"] = values
        return self.units.compose([*self.graph.base, *self.graph.nodes[name].words], seed, parts)

    def key(self, name: str, run: RunConfig, teachers: dict[str, Trained]) -> str:
        """What the result of a node depends on: its config, its data, what it learns, and from whom."""
        node = self.graph.nodes[name]
        learned = {t: [one.key, self.coding(t), strategies(node.teachers[t], "")] for t, one in teachers.items()}
        return self.units.key(run, learned)

    def coding(self, teacher: str) -> Coding | None:
        """The codes that a node leaves for its students; None: none."""
        learned = [
            options.get("name", strategy)
            for student in self.graph.nodes.values()
            if teacher in student.teachers
            for strategy, options in strategies(student.teachers[teacher], "").items()
        ]
        return self.units.coding(self.graph.nodes[teacher], learned)

    def _trained(self, name: str, seed: int, teachers: dict[str, Trained], alone: bool) -> Trained:
        run = self.config(name, seed, dict(teachers))
        key = self.key(name, run, teachers)
        folder = self.out / name / f"{'alone-' if alone else ''}seed{seed}-{key[:10]}"
        done = self.units.trained(run, folder, f"{name}{', alone' if alone else ''}, seed {seed}")
        log = None
        if not alone and any(name in node.teachers for node in self.graph.nodes.values()):
            log = folder / log_name(self.coding(name))
        return Trained(name, seed, alone, key, folder, done, log)

    def _taught(self, trained: Trained) -> Trained:
        """Writes the log of a node that somebody learns from; a marker beside its parts says that it is complete."""
        if trained.log is None or (trained.log / TAUGHT).is_file():
            return trained
        lesson = Lesson(coding=self.coding(trained.node))
        taught = teach(trained.run.path, trained.log, lesson, self.units.registry, self.units.progress)
        write_text(trained.log / TAUGHT, json.dumps(taught._asdict()) + "\n")
        return trained
