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

from gemkit.component import KINDS, NONE
from gemkit.config.build import (
    SECTIONS,
    build_run,
    check_run,
    cross_without_events,
    load_run_config,
    to_yaml,
    unknown_section,
)
from gemkit.config.fields import clipped, shown
from gemkit.config.files import find_files, read_config_file
from gemkit.config.folders import GROUPS, PATCHES, checked, choices_in, config_folders
from gemkit.config.run import RunConfig
from gemkit.config.study import GROUP as STUDIES
from gemkit.config.study import studies_in, study_as_choice
from gemkit.errors import GemkitError, did_you_mean

if TYPE_CHECKING:
    from hydra.core.override_parser.types import Override

    from gemkit.registry import Registry

__all__ = [
    "GROUPS",
    "check_run",
    "choices",
    "compose",
    "compose_section",
    "expand_toggle",
    "load_run_config",
    "to_yaml",
]

LISTS = {"transfer": "several"}
"""Group -> the component that a list of choices stands for; it holds them as its `parts`."""

LONGEST_WORD = 10_000
"""Characters of one override; more is slow to read, and belongs into a file."""


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
        section = section_of(key)
        if getattr(run, section) is None:
            raise GemkitError(f"{key} has no meaning: {section} is none", where=key, fix=f"choose one: {section}=...")
    if not run.reads_events and run.cross is not None:
        # The default cross stays, without effect, so that `sequence=none` is a whole ablation; one that was asked for
        # by name was asked for to do something.
        for word in (f"cross={wanted.groups['cross']}" if "cross" in wanted.groups else "", *wanted.only(["cross"])):
            if word:
                raise cross_without_events(word)
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
        if section_of(key) != kind:
            raise GemkitError(f"{key} does not matter here", where=key, allowed=f"{kind}.<key>=<value>")
    values, _ = _merge(kind, wanted, registry, folders)
    return registry.config(kind, values.get(kind))


def choices(group: str, registry: Registry, config_dirs: Iterable[Path] = ()) -> list[str]:
    """What a group can be set to: YAML files, registered components and, where it makes sense, ``none``."""
    return choices_in(group, registry, config_folders(registry, config_dirs))


def expand_toggle(text: str, registry: Registry, config_dirs: Iterable[Path] = ()) -> list[str]:
    """One word for each value of a toggle, in Hydra's sweep syntax.

    ``a=1,2`` is ``a=1`` and ``a=2``; ``a=range(1,3)`` likewise; ``interaction=glob(*)`` is every choice of the group.
    Whether key and values mean anything is for `compose` to say.

    Raises:
        GemkitError: It cannot be read.
    """
    from hydra.core.override_parser.types import Glob
    from hydra.errors import HydraException

    override = _read(text, "--toggle", "key=value,value, e.g. interaction=wukong,dcnv2")
    key = override.key_or_group
    try:
        if not override.is_sweep_override():
            return [text]
        swept = override.value()
        if isinstance(swept, Glob):
            return [f"{key}={name}" for name in swept.filter(choices(key, registry, config_dirs))]
        return [f"{key}={value}" for value in override.sweep_string_iterator()]
    except HydraException as error:
        raise GemkitError(
            f"cannot list the values of {shown(text)}", where="--toggle", allowed="key=value,value", fix="name them"
        ) from error


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

    def plain(self) -> dict[str, Any]:
        """Dotted key -> the value itself.

        Raises:
            GemkitError: A word takes a value away.
        """
        found = {}
        for key, word in self.values.items():
            override = _read(word, "command line", "section.key=value")
            if override.is_delete():
                raise GemkitError(f"{clipped(word)} has no value", where=key, allowed=f"{key}=value")
            found[key] = override.value()
        return found

    def only(self, sections: Iterable[str]) -> dict[str, str]:
        """The value overrides of some sections."""
        return {k: v for k, v in self.values.items() if section_of(k) in set(sections)}


def read_words(overrides: Sequence[str], registry: Registry, config_dirs: Iterable[Path] = ()) -> Wanted:
    """What overrides ask for, without the config that they are to change.

    Raises:
        GemkitError: One is not what it should be.
    """
    return _parse(overrides, registry, config_folders(registry, config_dirs))


def section_of(key: str) -> str:
    """The first segment of a key: of ``train.epochs`` and ``train[epochs]``, ``train``."""
    return key.partition(".")[0].partition("[")[0]


