"""Config dataclasses that check themselves at construction.

A config is a frozen, keyword-only dataclass derived from `Config`; its fields are declared with `option`,
which keeps documentation and bounds beside the default:

    @dataclass(frozen=True, kw_only=True)
    class WukongConfig(Config):
        name: str = "wukong"
        rank: int = option(16, "Columns k of the projection Y.", ge=1)
"""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from gemkit.errors import GemkitError, did_you_mean


def option(
    default: Any,
    doc: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Sequence[str] | None = None,
) -> Any:
    """A dataclass field with its documentation, bounds and choices. `doc` names the unit, if it has one."""
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    metadata = {"doc": doc, "choices": choices, **{k: v for k, v in bounds.items() if v is not None}}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configs: checks every field's type, bounds and choices when it is made.

    Raises:
        GemkitError: A value is of the wrong type or outside its bounds; the field is named.
    """

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = check_type(getattr(self, field.name), hints[field.name], field.name)
            object.__setattr__(self, field.name, value)
            _check_bounds(value, field)
        self.check()

    def check(self) -> None:
        """For subclasses: conditions between fields. Raise `GemkitError` with `where` a field name."""


def check_type(value: Any, hint: Any, where: str) -> Any:
    """`value` as `hint` wants it (an int becomes a float, a list a tuple), or a `GemkitError`."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return value
    if origin in (typing.Union, types.UnionType):
        return _check_union(value, args, hint, where)
    if origin is tuple:
        if isinstance(value, list | tuple):
            return tuple(check_type(v, args[0], f"{where}[{i}]") for i, v in enumerate(value))
    elif origin is dict:
        if isinstance(value, Mapping):
            return {check_type(k, args[0], where): check_type(v, args[1], f"{where}.{k}") for k, v in value.items()}
    elif dataclasses.is_dataclass(hint):
        if isinstance(value, typing.cast(type, hint)):
            return value
        if isinstance(value, Mapping):
            return from_mapping(typing.cast(type, hint), value, where)
    elif hint is float and isinstance(value, int) and not isinstance(value, bool):
        return float(value)
    elif isinstance(value, hint) and not (isinstance(value, bool) and hint is int):
        return value
    raise GemkitError(f"{where} = {value!r} has the wrong type", where=where, allowed=type_name(hint))


def _check_union(value: Any, args: tuple[Any, ...], hint: Any, where: str) -> Any:
    if value is None and type(None) in args:
        return None
    failures = []
    for arg in args:
        if arg is type(None):
            continue
        try:
            return check_type(value, arg, where)
        except GemkitError as error:
            failures.append(error)
    if len(failures) == 1 and failures[0].where != where:
        raise failures[0]  # an error deeper inside the only alternative says more
    raise GemkitError(f"{where} = {value!r} has the wrong type", where=where, allowed=type_name(hint))


def _check_bounds(value: Any, field: dataclasses.Field[Any]) -> None:
    rules = field.metadata
    choices = rules.get("choices")
    for item in value if isinstance(value, tuple) else (value,):
        if choices is not None and item is not None and item not in choices:
            raise GemkitError(
                f"{field.name} = {item!r} is not one of its choices",
                where=field.name,
                allowed=", ".join(choices),
                fix=did_you_mean(str(item), choices),
            )
        if isinstance(item, bool) or not isinstance(item, int | float):
            continue
        inside = (
            math.isfinite(item)
            and item >= rules.get("ge", -math.inf)
            and item <= rules.get("le", math.inf)
            and (item > rules.get("gt", -math.inf))
            and (item < rules.get("lt", math.inf))
        )
        if not inside:
            raise GemkitError(
                f"{field.name} = {item!r} is out of range", where=field.name, allowed=bounds_text(field) or "finite"
            )


def bounds_text(field: dataclasses.Field[Any]) -> str:
    """The bounds or choices of a field as people write them: ``>= 1, < 8``."""
    if field.metadata.get("choices"):
        return " | ".join(str(c) for c in field.metadata["choices"])
    signs = {"ge": ">=", "gt": ">", "le": "<=", "lt": "<"}
    return ", ".join(f"{sign} {field.metadata[key]}" for key, sign in signs.items() if key in field.metadata)


def type_name(hint: Any) -> str:
    """A type as people write it: ``int or null``."""
    args = typing.get_args(hint)
    if typing.get_origin(hint) in (typing.Union, types.UnionType):
        return " or ".join(type_name(a) for a in args)
    if typing.get_origin(hint) is tuple:
        return f"list of {type_name(args[0])}"
    if typing.get_origin(hint) is dict:
        return f"mapping of {type_name(args[0])} to {type_name(args[1])}"
    names = {type(None): "null", str: "text", bool: "true or false", int: "whole number", float: "number"}
    return names.get(hint) or str(getattr(hint, "__name__", hint))


def from_mapping(cls: type, values: Mapping[str, Any], where: str = "") -> Any:
    """Builds a config dataclass from a plain mapping.

    Raises:
        GemkitError: An unknown key (with the nearest match), or a value that the field refuses;
            `where` is the full dotted path.
    """
    known = [f.name for f in dataclasses.fields(cls)]
    prefix = f"{where}." if where else ""
    for key in values:
        if key not in known:
            raise GemkitError(
                f"unknown key {prefix}{key}",
                where=where or "top level",
                allowed=", ".join(known),
                fix=did_you_mean(str(key), known),
            )
    try:
        return cls(**values)
    except GemkitError as error:
        if not where or (error.where or "").startswith(prefix):
            raise
        what = error.what
        if error.where and what.startswith(error.where):
            what = prefix + what
        raise GemkitError(what, where=prefix + (error.where or ""), allowed=error.allowed, fix=error.fix) from error


def to_mapping(config: Any) -> Any:
    """The inverse of `from_mapping`: nested plain dicts, lists and scalars, ready for YAML."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_mapping(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, tuple | list):
        return [to_mapping(v) for v in config]
    if isinstance(config, Mapping):
        return {k: to_mapping(v) for k, v in config.items()}
    return config
