"""Plain mappings and saved YAML to a `RunConfig`, and back. Knows nothing of how configs are composed."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemkit.component import KINDS, NONE
from gemkit.config.fields import check_type, from_mapping, to_mapping
from gemkit.config.run import OptimizerConfig, RunConfig, SizeConfig, TrainConfig
from gemkit.errors import GemkitError, did_you_mean

if TYPE_CHECKING:
    import yaml

    from gemkit.registry import Registry

CORE: dict[str, type] = {"train": TrainConfig, "size": SizeConfig, "optimizer": OptimizerConfig}
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
    sections: dict[str, Any] = {"seed": values["seed"], "runs": check_type(values["runs"], str, "runs")}
    for name, config in CORE.items():
        section = values.get(name) or {}
        if not isinstance(section, Mapping):
            raise GemkitError(
                f"{name} = {section!r} is a section, not a value",
                where=name,
                allowed=", ".join(f"{name}.{f.name}" for f in dataclasses.fields(config)),
            )
        sections[name] = from_mapping(config, section, name)
    for kind in KINDS:
        sections[kind] = registry.config(kind, values[kind])
    run = RunConfig(**sections)
    check_run(run, registry)
    return run


def unknown_section(key: str, extra: tuple[str, ...] = ()) -> GemkitError:
    """The error for a first segment that is no section; `extra` are allowed too, and more than sections."""
    known = (*SECTIONS, *extra)
    return GemkitError(
        f"unknown key {key}",
        where="top level",
        allowed=", ".join(known),
        fix=did_you_mean(key.partition(".")[0], known),
    )


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
        registry.config(kind, getattr(run, kind))  # of this registry, and of the right kind


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
    import yaml

    path = Path(path)
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise GemkitError(
            "there is no saved config here", where=str(path), fix="name a run folder, e.g. runs/<name>"
        ) from None
    except (OSError, UnicodeDecodeError) as error:
        raise GemkitError(f"cannot read the saved config: {error}", where=str(path)) from error
    except yaml.YAMLError as error:
        raise broken_yaml(error, str(path)) from error
    if not isinstance(values, Mapping):
        raise GemkitError("a saved config is a mapping of sections", where=str(path), allowed=", ".join(SECTIONS))
    try:
        return build_run(values, registry)
    except GemkitError as error:
        where = f"{path}: {error.where}" if error.where else str(path)
        raise GemkitError(error.what, where=where, allowed=error.allowed, fix=error.fix) from error


def broken_yaml(error: yaml.YAMLError, path: str) -> GemkitError:
    """The error for a file that is no YAML, with its line if the parser knows it."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or str(error).partition("\n")[0]
    where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else path
    return GemkitError(f"broken YAML: {problem}", where=where, fix="mend the file at this line, or the one before it")
