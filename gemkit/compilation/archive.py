"""Compiled code as one file: a ZIP archive of the cache folder, with a manifest of what is in it and where it is good.

The code in it *runs*: libraries are loaded, and PyTorch unpickles what it finds in its cache. Hashes show that an
archive is whole, not that whoever made it means well; so who unpacks one says that they trust it. What is checked here
keeps an archive from writing anywhere else, and damaged files out of the cache.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import re
import stat
import tempfile
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any

from gemkit.compilation.place import environment, key_of, make_private
from gemkit.config.fields import shown
from gemkit.errors import GemkitError
from gemkit.runs.files import replacing, writing_failed

FORMAT = 1
MANIFEST = "manifest.json"
CHUNK_BYTES = 1 << 20
MAX_FILES = 500_000
MAX_BYTES = 64 << 30
MAX_MANIFEST_BYTES = 256 << 20

_PART = re.compile(r"[A-Za-z0-9_+=-][A-Za-z0-9_.+=-]{0,254}")
_HASH = re.compile(r"[0-9a-f]{64}")


@dataclasses.dataclass(frozen=True)
class Manifest:
    """What an archive says of itself.

    Attributes:
        environment: Where the code was compiled, as `gemkit.compilation.place.environment` says it.
        files: Name -> (bytes, sha256).
    """

    environment: dict[str, str]
    files: dict[str, tuple[int, str]]

    @property
    def key(self) -> str:
        """The name of the environment's folder."""
        return key_of(self.environment)


def files_of(folder: Path) -> Iterator[tuple[str, Path]]:
    """Name and path of each file that is worth keeping, in order of their names; locks are not."""
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        plain = path.is_file() and not path.is_symlink() and _is_safe(name)
        if plain and path.suffix not in (".lock", ".tmp") and "__pycache__" not in path.parts:
            yield name, path


