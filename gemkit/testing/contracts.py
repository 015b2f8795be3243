"""The contract suite: what every component of a kind must do, as functions that a test can call.

    import pytest
    from gemkit.testing import contracts
    from my_plugin.blocks import MyInteraction

    @pytest.mark.parametrize("check", contracts(MyInteraction), ids=str)
    def test_contract(check):
        check()

A component is tried with its default config and with every value of every field that has choices; name
further configs where other values change what the component builds.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from gemkit.component import ComponentSpec, spec_of
from gemkit.errors import GemkitError
from gemkit.testing import contracts_any, contracts_batches, contracts_blocks, contracts_runs
from gemkit.testing.subject import Contract, Subject

LAYERED = ("interaction", "sequence", "cross")
"""Kinds that are built once a layer: tried as layer 0 and as layer 1."""

CONTRACTS: tuple[Contract, ...] = (
    *contracts_any.CONTRACTS,
    *contracts_batches.CONTRACTS,
    *contracts_blocks.CONTRACTS,
    *contracts_runs.CONTRACTS,
)


@dataclasses.dataclass(frozen=True)
class Check:
    """One contract, to be tried on one component in one config; calling it raises `AssertionError` if it is broken."""

    contract: Contract
    subject: Subject

    def __call__(self) -> None:
        self.contract.check(self.subject)

    def __str__(self) -> str:
        return f"{self.subject}-{self.contract.name}"


def contracts(
    cls: type, configs: Mapping[str, Any] | None = None, *, slow: bool = False, only_given: bool = False
) -> list[Check]:
    """The checks of a component.

    Args:
        cls: A class with `@component`.
        configs: Further configs, by the name under which a test shows them.
        slow: The slow checks (compilers) instead of the fast ones.
        only_given: Try `configs` alone, for a component whose default config cannot be built.

    Raises:
        TypeError: `cls` is no component.
    """
    spec = spec_of(cls)
    if spec is None:
        raise TypeError(f"{cls!r} has no @component of its own")
    given = dict(configs or {})
    return [
        Check(contract, subject)
        for subject in _subjects(spec, {} if only_given else variants(spec.config), given)
        for contract in contracts_for(spec.kind, slow=slow)
        if (subject.is_first or not contract.once) and (subject.is_given or not contract.given)
    ]


def contracts_for(kind: str, *, slow: bool = False) -> list[Contract]:
    """The contracts of a kind."""
    return [c for c in CONTRACTS if kind in c.kinds and c.slow == slow]


def variants(config: Callable[..., Any]) -> dict[str, Any]:
    """The default config, and one for every other value of every field with choices.

    A config that the dataclass itself refuses (one choice may ask for another field) is left out.
    """
    found: dict[str, Any] = {}
    for name, changes in _changes(config):
        try:
            found[name] = config(**changes)
        except GemkitError:
            continue
    return found


def _changes(config: Any) -> Iterable[tuple[str, dict[str, Any]]]:
    yield "default", {}
    for field in dataclasses.fields(config):
        for choice in field.metadata.get("choices") or ():
            if choice != field.default:
                yield f"{field.name}={choice}", {field.name: choice}


def _subjects(spec: ComponentSpec, found: Mapping[str, Any], given: Mapping[str, Any]) -> list[Subject]:
    layers = (0, 1) if spec.kind in LAYERED else (0,)
    subjects = [
        Subject(spec, config, layer, f"{name}-layer{layer}" if len(layers) > 1 else name, is_given=name in given)
        for name, config in {**found, **given}.items()
        for layer in layers
    ]
    return [dataclasses.replace(s, is_first=i == 0) for i, s in enumerate(subjects)]
