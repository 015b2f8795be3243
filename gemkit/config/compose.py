"""Defaults, YAML files and overrides to a `RunConfig`. The only file that knows Hydra.

Hydra merges; everything else is ours: choices are checked before it runs, values after it, by the dataclasses.
Interpolation (``${...}``) is refused: a config says what it says, reads no environment and runs no code.
"""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemkit.component import KINDS, NONE, OPTIONAL_KINDS
from gemkit.config.build import (
    SECTIONS,
    broken_yaml,
    build_run,
    check_run,
    load_run_config,
    to_yaml,
    unknown_section,
)
from gemkit.config.run import RunConfig
from gemkit.errors import GemkitError, did_you_mean

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from gemkit.registry import Registry

__all__ = ["GROUPS", "check_run", "choices", "compose", "compose_section", "load_run_config", "to_yaml"]

PATCHES = ("experiment", "ablation")
"""Groups whose files change any section: a named run, and a named change to it."""

GROUPS = (*KINDS, "size", "optimizer", *PATCHES)


def compose(overrides: Sequence[str], registry: Registry, config_dirs: Iterable[Path] = ()) -> RunConfig:
    """The run that ``gemkit train <overrides>`` means.

    A section for which the overrides make another choice than the experiment (or ablation) does takes none
    of that file's values: they were meant for its own choice.

    Args:
        overrides: ``group=choice`` or ``section.key=value``, later ones win.
        config_dirs: Folders laid out like `configs/`, looked up before it.

    Raises:
        GemkitError: An override or a file is not what it should be.
    """
    folders = config_folders(registry, config_dirs)
    wanted = _parse(overrides, registry, folders)
    _refuse_interpolation(folders)
    values, _ = _merge(None, wanted, registry, folders)
    patches = {g: c for g, c in wanted.groups.items() if g in PATCHES}
    others = {g: c for g, c in wanted.groups.items() if g not in PATCHES}
    if patches and others:
        _, theirs = _merge(None, Wanted(patches), registry, folders)
        swapped = [g for g in others if theirs[g] != others[g]]
        own, _ = _merge(None, Wanted(others, wanted.only(swapped)), registry, folders)
        values |= {g: own[g] for g in swapped}
    run = build_run(values, registry)
    for key in wanted.values:
        section = key.partition(".")[0]
        if getattr(run, section) is None:
            raise GemkitError(f"{key} has no meaning: {section} is none", where=key, fix=f"choose one: {section}=...")
    return run


def compose_section(kind: str, overrides: Sequence[str], registry: Registry, config_dirs: Iterable[Path] = ()) -> Any:
    """The config of one component alone, whatever the state of the other sections.

    Args:
        overrides: ``kind=choice`` among them, and any ``kind.key=value``.

    Raises:
        GemkitError: An override is not about this section, or is not what it should be.
    """
    folders = config_folders(registry, config_dirs)
    wanted = _parse(overrides, registry, folders)
    for key in (*wanted.groups, *wanted.values):
        if key.partition(".")[0] != kind:
            raise GemkitError(f"{key} does not matter here", where=key, allowed=f"{kind}.<key>=<value>")
    _refuse_interpolation(folders)
    values, _ = _merge(kind, wanted, registry, folders)
    return registry.config(kind, values.get(kind))


def choices(group: str, registry: Registry, config_dirs: Iterable[Path] = ()) -> list[str]:
    """What a group can be set to: YAML files, registered components and, where it makes sense, ``none``."""
    return _choices(group, registry, config_folders(registry, config_dirs))


def config_folders(registry: Registry, config_dirs: Iterable[Path] = ()) -> list[Path]:
    """Folders of YAML files, first match wins: the user's, gemkit's own, those of plugins."""
    dirs = [Path(d).expanduser().resolve() for d in config_dirs]
    for folder in dirs:
        if not folder.is_dir():
            raise GemkitError(
                "--config-dir is not a folder", where=str(folder), allowed="a folder laid out like configs/"
            )
    package = Path(__file__).resolve().parent.parent
    homes = (package.parent / "configs", package / "_configs")
    own = [home for home in homes if (home / "gem.yaml").is_file()][:1]
    return [*dirs, *own, *registry.config_folders()]


# --- overrides ----------------------------------------------------------------------------------------------


@dataclasses.dataclass
class Wanted:
    """What the overrides ask for.

    Attributes:
        groups: Group -> choice.
        values: Dotted key -> override as Hydra reads it.
    """

    groups: dict[str, str] = dataclasses.field(default_factory=dict)
    values: dict[str, str] = dataclasses.field(default_factory=dict)

    def only(self, sections: Iterable[str]) -> dict[str, str]:
        """The value overrides of some sections."""
        return {k: v for k, v in self.values.items() if k.partition(".")[0] in set(sections)}


def _parse(overrides: Sequence[str], registry: Registry, folders: Sequence[Path]) -> Wanted:
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    wanted = Wanted()
    for text in overrides:
        try:
            override = parser.parse_override(text)
        except HydraException as error:
            raise GemkitError(
                f"cannot read the override {text!r}",
                where="command line",
                allowed="group=choice or section.key=value, e.g. interaction=wukong train.epochs=2",
                fix="quote values with special characters: 'data.root=\"my folder\"'",
            ) from error
        key = override.key_or_group
        section = key.partition(".")[0].partition("[")[0]
        if section not in (*SECTIONS, *PATCHES) or (section in PATCHES and key != section) or override.package:
            raise unknown_section(text.partition("=")[0] if override.package else key, PATCHES)
        if override.is_sweep_override():
            raise GemkitError(
                f"{text} asks for several values", where=key, allowed="one value", fix="start one run for each value"
            )
        if key in GROUPS:
            _add_choice(override, key, wanted, registry, folders)
        else:
            # Forced: whether the key exists is for the dataclasses to say, with the nearest match.
            wanted.values[key] = text if override.is_delete() else "++" + text.lstrip("+")
    return wanted


