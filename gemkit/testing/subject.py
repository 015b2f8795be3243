"""What a contract is tried on, and how a component of each kind is called."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from gemkit.component import ComponentSpec
from gemkit.interfaces import Events
from gemkit.testing import bench
from gemkit.testing.bench import Inputs


@dataclasses.dataclass(frozen=True)
class Subject:
    """A component in one config, at one layer.

    Attributes:
        label: Tells the config and the layer apart from others.
        is_first: Whether it stands for its class in contracts that no config changes.
        is_given: Whether the config was named by the test, not found by trying choices.
    """

    spec: ComponentSpec
    config: Any
    layer: int = 0
    label: str = "default"
    is_first: bool = False
    is_given: bool = False

    def __str__(self) -> str:
        return f"{self.spec.kind}-{self.spec.name}-{self.label}"

    def build(self, seed: int = bench.SEED) -> Any:
        """The component, as a model would build it."""
        return bench.build(self.spec, self.config, self.layer, seed)

    def inputs(self, module: nn.Module, rows: tuple[int, ...] | None = None) -> Inputs:
        """Inputs of the examples `rows`; by default of some with short, long, empty and shared histories."""
        num_cls = bench.num_cls(self.spec, self.config, self.layer)
        return bench.make_inputs(module, bench.some_rows() if rows is None else rows, self.layer, num_cls)

    def call(self, module: nn.Module, inputs: Inputs) -> Any:
        """Calls the component as a model would."""
        return CALLS[self.spec.kind](module, inputs)

    def parts(self, module: nn.Module, inputs: Inputs) -> list[list[Tensor]]:
        """Calls the component, and sorts everything it says by the example to which it belongs."""
        return by_example(self.call(module, inputs), inputs)


@dataclasses.dataclass(frozen=True)
class Contract:
    """One promise.

    Attributes:
        check: Raises `AssertionError` if the subject breaks it.
        once: No config changes it, so it is tried once a class.
        slow: Takes many seconds.
        given: Only for configs that the test names: it needs files, which no default has.
    """

    check: Callable[[Subject], None]
    kinds: tuple[str, ...]
    once: bool = False
    slow: bool = False
    given: bool = False

    @property
    def name(self) -> str:
        return self.check.__name__


CALLS: dict[str, Callable[[nn.Module, Inputs], Any]] = {
    "tokenizer": lambda module, i: module(i.batch, i.embedded),
    "interaction": lambda module, i: module(i.x, i.earlier),
    "sequence": lambda module, i: module(i.events, i.query),
    "cross": lambda module, i: module(i.x, i.events),
    "domain": lambda module, i: module(i.x, i.batch.surface),
    "head": lambda module, i: module(i.readout, i.batch),
}
"""Kind -> how a model calls it."""


def tensors(output: Any) -> list[Tensor]:
    """The floating-point tensors that a component computed."""
    if isinstance(output, Tensor):
        return [output]
    if isinstance(output, Events):
        return [output.values, output.cls, output.owner]
    return [t for part in output if part is not None for t in tensors(part)]


def by_example(output: Any, inputs: Inputs) -> list[list[Tensor]]:
    """Everything in a component's output, by the example to which it belongs."""
    if isinstance(output, Tensor):
        return [[row] for row in output]
    if isinstance(output, Events):
        histories = [
            [output.values[a:b], output.ages[a:b], output.stream[a:b], output.cls[u], output.owner[u]]
            for u, (a, b) in enumerate(zip(output.offsets[:-1].tolist(), output.offsets[1:].tolist(), strict=True))
        ]
        return [histories[u] for u in inputs.history_index]
    sides = [by_example(part, inputs) for part in output if part is not None]
    return [[t for side in sides for t in side[i]] for i in range(inputs.x.shape[0])]