def pack(folder: Path, file: Path) -> str:
    """Writes the compiled code in `folder` into an archive.

    Returns:
        The archive's sha256.

    Raises:
        GemkitError: There is none, or the archive cannot be written.
    """
    files: dict[str, tuple[int, str]] = {}
    with replacing(file) as temporary, zipfile.ZipFile(temporary, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, path in files_of(folder):
            digest, size = hashlib.sha256(), 0
            with path.open("rb") as source, archive.open(_entry(name), "w", force_zip64=True) as target:
                while chunk := source.read(CHUNK_BYTES):
                    digest.update(chunk)
                    size += len(chunk)
                    target.write(chunk)
            files[name] = size, digest.hexdigest()
        if not files:
            raise GemkitError(
                "there is no compiled code to pack",
                where=str(folder),
                fix="train with train.compile=true first",
            )
        manifest = {"format": FORMAT, "environment": environment(), "files": files}
        archive.writestr(_entry(MANIFEST), json.dumps(manifest, indent=1))
    with file.open("rb") as written:
        return hashlib.file_digest(written, "sha256").hexdigest()


class Archive:
    """An archive that is open to be unpacked; whose names, sizes and manifest have been checked.

    Args:
        sha256: What the archive's sha256 must be; None: whatever it is.

    Raises:
        GemkitError: The archive is another one, damaged, or holds what no cache holds.
    """

    def __init__(self, file: Path, sha256: str | None = None) -> None:
        self.file = file
        self._stream = file.open("rb")  # one opening for hash and content: the file may be exchanged in between
        try:
            self._check_hash(sha256)
            with self._reading():
                self._zip = zipfile.ZipFile(self._stream)
                self.manifest = self._read_manifest()
                self._check_entries()
        except BaseException:
            self._stream.close()
            raise

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, *_: object) -> None:
        self._stream.close()

    def unpack(self, folder: Path) -> tuple[int, int]:
        """Puts the files into `folder`; each is whole from the first moment on, and those that are there stay.

        Returns:
            How many files are new, and how many were there.

        Raises:
            GemkitError: A file is not what the manifest says, or cannot be written; `folder` is as it was.
        """
        make_private(folder)
        with tempfile.TemporaryDirectory(dir=folder.parent, prefix=".unpacking-") as name:
            temporary = Path(name)
            try:
                for file in self.manifest.files:
                    self._extract(file, temporary / file)
                new = 0
                for file in self.manifest.files:
                    if not (folder / file).exists():
                        (folder / file).parent.mkdir(parents=True, exist_ok=True)
                        (temporary / file).rename(folder / file)
                        new += 1
            except OSError as error:
                raise writing_failed(folder, error.errno or 0) from error
        return new, len(self.manifest.files) - new

    def _extract(self, name: str, path: Path) -> None:
        size, sha256 = self.manifest.files[name]
        digest = hashlib.sha256()
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("xb") as target, self._reading(), self._zip.open(name) as source:
            while chunk := source.read(CHUNK_BYTES):
                digest.update(chunk)
                target.write(chunk)
            target.flush()
            os.fsync(target.fileno())
        if path.stat().st_size != size or digest.hexdigest() != sha256:
            raise self._damaged(f"{name} is not what the manifest says")

    def _check_hash(self, sha256: str | None) -> None:
        if sha256 is None:
            return
        found = hashlib.file_digest(self._stream, "sha256").hexdigest()
        if found != sha256.lower():
            raise GemkitError(
                f"this is another archive: its sha256 is {found}",
                where=str(self.file),
                allowed=shown(sha256).strip("'"),
                fix="get the archive again, or its sha256 from whoever packed it",
            )

    def _read_manifest(self) -> Manifest:
        try:
            if self._zip.getinfo(MANIFEST).file_size > MAX_MANIFEST_BYTES:
                raise self._damaged("its manifest is too large")
            content = json.loads(self._zip.read(MANIFEST))
        except (KeyError, ValueError, RecursionError) as error:
            raise self._damaged("it has no manifest that can be read") from error
        if not isinstance(content, dict) or content.get("format") != FORMAT:
            raise self._damaged(f"its manifest is not of format {FORMAT}")
        facts, files = content.get("environment"), content.get("files")
        if not isinstance(facts, dict) or facts.keys() != environment().keys() or not _are_texts(facts.values()):
            raise self._damaged("its manifest does not say for which environment it is")
        if not isinstance(files, dict) or not files or not all(map(_is_row, files.values())):
            raise self._damaged("its manifest does not say what is in it")
        return Manifest(facts, {name: (row[0], row[1]) for name, row in files.items()})

    def _check_entries(self) -> None:
        files, entries = self.manifest.files, self._zip.infolist()
        if len(files) > MAX_FILES or sum(size for size, _ in files.values()) > MAX_BYTES:
            raise self._damaged(f"it holds more than {MAX_FILES:,} files or {MAX_BYTES >> 30} GiB")
        names = [entry.filename for entry in entries]
        for entry in entries:
            kind = stat.S_IFMT(entry.external_attr >> 16)
            if not _is_safe(entry.filename):
                raise self._damaged(f"{shown(entry.filename)} is no name of a file in a cache")
            if kind not in (0, stat.S_IFREG) or entry.flag_bits & 1:
                raise self._damaged(f"{entry.filename} is a link, or no plain file")
            if entry.filename != MANIFEST and entry.file_size != files.get(entry.filename, (-1, ""))[0]:
                raise self._damaged(f"{entry.filename} is not as long as the manifest says, or not in it")
        if sorted(names) != sorted([*files, MANIFEST]):
            raise self._damaged("it holds other files than its manifest says")
        if {str(parent) for name in names for parent in PurePosixPath(name).parents} & set(names):
            raise self._damaged("a name in it is a file and a folder")

    def _reading(self) -> _Reading:
        return _Reading(self)

    def _damaged(self, what: str) -> GemkitError:
        return GemkitError(
            f"the archive is not used: {what}", where=str(self.file), fix="get the archive again, or pack it again"
        )


class _Reading:
    """What `zipfile` raises on damaged archives becomes an error for people."""

    def __init__(self, archive: Archive) -> None:
        self.archive = archive

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if isinstance(error, zipfile.BadZipFile | zlib.error | EOFError | NotImplementedError | UnicodeDecodeError):
            raise self.archive._damaged(f"it is damaged, or no archive ({error})") from error


def _entry(name: str) -> zipfile.ZipInfo:
    """An entry without date or owner: the same cache gives the same archive."""
    entry = zipfile.ZipInfo(name)
    entry.compress_type = zipfile.ZIP_DEFLATED
    entry.external_attr = (stat.S_IFREG | 0o644) << 16
    return entry


def _is_safe(name: str) -> bool:
    """Whether a name stays inside the folder, on every system."""
    return all(_PART.fullmatch(part) for part in name.split("/"))


def _is_row(row: Any) -> bool:
    return (
        isinstance(row, list)
        and len(row) == 2
        and type(row[0]) is int
        and row[0] >= 0
        and isinstance(row[1], str)
        and _HASH.fullmatch(row[1]) is not None
    )


def _are_texts(values: Any) -> bool:
    return all(isinstance(value, str) for value in values)