def _read(text: str, where: str, allowed: str) -> Override:
    """
    Raises:
        GemkitError: Hydra cannot read the word.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if len(text) > LONGEST_WORD:
        raise GemkitError(
            f"the word {shown(text)} is too long",
            where=where,
            allowed=f"{LONGEST_WORD:,} characters",
            fix="put the value into a YAML file, and name the file's folder with --config-dir",
        )
    try:
        return OverridesParser.create().parse_override(text)
    except (HydraException, ValueError, RecursionError) as error:
        raise GemkitError(
            f"cannot read the override {shown(text)}",
            where=where,
            allowed=allowed,
            fix="quote values with special characters: 'data.root=\"my folder\"'",
        ) from error


def _parse(overrides: Sequence[str], registry: Registry, folders: Sequence[Path]) -> Wanted:
    wanted = Wanted()
    allowed = "group=choice or section.key=value, e.g. interaction=wukong train.epochs=2"
    for text in overrides:
        override = _read(text, "command line", allowed)
        key = override.key_or_group
        section = section_of(key)
        if section not in (*SECTIONS, *PATCHES) or (section in PATCHES and key != section) or override.package:
            raise unknown_section(key if key and not override.package else text.partition("=")[0] or text, PATCHES)
        if override.is_sweep_override():
            raise GemkitError(
                f"{clipped(text)} asks for several values",
                where=key,
                allowed="one value",
                fix=f"gemkit ablate --toggle {clipped(text)}",
            )
        if key in GROUPS:
            _add_choice(override, key, wanted, registry, folders)
        else:
            # Forced: whether the key exists is for the dataclasses to say, with the nearest match.
            wanted.values[key] = text if override.is_delete() else "++" + text.lstrip("+")
    return wanted


def _add_choice(override: Override, group: str, wanted: Wanted, registry: Registry, folders: Sequence[Path]) -> None:
    value = override.value()
    allowed = choices_in(group, registry, folders)
    if isinstance(value, list) and group in LISTS and not override.is_delete():
        names = [str(name) for name in value]
        for name in names:
            if name not in registry.names(group) or name == LISTS[group]:
                raise registry.unknown(group, name)
            if names.count(name) > 1:
                fix = f"{group}={LISTS[group]}, with {group}.parts.<another name>.name={name}"
                raise GemkitError(f"{group} names {name} twice", where=group, allowed="each once", fix=fix)
            key = f"{group}.parts.{name}.name"
            wanted.values[key] = f"++{key}={name}"
        value = LISTS[group]
    if override.is_delete() or isinstance(value, dict | list):
        raise GemkitError(
            f"{clipped(str(override.input_line))}: {group} is set by the name of one choice",
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
        if group == STUDIES and name in studies_in(folders):
            raise study_as_choice(name)
        raise GemkitError(
            f"unknown {group} {shown(name)}", where=group, allowed=", ".join(allowed), fix=did_you_mean(name, allowed)
        )
    wanted.groups[group] = name


# --- merging ------------------------------------------------------------------------------------------------


def _merge(
    kind: str | None, wanted: Wanted, registry: Registry, folders: Sequence[Path]
) -> tuple[dict[str, Any], Mapping[str, str]]:
    """Merged plain values and the choice of each group: of a whole run, or of one kind alone."""
    import hydra
    from hydra.errors import HydraException, MissingConfigException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    overrides = [*(f"{g}={c}" for g, c in wanted.groups.items()), *wanted.values.values()]
    problems: dict[str, GemkitError] = {}
    try:
        with _store(registry, folders, kind, problems), hydra.initialize(None, version_base="1.3"):
            merged = hydra.compose(_ROOT, ["hydra.searchpath=[]", *overrides], return_hydra_config=True)
            picked = dict(merged.hydra.runtime.choices)
            plain = OmegaConf.to_container(merged)
    except MissingConfigException as error:
        missing = error.missing_cfg_file or ""
        if missing in problems:
            raise problems[missing] from error
        group, _, name = missing.rpartition("/")
        if group in KINDS:
            raise registry.unknown(group, name, extra=choices_in(group, registry, folders)) from error
        raise GemkitError(clipped(_first_line(error)), where="config files") from error
    except (HydraException, OmegaConfBaseException, AssertionError, ValueError, RecursionError) as error:
        raise GemkitError(clipped(_first_line(error)), where="config files or overrides") from error
    assert isinstance(plain, dict)
    del plain["hydra"]
    _check_plain(plain, "")
    return {str(k): v for k, v in plain.items()}, picked


_ROOT = "_root"


@contextlib.contextmanager
def _store(
    registry: Registry, folders: Sequence[Path], kind: str | None, problems: dict[str, GemkitError]
) -> Iterator[None]:
    """Lets Hydra see our files and the components without one, and no folder: it reads no file itself.

    Args:
        problems: Receives "group/name" -> what is wrong with a file, for the case that it is chosen.
    """
    from hydra.core.config_store import ConfigStore

    root = next(folder / "gem.yaml" for folder in folders if (folder / "gem.yaml").is_file())
    store = ConfigStore.instance()
    before = store.repo
    store.repo = dict(before)
    try:
        store.store(_ROOT, checked(read_config_file(root), None).values if kind is None else _only(kind))
        found = find_files(folders, GROUPS)
        for (group, name), path in found.items():
            try:
                file = checked(read_config_file(path), group)
                if group in KINDS and not {"name", "defaults"} & set(file.values):
                    raise GemkitError(
                        f"{group} has no name",
                        where=str(path),
                        allowed=", ".join(registry.names(group)),
                        fix="name: ...",
                    )
            except GemkitError as problem:
                problems[f"{group}/{name}"] = problem
            else:
                store.store(name, file.values, group=group, package=file.package)
        for group in KINDS:
            for name in {*registry.names(group), NONE}:
                if (group, name) not in found:
                    store.store(name, {"name": name}, group=group)
        yield
    finally:
        store.repo = before


def _only(kind: str) -> dict[str, Any]:
    return {"defaults": [{kind: "???"}]}


def _check_plain(value: Any, where: str) -> None:
    """Nothing is interpolated (an escape can hide it from the look at the files) or left open."""
    if isinstance(value, dict | list):
        for key, item in value.items() if isinstance(value, dict) else enumerate(value):
            _check_plain(item, f"{where}.{key}".lstrip("."))
    elif isinstance(value, str) and "${" in value:
        raise _interpolation(value, where)
    elif value == "???":
        raise GemkitError(f"{where} must be given", where=where, fix=f"{where}=...")


def _interpolation(text: str, where: str) -> GemkitError:
    return GemkitError(
        f"interpolation is not supported: {clipped(text)}",
        where=where,
        allowed="plain values",
        fix="write the value itself",
    )


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0] or type(error).__name__
