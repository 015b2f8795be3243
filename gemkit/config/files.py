"""YAML files, read so that nothing in them can do more than say values.

A file of somebody else may hold anything. Before any value is made, its events are looked at one by one: tags
(which name Python objects), anchors and aliases (a few lines of which can stand for gigabytes), interpolation and
endless nesting are refused, with the line.
"""

from __future__ import annotations

import copy
import dataclasses
import functools
import re
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from gemkit.config.fields import clipped
from gemkit.errors import GemkitError

LARGEST_FILE = 1_000_000
"""Bytes; a config of more is something else."""

DEEPEST = 20
"""Levels of nesting; real configs have four."""

_HEADER = re.compile(r"^\s*#\s*@(.*)$")


class ConfigFile(NamedTuple):
    """One YAML file of a group.

    Attributes:
        package: What its header ``# @package ...`` says, or None.
    """

    path: Path
    values: dict[str, Any]
    package: str | None


def find_files(folders: Sequence[Path], groups: Iterable[str]) -> dict[tuple[str, str], Path]:
    """(group, name) -> its YAML file; of several, the first folder's."""
    found: dict[tuple[str, str], Path] = {}
    for folder in folders:
        for group in groups:
            for path in sorted((folder / group).glob("*.yaml")):
                found.setdefault((group, path.stem), path)
    return found


def read_config_file(path: Path) -> ConfigFile:
    """
    Raises:
        GemkitError: As for `read_yaml`, or the header is not understood.
    """
    text = _read_text(path)
    packages = []
    for number, line in enumerate(text.splitlines(), 1):
        if line.strip() and not line.lstrip().startswith("#"):
            break
        if header := _HEADER.match(line):
            words = header[1].split()
            if len(words) != 2 or words[0] != "package":
                raise GemkitError(
                    f"cannot read the header {clipped(line.strip())!r}",
                    where=f"{path}, line {number}",
                    allowed="# @package _global_, in files of experiment and ablation",
                )
            packages.append(words[1])
    return ConfigFile(path, parse_yaml(text, str(path)), packages[-1] if packages else None)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file of plain values.

    Raises:
        FileNotFoundError: There is no such file.
        GemkitError: It cannot be read, is broken, is no mapping, or holds more than plain values.
    """
    return parse_yaml(_read_text(path), str(path))


def parse_yaml(text: str, where: str) -> dict[str, Any]:
    """What `text` says; `where` names it in errors."""
    return copy.deepcopy(_parsed(text, where))


# A study composes hundreds of runs from the same files.
@functools.lru_cache(maxsize=128)
def _parsed(text: str, where: str) -> dict[str, Any]:
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    try:
        if not _check_events(text, where):
            return {}
        # OmegaConf's parser: it refuses duplicate keys, and 1e-3 is a number to it.
        values = OmegaConf.to_container(OmegaConf.create(text))
    except yaml.YAMLError as error:
        raise broken_yaml(error, where) from error
    except (OmegaConfBaseException, ValueError, AttributeError, RecursionError) as error:
        # ValueError and AttributeError: a thing that looks like a date or a number and is none.
        first = str(error).strip().partition("\n")[0]
        raise GemkitError(f"cannot read a value: {clipped(first)}", where=where, fix="quote it") from error
    assert isinstance(values, dict)
    for key in values:
        if not isinstance(key, str):
            raise GemkitError(f"the key {clipped(str(key))} is no text", where=where, fix="name a section or a field")
    return {str(key): value for key, value in values.items()}


def _read_text(path: Path) -> str:
    try:
        with path.open("rb") as file:
            data = file.read(LARGEST_FILE + 1)
    except FileNotFoundError:
        raise
    except OSError as error:
        raise GemkitError(
            f"cannot read the file: {error.strerror}", where=str(path), allowed="a YAML file that you may read"
        ) from error
    if len(data) > LARGEST_FILE:
        raise GemkitError("the file is too large for a config", where=str(path), allowed=f"{LARGEST_FILE:,} bytes")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise GemkitError(
            f"the file is no text: byte 0x{data[error.start]:02x}",
            where=f"{path}, line {line}",
            allowed="YAML in UTF-8",
        ) from error


@dataclasses.dataclass
class _Level:
    """Where the walk through a collection has come to: the key, or the index of a list."""

    mapping: bool
    key: str | int = -1
    wants_key: bool = True

    def step(self, event: yaml.Event) -> None:
        """The next key, value or item begins."""
        if not self.mapping:
            assert isinstance(self.key, int)
            self.key += 1
        elif self.wants_key:
            self.key, self.wants_key = getattr(event, "value", "?"), False
        else:
            self.wants_key = True


def _check_events(text: str, where: str) -> bool:
    """Refuses what is no plain value; returns whether there is any value."""
    levels: list[_Level] = []
    documents, filled = 0, False

    def refuse(what: str, allowed: str = "plain values", fix: str = "write the value itself") -> GemkitError:
        dotted = ".".join(str(level.key) for level in levels if level.key != -1)
        line = f"{where}, line {event.start_mark.line + 1 if event.start_mark else '?'}"
        return GemkitError(what, where=f"{line}, {clipped(dotted)}" if dotted else line, allowed=allowed, fix=fix)

    for event in yaml.parse(text, Loader=yaml.SafeLoader):
        if isinstance(event, yaml.DocumentStartEvent):
            documents += 1
            if documents > 1:
                raise refuse("there are several documents in the file", "one mapping", "remove the line ---")
        if isinstance(event, yaml.CollectionEndEvent):
            levels.pop()
        if not isinstance(event, yaml.NodeEvent):
            continue
        if levels:
            levels[-1].step(event)
        if event.anchor:
            raise refuse(f"anchors and aliases are not supported: {clipped(event.anchor)}")
        if tag := getattr(event, "tag", None):
            raise refuse(f"broken YAML: {clipped(tag)} is a tag, and tags are not supported")
        if isinstance(event, yaml.ScalarEvent):
            if not levels:
                if event.value in ("", "null", "~"):
                    continue
                raise refuse("the file is no mapping", "lines of `key: value`", "look at the first line")
            if "${" in event.value:
                raise refuse(f"interpolation is not supported: {clipped(event.value)}")
        else:
            mapping = isinstance(event, yaml.MappingStartEvent)
            if not levels and not mapping:
                raise refuse("the file is no mapping", "lines of `key: value`", "look at the first line")
            if len(levels) >= DEEPEST:
                raise refuse("values are nested too deep", f"{DEEPEST} levels", "look at the brackets")
            levels.append(_Level(mapping))
            filled = True
    return filled


def broken_yaml(error: yaml.YAMLError, path: str) -> GemkitError:
    """The error for a file that is no YAML, with its line if the parser knows it."""
    mark = getattr(error, "problem_mark", None) or getattr(error, "context_mark", None)
    problem = getattr(error, "problem", None) or getattr(error, "reason", None) or str(error).partition("\n")[0]
    where = f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else path
    return GemkitError(f"broken YAML: {problem}", where=where, fix="mend the file at this line, or the one before it")
