"""Data sets whose original files the user has: finding them in a folder, checking them, remembering the check."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pyarrow.parquet

from gemkit.config.fields import option
from gemkit.config.run import DataConfig
from gemkit.data.csvfile import check_quotes
from gemkit.data.files import UNREADABLE
from gemkit.errors import GemkitError
from gemkit.interfaces import DataRecipe

MARKER = "files.json"
CHUNK_BYTES = 1 << 20

Progress = Callable[[str, int, int], None]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LocalFilesConfig(DataConfig):
    """A data set that is built from files in a folder of the user's."""

    md5s: ClassVar[dict[str, str]] = {}
    """File name -> published md5 ("" if none is), in the order in which the files are read."""

    files: str = option("", "Folder that holds the unpacked original files.")

    @property
    def build_options(self) -> dict[str, Any]:
        """Where the files are does not matter; size and time of files that nothing checks do, as with `table`."""
        options = {k: v for k, v in super().build_options.items() if k != "files"}
        if getattr(self, "check_md5", False):
            return options
        found = [find_file(Path(self.files), name) if self.files else None for name in self.md5s]
        return options | {"stat": [[p.stat().st_size, p.stat().st_mtime_ns] if p else None for p in found]}


@dataclasses.dataclass(frozen=True, kw_only=True)
class CheckedFilesConfig(LocalFilesConfig):
    """Files of which the publisher gives the md5."""

    check_md5: bool = option(True, "Refuse files that are not the published ones; false: take any of the same columns.")


@dataclasses.dataclass(frozen=True)
class LocalFile:
    """A file that was found.

    Attributes:
        rows: Without the header.
        num_bytes: About what its columns take in memory.
    """

    path: Path
    rows: int
    num_bytes: int
    sha256: str


class LocalFilesRecipe(DataRecipe):
    """Base of the recipes of this plugin that read files which the user has.

    Attributes:
        published: What errors say about where the files can be had.
    """

    published: ClassVar[str]

    def __init__(self, config: LocalFilesConfig) -> None:
        self.config = config

    def fetch(self, folder: Path, progress: Progress) -> None:
        """There is nothing to download: finds the files, hashes them, and remembers their hashes in `folder`.

        Raises:
            GemkitError: A file is missing, or is not the published one.
        """
        self.read_files(folder, progress)

    def read_files(self, folder: Path, progress: Progress = lambda *_: None) -> dict[str, LocalFile]:
        """File name without its ending -> file. Files that were hashed before and look the same are not read again."""
        known = _read_marker(folder / MARKER)
        found: dict[str, LocalFile] = {}
        for name, wanted in self.config.md5s.items():
            path = self._find(name)
            key, stat = str(path.resolve()), path.stat()
            entry = known.get(key)
            if entry is None or [entry["bytes"], entry["mtime_ns"]] != [stat.st_size, stat.st_mtime_ns]:
                entry = {"bytes": stat.st_size, "mtime_ns": stat.st_mtime_ns, **_measure(path, progress)}
                known[key] = entry
            if wanted and getattr(self.config, "check_md5", False):
                self._check(path, name, wanted, entry["md5"])
            found[Path(name).stem] = LocalFile(path, entry["rows"], entry["num_bytes"], entry["sha256"])
        folder.mkdir(parents=True, exist_ok=True)
        part = folder / (MARKER + ".part")
        part.write_text(json.dumps(known, indent=2) + "\n", encoding="utf-8")
        part.replace(folder / MARKER)
        return found

    def _find(self, name: str) -> Path:
        if not self.config.files:
            raise GemkitError(
                "no folder is named",
                where="data.files",
                allowed=f"a folder with {', '.join(self.config.md5s)}, from {self.published}",
                fix="data.files=PATH",
            )
        path = find_file(Path(self.config.files), name)
        if path is None:
            raise GemkitError(
                f"there is no {name} (or {Path(name).stem}.parquet)",
                where=f"{self.config.files} (data.files)",
                allowed=f"unpacked: {', '.join(self.config.md5s)}",
                fix=f"the files are published as {self.published}; paths are relative to the folder you are in",
            )
        return path

    def _check(self, path: Path, name: str, wanted: str, md5: str) -> None:
        if path.name != name:
            raise GemkitError(
                f"{path.name} cannot be checked: the published md5 is that of {name}",
                where=str(path),
                fix="data.check_md5=false takes it as it is",
            )
        if md5 != wanted:
            raise GemkitError(
                f"{name} is not the published file: its md5 is {md5}",
                where=str(path),
                allowed=wanted,
                fix="download and unpack it again; for a subset or a version of your own: data.check_md5=false",
            )


def find_file(folder: Path, name: str) -> Path | None:
    """`name` or the same with .parquet, in `folder` or in its folder `data`, as archives unpack."""
    candidates = [f / n for f in (folder, folder / "data") for n in (name, f"{Path(name).stem}.parquet")]
    return next((c for c in candidates if c.is_file()), None)


def hashes_of(files: dict[str, LocalFile]) -> dict[str, str]:
    """For `Source.files`."""
    return {f.path.name: f.sha256 for f in files.values()}


def _read_marker(path: Path) -> dict[str, Any]:
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
        kinds = {"bytes": int, "mtime_ns": int, "rows": int, "num_bytes": int, "sha256": str, "md5": str}
        right = all(isinstance(entry[k], kind) for entry in value.values() for k, kind in kinds.items())
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}
    return value if right else {}


def _measure(path: Path, progress: Progress) -> dict[str, Any]:
    """Hashes and number of rows, in one pass over the file."""
    total = path.stat().st_size
    md5, sha256 = hashlib.md5(usedforsecurity=False), hashlib.sha256()
    done, lines, last, quoted = 0, 0, b"\n", False
    progress(path.name, 0, total)
    with path.open("rb") as file:
        while chunk := file.read(CHUNK_BYTES):
            md5.update(chunk)
            sha256.update(chunk)
            lines += chunk.count(b"\n")
            last = chunk[-1:]
            quoted = quoted or b'"' in chunk
            done += len(chunk)
            progress(path.name, done, total)
    if quoted and path.suffix == ".csv":
        check_quotes(path, ",", None)
    rows, num_bytes = lines + (last != b"\n") - 1, total
    if path.suffix == ".parquet":
        try:
            metadata = pyarrow.parquet.ParquetFile(path).metadata
        except UNREADABLE as error:
            raise GemkitError(f"cannot read {path.name}: {error}", where=str(path)) from error
        rows = metadata.num_rows
        num_bytes = sum(metadata.row_group(i).total_byte_size for i in range(metadata.num_row_groups))
    return {"rows": rows, "num_bytes": num_bytes, "md5": md5.hexdigest(), "sha256": sha256.hexdigest()}
