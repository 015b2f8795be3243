"""What a graph is: runs, and who teaches whom, as a YAML file."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Mapping
from typing import Any

from gemkit.config.fields import Config, option, shown
from gemkit.errors import GemkitError, did_you_mean
from gemkit.transfer.coding import CodingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class NodeConfig(CodingConfig):
    """One model of a graph."""

    words: tuple[str, ...] = option((), "Words of its run, as for `gemkit train`; they come after the graph's `base`.")
    teachers: dict[str, Any] = option(
        {},
        "Teacher node -> what is learned from it: a strategy, a list of them, or a mapping from strategies to options.",
    )
    alone: bool = option(True, "Also train it without teachers, to say what they are worth.")

    def check(self) -> None:
        super().check()
        for teacher, value in self.teachers.items():
            strategies(value, f"teachers.{teacher}")


@dataclasses.dataclass(frozen=True, kw_only=True)
class GraphConfig(Config):
    """Models, and who teaches whom."""

    base: tuple[str, ...] = option((), "Words of every node's run.")
    nodes: dict[str, NodeConfig] = option({}, "Name -> model.")
    seeds: int = option(3, "Seeds 1, 2, ...: each trains the whole graph.", ge=1, le=100)
    task: str | None = option(None, "Task that the report is about; null: the first of each node's data.")

    def check(self) -> None:
        if not self.nodes:
            raise GemkitError("the graph has no nodes", where="nodes", fix="nodes: {gem: {words: [...]}}")
        for name, node in self.nodes.items():
            check_name(name, "nodes")
            for teacher in node.teachers:
                if teacher not in self.nodes:
                    raise GemkitError(
                        f"{name} learns from {shown(teacher)}, which is no node",
                        where=f"nodes.{name}.teachers",
                        allowed=", ".join(self.nodes),
                        fix=did_you_mean(str(teacher), self.nodes),
                    )
        in_order(self)


def check_name(name: str, where: str) -> None:
    """
    Raises:
        GemkitError: A model's name cannot be that of a folder.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_-]{0,49}", name):
        raise GemkitError(
            f"a model is called {shown(name)}", where=where, allowed="a letter, then letters, digits, - and _"
        )


def strategies(value: Any, where: str) -> dict[str, dict[str, Any]]:
    """Strategy -> options, from any of the ways to say it.

    Raises:
        GemkitError: It is none of them.
    """
    if isinstance(value, str):
        return {value: {}}
    if isinstance(value, list | tuple) and value and all(isinstance(name, str) for name in value):
        return {name: {} for name in value}
    if isinstance(value, Mapping) and value and all(isinstance(o, Mapping | None) for o in value.values()):
        return {str(name): dict(options or {}) for name, options in value.items()}
    raise GemkitError(
        f"{where} = {shown(value)} names no strategy",
        where=where,
        allowed="a strategy, a list of them, or a mapping from strategies to options",
        fix=f"{where.rpartition('.')[2]}: [auxiliary_head, representation]",
    )


def in_order(graph: GraphConfig) -> list[str]:
    """Names of the nodes, teachers before their students.

    Raises:
        GemkitError: A model is its own teacher, maybe by way of others.
    """
    done: list[str] = []
    left = dict(graph.nodes)
    while left:
        ready = [name for name, node in left.items() if all(teacher in done for teacher in node.teachers)]
        if not ready:
            raise GemkitError(
                f"among {', '.join(left)}, each waits for another one's answers",
                where="nodes",
                allowed="a graph without a circle: teachers before students",
            )
        done += ready
        for name in ready:
            del left[name]
    return done
