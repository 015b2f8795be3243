"""Values that a field may be set to: wrong ones of many kinds, and some that are right."""

from __future__ import annotations

import dataclasses
import json
import math
import random
import types
import typing
from collections.abc import Callable
from typing import Any, NamedTuple

from gemkit.config.fields import LARGEST, LONGEST


class Target(NamedTuple):
    """A field that can be set.

    Attributes:
        words: Choose the component that has it.
        hint: Its type.
    """

    section: str
    words: tuple[str, ...]
    field: dataclasses.Field[Any]
    hint: Any

    @property
    def key(self) -> str:
        return f"{self.section}.{self.field.name}"

    @property
    def types(self) -> tuple[Any, ...]:
        """The alternatives of its type."""
        union = typing.get_origin(self.hint) in (typing.Union, types.UnionType)
        return typing.get_args(self.hint) if union else (self.hint,)


def misspelt(rng: random.Random, name: str) -> str:
    """`name` with a letter dropped, doubled, exchanged or foreign."""
    while True:
        i = rng.randrange(len(name))
        wrong = rng.choice(
            (
                name[:i] + name[i + 1 :],
                name[:i] + name[i] + name[i:],
                name[:i] + rng.choice("xyzäß") + name[i + 1 :],
                name[: i - 1] + name[i] + name[i - 1] + name[i + 1 :] if i else name + "s",
                name.upper(),
                name.replace("_", ""),
            )
        )
        if wrong and wrong != name and (wrong[0].isalpha() and wrong.replace("_", "").isalnum()):
            return wrong


def literal(value: Any) -> str:
    """A value as a word of the command line says it."""
    if isinstance(value, str):
        return "'" + value.replace("'", "\\'") + "'"
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, list):
        return f"[{','.join(literal(v) for v in value)}]"
    if isinstance(value, dict):
        return "{" + ",".join(f"{k}: {literal(v)}" for k, v in value.items()) + "}"
    return json.dumps(value)


# --- values: (value, whether it must be refused), or None where the field has no such value -----------------


def _number(target: Target) -> type | None:
    """Int or float, for a number or a list of numbers."""
    flat = [inner for kind in target.types for inner in (typing.get_args(kind) or (kind,))]
    return int if int in flat else float if float in flat else None


def _in_place(target: Target, value: Any) -> Any:
    """In a list where the field is one."""
    return [value] if typing.get_origin(target.types[0]) is tuple else value


def wrong_type(rng: random.Random, target: Target) -> tuple[Any, bool]:
    wrong: list[Any] = [{"a": 1}, [[]]]
    if str not in target.types:
        wrong.append("many")
    if bool not in target.types:
        wrong.append(True)
    if int in target.types:
        wrong += [1.5, "3", [1]]
    if str in target.types:
        wrong += [3, 0.5, [1]]
    if dataclasses.is_dataclass(target.types[0]):
        wrong.remove({"a": 1})
    return rng.choice(wrong), True


def below(rng: random.Random, target: Target) -> tuple[Any, bool] | None:
    rules = target.field.metadata
    if _number(target) is None or not {"ge", "gt"} & set(rules):
        return None
    edge = rules["gt"] if "gt" in rules else rules["ge"] - (1 if _number(target) is int else 1e-9)
    value = rng.choice((edge, edge - 1, -(10**9)))
    return _in_place(target, int(value) if _number(target) is int else value), True


def above(rng: random.Random, target: Target) -> tuple[Any, bool] | None:
    rules = target.field.metadata
    number = _number(target)
    if number is None or (number is float and not {"le", "lt"} & set(rules)):
        return None
    edge = rules.get("lt", rules.get("le", LARGEST) + 1)
    value = rng.choice((edge, 10 * edge, 10**30))
    return _in_place(target, int(value) if number is int else value), True


def huge(rng: random.Random, target: Target) -> tuple[Any, bool] | None:
    number = _number(target)
    if number is None:
        return None
    return _in_place(target, rng.choice((10**6, 10**9, LARGEST) if number is int else (1e6, 1e30, 1e308))), False


def not_finite(rng: random.Random, target: Target) -> tuple[Any, bool] | None:
    return None if _number(target) is None else (_in_place(target, rng.choice((math.nan, math.inf, -math.inf))), True)


def empty(rng: random.Random, target: Target) -> tuple[Any, bool]:
    return rng.choice(("", [])), _number(target) is not None and typing.get_origin(target.types[0]) is not tuple


def long_text(rng: random.Random, target: Target) -> tuple[Any, bool] | None:
    return _in_place(target, rng.choice("ab") * rng.choice((LONGEST + 1, 9000))), True


def foreign_text(rng: random.Random, target: Target) -> tuple[Any, bool]:
    text = rng.choice(("größe", "数据", "🙂", "a b", "a\tb", "../..", "~", "\x1b[31m", "\u202e", "-", "%s{0}", "null "))
    takes_text = str in target.types or str in typing.get_args(target.types[0])  # itself, or in a list
    return _in_place(target, text), not takes_text or bool(target.field.metadata.get("choices"))


def no_text(rng: random.Random, target: Target) -> tuple[Any, bool]:
    return _in_place(target, rng.choice(("\0", "a\0b", "runs\0"))), True


def wrong_choice(rng: random.Random, target: Target) -> tuple[Any, bool] | None:
    choices = target.field.metadata.get("choices")
    if not choices:
        return None
    wrong = misspelt(rng, rng.choice(choices))
    return wrong, wrong not in choices


def null(rng: random.Random, target: Target) -> tuple[Any, bool]:
    return None, type(None) not in target.types


def nested(rng: random.Random, target: Target) -> tuple[Any, bool] | None:
    """An unknown key, or a wrong value, in a list of mappings."""
    inner = (typing.get_args(target.types[0]) or (target.types[0],))[0]
    if not dataclasses.is_dataclass(inner):
        return None
    item = rng.choice(({"nmae": "x"}, {"name": 3}, {"name": ["x"]}, {1: 2}, {}, 3))
    listed = typing.get_origin(target.types[0]) is tuple
    return ([item] if listed else item), item != {}


def interpolation(rng: random.Random, target: Target) -> tuple[Any, bool]:
    return rng.choice(("${oc.env:HOME}", "${now:%Y}", "${seed}", "a${train.epochs}", "${", "${oc.env:NONE,x}")), True


def allowed(rng: random.Random, target: Target) -> tuple[Any, bool] | None:
    """A value that the field's own rules allow."""
    rules, number = target.field.metadata, _number(target)
    if rules.get("choices"):
        return rng.choice(rules["choices"]), False
    if number is None or target.section == "transfer":
        return (rng.random() < 0.5, False) if target.types == (bool,) else None
    low = rules.get("ge", rules.get("gt", 0))
    value = low + rng.choice((0, 1, 2, 3, 8)) if number is int else low + rng.random() * 0.9
    return _in_place(target, int(value) if number is int else value), False


VALUES: dict[str, Callable[[random.Random, Target], tuple[Any, bool] | None]] = {
    "wrong type": wrong_type,
    "below the bound": below,
    "above the bound": above,
    "huge": huge,
    "not finite": not_finite,
    "empty": empty,
    "long text": long_text,
    "foreign text": foreign_text,
    "NUL": no_text,
    "misspelt choice": wrong_choice,
    "null": null,
    "nested value": nested,
    "interpolation": interpolation,
    "allowed value": allowed,
}
