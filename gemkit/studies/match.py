"""Variants that cost what the base costs: a width of each is scaled until they do."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping
from typing import Any

from gemkit.component import KINDS
from gemkit.config.build import check_run
from gemkit.config.compose import compose
from gemkit.config.fields import to_mapping
from gemkit.config.run import RunConfig
from gemkit.errors import GemkitError
from gemkit.registry import Registry
from gemkit.studies.plan import Plan, Variant

TOLERANCE = 0.02
"""Costs that differ by less are equal."""

LARGEST_SCALE = 2.0**12
SMALLEST_SCALE = 2.0**-12

WHAT = {"params": "dense parameters", "flops": "FLOPs per example"}

Cost = Callable[[RunConfig], float]


def matched(
    plan: Plan,
    registry: Registry,
    cost: Cost,
    stored: Mapping[str, tuple[dict[str, Any], str]],
    advance: Callable[[int], None] = lambda _: None,
) -> Plan:
    """The plan with every variant's width changed so that it costs what the base costs.

    Args:
        cost: What is to be equal.
        stored: Variant -> what was changed when the study began, and the note about it: not searched again.
        advance: Called with 1 after each variant.

    Raises:
        GemkitError: A variant has no width, or several, or none at which it costs as much; it is named.
    """
    target = cost(plan.base.run) if any(v.name not in stored for v in plan.variants[1:]) else 0.0
    variants = [plan.base]
    for variant in plan.variants[1:]:
        try:
            if variant.name in stored:
                changes, note = stored[variant.name]
                variants.append(_changed(variant, changes, note, plan, registry))
            else:
                variants.append(_matched(variant, target, plan, registry, cost))
        except GemkitError as error:
            where = f"{error.where}, in variant '{variant.name}'" if error.where else f"variant '{variant.name}'"
            raise GemkitError(error.what, where=where, allowed=error.allowed, fix=error.fix) from error
        advance(1)
    return dataclasses.replace(plan, variants=tuple(variants))


def _matched(variant: Variant, target: float, plan: Plan, registry: Registry, cost: Cost) -> Variant:
    what = WHAT[str(plan.config.match)]
    before = cost(variant.run) / target
    if abs(before - 1) <= TOLERANCE:
        return dataclasses.replace(variant, note=f"{variant.name} has {before:.3f} times the base's {what} as it is.")
    key = width_of(variant, plan)
    old = value_of(variant.run, key)

    def ratio(value: Any) -> float | None:
        try:
            return cost(_with(variant.run, key, value, registry)) / target
        except GemkitError:
            return None  # out of the field's bounds, or too large for the memory

    value, after, between = search(old, ratio)
    if abs(after - 1) > TOLERANCE and not between:
        raise GemkitError(
            f"no {key} gives it the base's {what}: {_text(value)} has {after:.3g} times as many",
            where=key,
            allowed=f"within {TOLERANCE:.0%}, where whole numbers allow it",
            fix="adjust another field (--match-with KEY), give the base another size, or leave the variant out",
        )
    note = f"{variant.name} has {key} = {_text(value)} in place of {_text(old)}: {after:.3f} times the base's {what}"
    note += f", not {before:.3f}." + ("" if abs(after - 1) <= TOLERANCE else " Whole numbers do not come nearer.")
    return _changed(variant, {key: value}, note, plan, registry)


def width_of(variant: Variant, plan: Plan) -> str:
    """The key of the field to adjust: `match_with` itself, or the width that its component declares.

    Without `match_with`, of the component in which the variant differs from the base.

    Raises:
        GemkitError: There is none, or more than one.
    """
    chosen = plan.config.match_with
    if chosen is not None and chosen not in KINDS:
        return chosen
    kinds = [chosen] if chosen else [k for k in KINDS if getattr(variant.run, k) != getattr(plan.base.run, k)]
    changed = {kind: config for kind in kinds if (config := getattr(variant.run, kind)) is not None}
    keys = [f"{kind}.{width}" for kind, config in changed.items() if (width := getattr(config, "width_field", None))]
    if len(keys) != 1:
        nothing = f"no {chosen} of it" if chosen else "nothing that it changes"
        raise GemkitError(
            "more than one width could be adjusted" if keys else f"{nothing} declares a width to adjust",
            where="--match",
            allowed=", ".join(keys) or None,
            fix=f"--match-with {keys[0] if keys else 'KEY, e.g. --match-with interaction.hidden'}",
        )
    return keys[0]


def value_of(run: RunConfig, key: str) -> Any:
    """The value of a run's field that can be scaled.

    Raises:
        GemkitError: There is no such field, or nothing in it can be scaled.
    """
    section, _, field = key.partition(".")
    config = getattr(run, section, None)
    if config is None or field not in {f.name for f in dataclasses.fields(config)}:
        raise GemkitError(f"the run has no {key}", where="--match-with", fix="name a field that every variant has")
    value = getattr(config, field)
    numbers = value if isinstance(value, tuple) else (value,)
    if not numbers or any(isinstance(n, bool) or not isinstance(n, int | float) or n <= 0 for n in numbers):
        raise GemkitError(
            f"{key} = {_text(value)} cannot be scaled",
            where=key,
            allowed="a number above 0, or several",
            fix=f"give it a value: {key}=64, or adjust another field: --match-with KEY",
        )
    return value


def _with(run: RunConfig, key: str, value: Any, registry: Registry) -> RunConfig:
    """
    Raises:
        GemkitError: The value is refused.
    """
    section, _, field = key.partition(".")
    changed = dataclasses.replace(run, **{section: dataclasses.replace(getattr(run, section), **{field: value})})
    check_run(changed, registry)
    return changed


def search(value: Any, ratio: Callable[[Any], float | None]) -> tuple[Any, float, bool]:
    """The multiple of a width whose `ratio` is nearest to 1.

    Args:
        ratio: Cost of a width as a multiple of the goal, which it grows with; None: the width is refused.

    Returns:
        The width, its ratio, and whether the goal lies between two widths that are allowed.
    """
    tried: dict[Any, float] = {}

    def at(scale: float) -> float:
        width = scaled(value, scale)
        if width not in tried:
            found = ratio(width)
            tried[width] = math.inf if found is None else found
        return tried[width]

    low = high = 1.0
    while at(high) < 1 and high < LARGEST_SCALE:
        low, high = high, 2 * high
    while at(low) > 1 and low > SMALLEST_SCALE and scaled(value, low) != scaled(value, low / 2):
        low, high = low / 2, low
    while scaled(value, middle := (low * high) ** 0.5) not in (scaled(value, low), scaled(value, high)):
        low, high = (middle, high) if at(middle) < 1 else (low, middle)
    best = min(tried, key=lambda width: abs(tried[width] - 1))
    allowed = [found for found in tried.values() if math.isfinite(found)]
    return best, tried[best], bool(allowed) and min(allowed) < 1 < max(allowed)


def scaled(value: Any, scale: float) -> Any:
    """A width, or each of several, times `scale`; whole numbers stay whole and at least 1."""
    if isinstance(value, tuple):
        return tuple(scaled(v, scale) for v in value)
    return max(1, round(value * scale)) if isinstance(value, int) else float(f"{value * scale:.4g}")


def _changed(variant: Variant, changes: dict[str, Any], note: str, plan: Plan, registry: Registry) -> Variant:
    words = tuple(f"{key}={_text(value)}" for key, value in changes.items())
    overrides = (*variant.overrides, *words)
    run = compose(overrides, registry, plan.config_dirs)
    return dataclasses.replace(variant, overrides=overrides, run=run, matched=to_mapping(changes), note=note)


def _text(value: Any) -> str:
    """A value as a word of the command line."""
    return f"[{','.join(map(str, value))}]" if isinstance(value, tuple | list) else str(value)
