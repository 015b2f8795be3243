"""Groups, the folders of YAML files that hold their choices, and what a file of a group may say."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from gemkit.component import KINDS, NONE, OPTIONAL_KINDS
from gemkit.config.build import unknown_section
from gemkit.config.fields import shown
from gemkit.config.files import ConfigFile, find_files
from gemkit.config.study import GROUP as STUDIES
from gemkit.config.study import is_study, studies_in, study_as_choice
from gemkit.errors import GemkitError

if TYPE_CHECKING:
    from gemkit.registry import Registry

PATCHES = ("experiment", "ablation")
"""Groups whose files change any section: a named run, and a named change to it."""

GROUPS = (*KINDS, "size", "optimizer", *PATCHES)


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


def choices_in(group: str, registry: Registry, folders: Sequence[Path]) -> list[str]:
    """What a group can be set to: YAML files of these folders, components and, where it makes sense, ``none``."""
    names = {name for _, name in find_files(folders, [group])}
    if group == STUDIES:
        names -= set(studies_in(folders))
    if group in KINDS:
        names |= set(registry.names(group))
    return sorted(names) + ([NONE] if group in OPTIONAL_KINDS else [])


def checked(file: ConfigFile, group: str | None) -> ConfigFile:
    """A file as Hydra may have it: its values in their own place, and none of them Hydra's."""
    expected = "_global_" if group in PATCHES else None
    if group == STUDIES and is_study(file):
        raise study_as_choice(file.path.stem)
    if file.package != expected:
        raise GemkitError(
            f"the file's header says @package {file.package}" if file.package else "the file has no header",
            where=str(file.path),
            allowed=f"# @package {expected}" if expected else "no header",
            fix="change the first line",
        )
    if (group is None or expected) and "hydra" in file.values:
        error = unknown_section("hydra", ("defaults",))
        raise GemkitError(error.what, where=str(file.path), allowed=error.allowed)
    if not isinstance(file.values.get("defaults", []), list):
        raise GemkitError(
            f"defaults = {shown(file.values['defaults'])} has the wrong type",
            where=f"{file.path}, defaults",
            allowed="a list of choices",
        )
    return file
