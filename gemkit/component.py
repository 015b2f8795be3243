"""What a component is: a class, its kind, its name and its config dataclass.

`@component(kind, Config)` only attaches a `ComponentSpec` to the class. Nothing is registered at import;
a plugin's hook returns its classes and `gemkit.registry` collects them.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
from collections.abc import Callable
from typing import Any, TypeVar

KINDS: dict[str, str] = {
    "data": "a data set: where its files come from and what its columns mean",
    "tokenizer": "embedded features -> tokens (B, N, D) and events",
    "interaction": "tokens with tokens, one layer",
    "sequence": "events with events, one layer",
    "cross": "tokens and events see a summary of each other, one layer",
    "domain": "adapts tokens to the surface of each example",
    "head": "readout -> logits, and the loss that belongs to them",
    "transfer": "what a student learns from a teacher, and how",
    "parallel": "where parameters and examples live: one process, or a mesh",
}
"""The kinds of component, in the order in which data meets them."""

OPTIONAL_KINDS = frozenset({"interaction", "sequence", "cross", "domain", "transfer"})
"""Kinds that may be left out of a run by the reserved name ``none``."""

NONE = "none"

_SPEC = "__gemkit_component__"
T = TypeVar("T", bound=type)


@dataclasses.dataclass(frozen=True)
class ComponentSpec:
    """What the registry knows about one component."""

    kind: str
    name: str
    cls: type
    config: type

    @property
    def doc(self) -> str:
        return inspect.getdoc(self.cls) or ""

    @property
    def summary(self) -> str:
        """First line of the docstring."""
        return self.doc.partition("\n")[0]

    @property
    def paper(self) -> str | None:
        """The ``Paper:`` section of the docstring as one line, or None."""
        match = re.search(r"^Paper:\s*(.+?)(?=\n\s*\n|\n\w[\w ]*:|\Z)", self.doc, re.S | re.M)
        return " ".join(match.group(1).split()) if match else None


def component(kind: str, config: type) -> Callable[[T], T]:
    """Marks a class as a component of `kind`, configured by the dataclass `config`.

    The component's name is the default of `config.name`.

    Raises:
        TypeError: `kind` is unknown, or `config` is not a dataclass with a `name` default. (A plugin
            author's mistake, so not a `GemkitError`.)
    """
    if kind not in KINDS:
        raise TypeError(f"@component: unknown kind {kind!r}; kinds are {', '.join(KINDS)}")
    if not dataclasses.is_dataclass(config):
        raise TypeError(f"@component({kind!r}): {config.__name__} must be a dataclass")
    fields = {f.name: f for f in dataclasses.fields(config)}
    name = fields["name"].default if "name" in fields else None
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise TypeError(
            f'@component({kind!r}): {config.__name__} needs a field `name: str = "lower_case"`, got {name!r}'
        )
    if name == NONE:
        raise TypeError(f"@component({kind!r}): the name 'none' is reserved for leaving a kind out")

    def attach(cls: T) -> T:
        setattr(cls, _SPEC, ComponentSpec(kind, name, cls, config))
        return cls

    return attach


def spec_of(cls: Any) -> ComponentSpec | None:
    """The spec that `@component` attached to exactly this class (a subclass does not inherit it)."""
    return vars(cls).get(_SPEC) if isinstance(cls, type) else None