def _add_choice(override: Override, group: str, wanted: Wanted, registry: Registry, folders: Sequence[Path]) -> None:
    value = override.value()
    allowed = _choices(group, registry, folders)
    if override.is_delete() or isinstance(value, dict | list):
        raise GemkitError(
            f"{override.input_line}: {group} is set by the name of one choice",
            where=group,
            allowed=", ".join(allowed),
            fix=f"{group}=<choice>, and its fields as {group}.<key>=<value>",
        )
    name = NONE if value is None else str(value)
    if name == NONE and group in PATCHES:
        wanted.groups.pop(group, None)
        return
    if name not in allowed:
        if group in KINDS:
            raise registry.unknown(group, name, extra=allowed)
        raise GemkitError(
            f"unknown {group} '{name}'", where=group, allowed=", ".join(allowed), fix=did_you_mean(name, allowed)
        )
    wanted.groups[group] = name


def _choices(group: str, registry: Registry, folders: Sequence[Path]) -> list[str]:
    names = {file.stem for folder in folders for file in (folder / group).glob("*.yaml")}
    if group in KINDS:
        names |= set(registry.names(group))
    return sorted(names) + ([NONE] if group in OPTIONAL_KINDS else [])


# --- merging ------------------------------------------------------------------------------------------------


def _merge(
    kind: str | None, wanted: Wanted, registry: Registry, folders: Sequence[Path]
) -> tuple[dict[str, Any], Mapping[str, str]]:
    """Merged plain values and the choice of each group: of a whole run, or of one kind alone."""
    import hydra
    import yaml
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    first, *rest = (str(f) for f in folders)
    overrides = [*(f"{g}={c}" for g, c in wanted.groups.items()), *wanted.values.values()]
    quoted = ",".join('"file://' + f.replace("\\", "\\\\").replace('"', '\\"') + '"' for f in rest)
    try:
        with _store(registry, folders, kind), hydra.initialize_config_dir(first, version_base="1.3"):
            merged = hydra.compose(_ROOT, [f"hydra.searchpath=[{quoted}]", *overrides], return_hydra_config=True)
            picked = dict(merged.hydra.runtime.choices)
            plain = OmegaConf.to_container(merged)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        raise broken_yaml(error, mark.name if mark else "a config file") from error
    except MissingConfigException as error:
        group, _, name = (error.missing_cfg_file or "").rpartition("/")
        if group in KINDS:
            raise registry.unknown(group, name, extra=_choices(group, registry, folders)) from error
        raise GemkitError(_first_line(error), where="config files") from error
    except (HydraException, OmegaConfBaseException) as error:
        raise GemkitError(_first_line(error), where="config files or overrides") from error
    assert isinstance(plain, dict)
    del plain["hydra"]
    _check_plain(plain, "")
    return {str(k): v for k, v in plain.items()}, picked


_ROOT = "_root"


@contextlib.contextmanager
def _store(registry: Registry, folders: Sequence[Path], kind: str | None) -> Iterator[None]:
    """Lets Hydra see what is in no folder: components without a YAML file, and the root config.

    The root is read here because Hydra looks for it in the first folder only.
    """
    from hydra.core.config_store import ConfigStore
    from omegaconf import OmegaConf

    root = next(folder / "gem.yaml" for folder in folders if (folder / "gem.yaml").is_file())
    store = ConfigStore.instance()
    before = store.repo
    store.repo = dict(before)
    try:
        store.store(_ROOT, OmegaConf.load(root) if kind is None else {"defaults": [{kind: "???"}]})
        for group in KINDS:
            files = {file.stem for folder in folders for file in (folder / group).glob("*.yaml")}
            for name in {*registry.names(group), NONE} - files:
                store.store(name, {"name": name}, group=group)
        yield
    finally:
        store.repo = before


def _check_plain(value: Any, where: str) -> None:
    """Nothing is interpolated (an escape can hide it from the look at the files) or left open."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check_plain(item, f"{where}.{key}".lstrip("."))
    elif isinstance(value, str) and "${" in value:
        raise _interpolation(value, where)
    elif value == "???":
        raise GemkitError(f"{where} must be given", where=where, fix=f"{where}=...")


def _refuse_interpolation(folders: Sequence[Path]) -> None:
    for folder in folders:
        for pattern in ("*.yaml", *(f"{group}/*.yaml" for group in GROUPS)):
            for file in sorted(folder.glob(pattern)):
                for number, line in enumerate(file.read_text(encoding="utf-8").splitlines(), 1):
                    if "${" in line and not line.lstrip().startswith("#"):
                        raise _interpolation(line.strip(), f"{file}, line {number}")


def _interpolation(text: str, where: str) -> GemkitError:
    return GemkitError(
        f"interpolation is not supported: {text}", where=where, allowed="plain values", fix="write the value itself"
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
