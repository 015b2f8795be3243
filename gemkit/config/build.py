"""Plain mappings and saved YAML to a `RunConfig`, and back. Knows nothing of how configs are composed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemkit.component import KINDS, NONE
from gemkit.config.fields import Config, check_text, clipped, from_mapping, shown, to_mapping, wrong_type
from gemkit.config.files import read_yaml
from gemkit.config.layers import LAYERED, build_layers
from gemkit.config.run import LoaderConfig, OptimizerConfig, RunConfig, SizeConfig, TrainConfig
from gemkit.errors import GemkitError, did_you_mean

if TYPE_CHECKING:
    from gemkit.registry import Registry

CORE: dict[str, type] = {
    "train": TrainConfig,
    "size": SizeConfig,
    "optimizer": OptimizerConfig,
    "loader": LoaderConfig,
}
"""Sections whose config is gemkit's own."""

SECTIONS = tuple(f.name for f in dataclasses.fields(RunConfig))


def build_run(values: Mapping[str, Any], registry: Registry) -> RunConfig:
    """A checked run from nested plain mappings.

    Raises:
        GemkitError: A section, key or value is not what it should be; with the full dotted path.
    """
    for key in values:
        if key not in SECTIONS:
            raise unknown_section(str(key))
    for key in ("seed", "runs", *KINDS):
        if key not in values:
            raise GemkitError(f"the config has no {key}", where=key, fix=f"{key}=...")
    sections: dict[str, Any] = {"seed": values["seed"], "runs": _runs(values["runs"])}
    for name, config in CORE.items():
        section = values.get(name)
        section = {} if section is None else section
        if not isinstance(section, Mapping):
            raise GemkitError(
                f"{name} = {shown(section)} is a section, not a value",
                where=name,
                allowed=", ".join(f"{name}.{f.name}" for f in dataclasses.fields(config)),
            )
        sections[name] = from_mapping(config, section, name)
    for kind in KINDS:
        sections[kind] = registry.config(kind, values[kind])
    sections["layers"] = build_layers(values.get("layers") or (), sections, registry)
    run = RunConfig(**sections)
    check_run(run, registry)
    return run


def unknown_section(key: str, extra: tuple[str, ...] = ()) -> GemkitError:
    """The error for a first segment that is no section; `extra` are allowed too, and more than sections."""
    known = (*SECTIONS, *extra)
    return GemkitError(
        f"unknown key {clipped(key)}",
        where="top level",
        allowed=", ".join(known),
        fix=did_you_mean(key.partition(".")[0], known),
    )


def _runs(value: Any) -> str:
    if not isinstance(value, str):
        raise wrong_type(value, str, "runs")
    if not value:
        raise GemkitError("runs is empty", where="runs", allowed="a folder", fix="runs=runs")
    return check_text(value, "runs")


def check_run(run: RunConfig, registry: Registry) -> None:
    """Conditions between sections that can be known without the data.

    Raises:
        GemkitError: A condition does not hold.
    """
    if run.train.batch_size % run.train.accumulate:
        raise GemkitError(
            f"train.batch_size = {run.train.batch_size} cannot be cut into train.accumulate = "
            f"{run.train.accumulate} equal micro-batches",
            where="train.accumulate",
            allowed=f"a divisor of {run.train.batch_size}",
        )
    for kind in KINDS:
        config = registry.config(kind, getattr(run, kind))  # of this registry, and of the right kind
        if isinstance(config, Config) and kind not in LAYERED:
            config.check_run(run)
    for i in range(run.size.num_blocks):
        _check_block(run, i)
    if run.cross is not None and not run.reads_events:
        layer = registry.get("cross", run.cross.name).cls
        if getattr(layer, "requires_events", False):
            raise cross_without_events(f"cross={run.cross.name}")


def _check_block(run: RunConfig, index: int) -> None:
    """A block's components, asked as if all blocks were like it."""
    block = run.blocks[index]
    size = dataclasses.replace(run.size, num_tokens=block.num_tokens)
    alike = dataclasses.replace(run, layers=(), size=size, **{kind: getattr(block, kind) for kind in LAYERED})
    for kind in LAYERED:
        config = getattr(block, kind)
        if not isinstance(config, Config):
            continue
        try:
            config.check_run(alike)
        except GemkitError as error:
            if not run.layers:
                raise
            where = f"layers[{index % len(run.layers)}], {error.where or kind}"
            raise GemkitError(error.what, where=where, allowed=error.allowed, fix=error.fix) from error


def cross_without_events(word: str) -> GemkitError:
    """The error for a cross layer that has nothing to work with."""
    return GemkitError(
        f"{clipped(word)} needs events, and sequence is none",
        where="cross",
        allowed="cross=none, where sequence=none",
        fix="cross=none, or choose a sequence: sequence=pyramid",
    )


def to_yaml(run: RunConfig) -> str:
    """The run as YAML that `load_run_config` reads back."""
    import yaml

    values = to_mapping(run)
    values |= {kind: NONE for kind in KINDS if values[kind] is None}
    return yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=120)


def load_run_config(path: Path, registry: Registry) -> RunConfig:
    """Reads a saved ``config.yaml``.

    Raises:
        GemkitError: The file is missing or broken, or names what is not installed.
    """
    path = Path(path)
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise GemkitError(
            "there is no saved config here", where=str(path), fix="name a run folder, e.g. runs/<name>"
        ) from None
    try:
        return build_run(values, registry)
    except GemkitError as error:
        where = f"{path}: {error.where}" if error.where else str(path)
        raise GemkitError(error.what, where=where, allowed=error.allowed, fix=error.fix) from error
