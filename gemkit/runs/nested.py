"""Nested states, an optimiser's or a random generator's, as tensors by name and something that JSON can hold."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gemkit.errors import GemkitError


def flatten_state(prefix: str, nested: Any) -> tuple[dict[str, Tensor], Any]:
    """Takes the tensors out of nested dicts, lists and tuples: an optimiser's state_dict, a random generator's.

    Returns:
        Tensors named ``<prefix>.<path>``, and what is left, as JSON can hold it. `unflatten_state` is the exact
        inverse: keys that are numbers, tuples and None come back as they were.

    Raises:
        TypeError: A value that is none of these, nor text, a number or None.
    """
    if isinstance(nested, Tensor):
        return {prefix: nested}, {"$tensor": prefix}
    if nested is None or isinstance(nested, str | bool | int | float):
        return {}, nested
    tensors: dict[str, Tensor] = {}

    def inner(key: Any, value: Any) -> Any:
        found, rest = flatten_state(f"{prefix}.{key}", value)
        if clash := tensors.keys() & found.keys():
            raise TypeError(f"two tensors of the state would be named {sorted(clash)[0]}")
        tensors.update(found)
        return rest

    if isinstance(nested, Mapping):
        # JSON's keys are text; an optimiser's are numbers
        return tensors, {"$dict": [[key, inner(key, value)] for key, value in nested.items()]}
    if isinstance(nested, list | tuple):
        items = [inner(i, value) for i, value in enumerate(nested)]
        return tensors, {"$tuple": items} if isinstance(nested, tuple) else items
    raise TypeError(f"{prefix} is a {type(nested).__name__}, which a checkpoint cannot hold")


def unflatten_state(tensors: Mapping[str, Tensor], rest: Any) -> Any:
    """The inverse of `flatten_state`; `tensors` may hold others too.

    Raises:
        GemkitError: A tensor is missing.
    """
    if isinstance(rest, list):
        return [unflatten_state(tensors, value) for value in rest]
    if not isinstance(rest, dict):
        return rest
    if "$tensor" in rest:
        name = rest["$tensor"]
        if name not in tensors:
            raise GemkitError(f"the checkpoint holds no tensor {name}", where=name)
        return tensors[name]
    if "$tuple" in rest:
        return tuple(unflatten_state(tensors, value) for value in rest["$tuple"])
    return {key: unflatten_state(tensors, value) for key, value in rest["$dict"]}
