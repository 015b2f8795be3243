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
from typing import TYPE_CHECKING, Any, ClassVar

from gemkit.errors import GemkitError, did_you_mean

if TYPE_CHECKING:
    from gemkit.config.run import RunConfig

LARGEST = 2**31 - 1
"""Largest whole number of a field that names no bound of its own: what indices and libraries can count to."""

LARGEST_FLOAT = 1e30
"""The same for a number; its square root is still far below what 32 bits hold."""

LONGEST = 4096
"""Characters of the longest text; the longest path of most systems."""

SHOWN = 120
"""Characters of a value that an error message shows."""


def option(
    default: Any,
    doc: str,
    *,
    ge: float | None = None,
    gt: float | None = None,
    le: float | None = None,
    lt: float | None = None,
    choices: Sequence[str] | None = None,
    filled: bool = False,
) -> Any:
    """A dataclass field with its documentation, bounds and choices. `doc` names the unit, if it has one.

    Args:
        ge, gt, le, lt: Bounds of a number; a whole number without `le` or `lt` ends at `LARGEST`.
        filled: An empty text or list is refused.
    """
    bounds = {"ge": ge, "gt": gt, "le": le, "lt": lt}
    metadata = {"doc": doc, "choices": choices, **{k: v for k, v in bounds.items() if v is not None}}
    metadata |= {"filled": True} if filled else {}
    if isinstance(default, list | dict):
        return dataclasses.field(default_factory=lambda: type(default)(default), metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Config:
    """Base of all configs: checks every field's type, bounds and choices when it is made.

    Raises:
        GemkitError: A value is of the wrong type or outside its bounds; the field is named.
    """

    width_field: ClassVar[str | None] = None
    """Name of the field whose value (a whole number, or hidden widths) scales the cost; None: no field does."""

    def __post_init__(self) -> None:
        hints = typing.get_type_hints(type(self))
        for field in dataclasses.fields(self):
            value = check_type(getattr(self, field.name), hints[field.name], field.name)
            object.__setattr__(self, field.name, value)
            _check_bounds(value, field)
        self.check()

    def check(self) -> None:
        """For subclasses: conditions between fields. Raise `GemkitError` with `where` a field name."""

    def check_run(self, run: RunConfig) -> None:
        """For subclasses: conditions with other sections. Raise `GemkitError` with `where` a dotted field."""


def shown(value: Any) -> str:
    """A value as error messages show it: its repr, cut where it is long."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # Python refuses to print whole numbers of thousands of digits
        return f"a very long {type(value).__name__}"
    return clipped(text)


def clipped(text: str) -> str:
    """A text cut to what fits on a line."""
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}... ({len(text):,} characters)"


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
        try:
            return float(value)
        except OverflowError:
            raise GemkitError(f"{where} = {shown(value)} is out of range", where=where, allowed="finite") from None
    elif isinstance(value, hint) and not (isinstance(value, bool) and hint is int):
        return check_text(value, where) if isinstance(value, str) else value
    raise wrong_type(value, hint, where)


def wrong_type(value: Any, hint: Any, where: str) -> GemkitError:
    """The error for a value that is no `hint`."""
    return GemkitError(f"{where} = {shown(value)} has the wrong type", where=where, allowed=type_name(hint))


def check_text(value: str, where: str, longest: int = LONGEST) -> str:
    """`value`, if a file can hold it and a path may be it.

    Raises:
        GemkitError: It is too long, or holds a NUL or half a character.
    """
    if len(value) > longest:
        raise GemkitError(f"{where} = {shown(value)} is too long", where=where, allowed=f"{longest:,} characters")
    if any(c == "\0" or "\ud800" <= c <= "\udfff" for c in value):
        raise GemkitError(
            f"{where} = {shown(value)} holds a character that is no text", where=where, allowed="text in UTF-8, no NUL"
        )
    return value


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
    raise wrong_type(value, hint, where)


def _check_bounds(value: Any, field: dataclasses.Field[Any]) -> None:
    rules = field.metadata
    choices = rules.get("choices")
    if rules.get("filled") and isinstance(value, str | tuple) and not value:
        raise GemkitError(f"{field.name} is empty", where=field.name, allowed="anything that is not empty")
    for item in value if isinstance(value, tuple) else (value,):
        if choices is not None and item is not None and item not in choices:
            raise GemkitError(
                f"{field.name} = {shown(item)} is not one of its choices",
                where=field.name,
                allowed=", ".join(choices),
                fix=did_you_mean(str(item), choices),
            )
        if isinstance(item, bool) or not isinstance(item, int | float):
            continue
        own = "le" in rules or "lt" in rules
        largest = LARGEST if isinstance(item, int) else LARGEST_FLOAT
        inside = (
            (isinstance(item, int) or math.isfinite(item))
            and item >= rules.get("ge", -math.inf)
            and item <= rules.get("le", math.inf)
            and (item > rules.get("gt", -math.inf))
            and (item < rules.get("lt", math.inf))
        )
        if not inside or (not own and abs(item) > largest):
            allowed = [bounds_text(field), f"<= {largest}" if not own and abs(item) > largest else ""]
            raise GemkitError(
                f"{field.name} = {shown(item)} is out of range",
                where=field.name,
                allowed=", ".join(filter(None, allowed)) or "finite",
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
                f"unknown key {clipped(f'{prefix}{key}')}",
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
