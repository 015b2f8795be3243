"""A graph or a cycle out of its YAML file."""

from __future__ import annotations

from pathlib import Path
from typing import TypeVar

from gemkit.config.fields import Config, from_mapping
from gemkit.config.files import read_yaml
from gemkit.errors import GemkitError

T = TypeVar("T", bound=Config)


def read(path: Path, kind: type[T], word: str) -> T:
    """What a file says, as a config of this kind.

    Args:
        word: How the command line calls the file.

    Raises:
        GemkitError: There is no such file, or it is not what it should be; the field is named.
    """
    try:
        values = read_yaml(path)
    except FileNotFoundError:
        raise GemkitError(f"there is no file {path}", where=word, allowed="a YAML file") from None
    try:
        found: T = from_mapping(kind, values)
    except GemkitError as error:
        where = f"{path}, {error.where}" if error.where else str(path)
        raise GemkitError(error.what, where=where, allowed=error.allowed, fix=error.fix) from error
    return found
