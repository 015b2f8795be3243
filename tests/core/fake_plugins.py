"""Plugins in memory for tests of the registry, the config and the command line."""

from __future__ import annotations

import dataclasses
from types import SimpleNamespace
from typing import Any

from gemkit import interfaces
from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.config.run import DataConfig
from gemkit.hookspecs import hookimpl
from gemkit.registry import INTERFACES, Registry


def make(kind: str, name: str, base: type[Config] = Config, **fields: tuple[str, Any]) -> type:
    """A component class that only keeps what it was built with; `fields` are (type, option) of its config."""
    types = {"name": "str"} | {key: hint for key, (hint, _) in fields.items()}
    defaults = {"name": name} | {key: default for key, (_, default) in fields.items()}
    body = {"__annotations__": types, "__module__": __name__} | defaults
    config = dataclasses.dataclass(frozen=True, kw_only=True)(type(f"{name.title()}Config", (base,), body))

    def init(self: Any, config: Any, context: Any = None) -> None:
        object.__setattr__(self, "config", config)  # past nn.Module's own machinery
        object.__setattr__(self, "context", context)

    doc = f"A fake {name}.\n\nPaper: Nobody, 2026,\n    eq. 1.\n\nDiffers: In all."
    cls = type(name.title(), (getattr(interfaces, INTERFACES[kind]),), {"__init__": init, "__doc__": doc})
    cls.__abstractmethods__ = frozenset()  # type: ignore[attr-defined]
    return component(kind, config)(cls)


class FakePlugin:
    """A plugin object that returns the given components."""

    def __init__(self, *components: type) -> None:
        self.components = components

    @hookimpl
    def gemkit_components(self) -> list[type]:
        return list(self.components)


def plugin(**hooks: Any) -> SimpleNamespace:
    """A plugin with any hooks: name -> function without arguments."""
    return SimpleNamespace(**{name: hookimpl(function) for name, function in hooks.items()})


def broken_plugin() -> SimpleNamespace:
    """A plugin whose components cannot be imported."""

    def gemkit_components() -> list[type]:
        import a_module_that_is_not_installed  # type: ignore[import-not-found]

        return [a_module_that_is_not_installed.Block]

    return plugin(gemkit_components=gemkit_components)


def default_components() -> list[type]:
    """One component of every kind that has no `none`, and some more, under the names of configs/gem.yaml."""
    wukong = {
        "rank": ("int", option(16, "Columns k of the projection Y.", ge=1, le=512)),
        "gate": ("str", option("sigmoid", "Gate.", choices=("sigmoid", "none"))),
    }
    return [
        make("data", "movielens1m", DataConfig, split=("str", option("time", "Split.", choices=("time", "autoint")))),
        make("tokenizer", "plain"),
        make("interaction", "wukong", **wukong),
        make("interaction", "dcn", depth=("int", option(2, "Layers.", ge=1))),
        make("sequence", "pyramid", chunk=("int", option(64, "Events in a chunk.", ge=1))),
        make("cross", "interformer"),
        make("head", "multitask"),
        make("parallel", "single"),
    ]


def fake_registry(**plugins: Any) -> Registry:
    """A registry with `default_components` and further plugins."""
    return Registry.from_plugins({"builtin": FakePlugin(*default_components()), **plugins})
