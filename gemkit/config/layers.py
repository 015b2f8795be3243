"""Blocks that differ from each other: the section `layers`, and what it makes of each block.

Block i takes entry i of the list, and starts again from the first where the list ends: one entry for each block
spells the whole stack out, two alternate. What an entry does not say is as the run's own sections say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

from gemkit.component import NONE
from gemkit.config.fields import Config, from_mapping, option, shown, to_mapping
from gemkit.errors import GemkitError

if TYPE_CHECKING:
    from gemkit.config.run import RunConfig
    from gemkit.registry import Registry

LAYERED = ("cross", "interaction", "sequence")
"""The kinds of which every block has a component of its own, in the order in which a block calls them."""

_DOC = "Another component, as a name or {name: ..., option: ...}; or other options of the run's, as {option: ...}."


@dataclasses.dataclass(frozen=True, kw_only=True)
class LayerConfig(Config):
    """What is different about a block. Once it is built, a kind holds a component's config, ``none``, or null."""

    num_tokens: int | None = option(
        None, "Tokens that leave its interaction module; null: size.num_tokens.", ge=1, le=4096
    )
    cross: Any = option(None, _DOC)
    interaction: Any = option(None, _DOC)
    sequence: Any = option(None, _DOC)


class Layer(NamedTuple):
    """One block of a run: the configs of its components, None where it has none."""

    num_tokens: int
    cross: Any
    interaction: Any
    sequence: Any


def build_layers(values: Any, sections: Mapping[str, Any], registry: Registry) -> tuple[LayerConfig, ...]:
    """The section `layers`, its components as their own configs.

    Args:
        sections: The run's other sections, built.

    Raises:
        GemkitError: An entry is not what it should be; with the full path.
    """
    if not isinstance(values, list | tuple):
        raise GemkitError(
            f"layers = {shown(values)} has the wrong type",
            where="layers",
            allowed="a list of mappings, one for each block",
            fix="layers=[{interaction:dcnv2},{}]",
        )
    num_blocks = sections["size"].num_blocks
    if len(values) > num_blocks:
        raise GemkitError(
            f"layers has {len(values)} entries, and the model has {num_blocks} blocks",
            where="layers",
            allowed=f"at most {num_blocks} (size.num_blocks)",
            fix=f"size.num_blocks={len(values)}",
        )
    return tuple(_layer(value, f"layers[{i}]", sections, registry) for i, value in enumerate(values))


def _layer(value: Any, where: str, sections: Mapping[str, Any], registry: Registry) -> LayerConfig:
    if not isinstance(value, Mapping):
        raise GemkitError(
            f"{where} = {shown(value)} has the wrong type",
            where=where,
            allowed="a mapping with some of num_tokens, cross, interaction, sequence",
        )
    layer: LayerConfig = from_mapping(LayerConfig, value, where)
    built = {kind: _component(kind, getattr(layer, kind), f"{where}.{kind}", sections, registry) for kind in LAYERED}
    return dataclasses.replace(layer, **built)


def _component(kind: str, value: Any, where: str, sections: Mapping[str, Any], registry: Registry) -> Any:
    if value is None:
        return None
    if isinstance(value, Mapping) and "name" not in value:
        base = sections[kind]
        if base is None:
            raise GemkitError(
                f"{where} changes options of the run's {kind}, which is none",
                where=where,
                allowed="a name, alone or with options",
                fix=f"{where}.name, one of: {', '.join(registry.names(kind))}",
            )
        value = to_mapping(base) | dict(value)
    config = registry.config(kind, value, where)
    return NONE if config is None else config


def layer_of(run: RunConfig, block: int) -> Layer:
    """What block `block` is made of."""
    own = run.layers[block % len(run.layers)] if run.layers else LayerConfig()
    configs = {kind: getattr(run, kind) if (c := getattr(own, kind)) is None else c for kind in LAYERED}
    return Layer(own.num_tokens or run.size.num_tokens, **{k: None if c == NONE else c for k, c in configs.items()})
