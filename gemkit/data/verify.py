"""A dataset folder holds what its manifest says, byte for byte, before anything of it is used.

Hashing takes a second for each gigabyte or so. So a folder in which everything was right gets a stamp,
`.verified.json`: size and times of each file, and the hash of the manifest. What still looks as the stamp says is not
hashed again. The stamp is no part of the data set: not of its manifest, not of its fingerprint.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import time
from pathlib import Path
from typing import Any

from gemkit.data import storage
from gemkit.data.fetch import sha256_of
from gemkit.data.source import SPLITS
from gemkit.errors import GemkitError

STAMP = ".verified.json"
SETTLED_NS = 2 * 10**9
"""A younger file is not stamped: one tick of a file system's clock could hide a second change."""

REBUILD = "delete the folder and build it again"


def read_checked_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a dataset folder.

    Raises:
        GemkitError: There is none, it is of another format version, damaged, or not what gemkit writes.
    """
    where = str(folder / storage.MANIFEST)
    manifest = storage.read_manifest(folder)
    if manifest is None:
        if (folder / storage.MANIFEST).is_file():
            raise GemkitError("the manifest is damaged: it is no JSON object", where=where, fix=REBUILD)
        raise GemkitError(f"{folder} is not a data set", where=str(folder), fix="make it with `gemkit data build`")
    version = manifest.get("format_version")
    if version != storage.FORMAT_VERSION:
        raise GemkitError(
            f"{folder} has dataset format {version}",
            where=where,
            allowed=f"format {storage.FORMAT_VERSION}, which this gemkit reads",
            fix=REBUILD,
        )
    problem = _problem(manifest)
    # Folders that were built before the digest was introduced have none.
    if problem is None and manifest.get("digest", digest := storage.digest_of(manifest)) != digest:
        problem = "its content does not have the digest that it names"
    if problem:
        raise GemkitError(f"the manifest is damaged: {problem}", where=where, fix=REBUILD)
    return manifest


def verify_files(folder: Path, manifest: dict[str, Any]) -> None:
    """Checks the hash of every file of the manifest, unless the folder's stamp says that this has been done.

    Raises:
        GemkitError: A file is missing, cannot be read, or has changed.
    """
    digest = hashlib.sha256((folder / storage.MANIFEST).read_bytes()).hexdigest()
    old = _read_stamp(folder, digest)
    states: dict[str, list[int]] = {}
    for name, wanted in manifest["files"].items():
        path = folder / name
        try:
            states[name] = _state(path)
            if old.get(name) == states[name]:
                continue
            found = sha256_of(path)
            changing = _state(path) != states[name]
        except OSError as error:
            raise GemkitError(
                f"cannot read {name} of the data set: {error.strerror}", where=str(folder), fix=REBUILD
            ) from error
        if found != wanted or changing:
            raise GemkitError(
                f"{name} has changed since the data set was built: its hash is {found[:12]}",
                where=str(path),
                allowed=f"{wanted[:12]}, as manifest.json says",
                fix=REBUILD,
            )
    settled = {n: s for n, s in states.items() if time.time_ns() - max(s[1], s[2]) > SETTLED_NS}
    if settled != old:
        _write_stamp(folder, {"manifest": digest, "files": settled})


def _state(path: Path) -> list[int]:
    """Size, time of the last change of the content, and of anything (which, unlike the other, nobody can set)."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read_stamp(folder: Path, digest: str) -> dict[str, Any]:
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        return dict(stamp["files"]) if stamp["manifest"] == digest else {}
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}


def _write_stamp(folder: Path, stamp: dict[str, Any]) -> None:
    temporary = folder / f"{STAMP}.tmp-{os.getpid()}"
    with contextlib.suppress(OSError):  # a folder that may not be written is verified every time
        try:
            temporary.write_text(json.dumps(stamp), encoding="utf-8")
            temporary.replace(folder / STAMP)
        finally:
            temporary.unlink(missing_ok=True)


def _problem(manifest: dict[str, Any]) -> str | None:
    """What is wrong with the manifest's own form, or None."""
    kinds = {
        "format_version": int, "name": str, "gemkit": str, "rows": dict, "files": dict, "source_files": dict,
        "options": dict, "columns": dict,
    }  # fmt: skip
    for key in manifest.keys() - {"digest"} | kinds.keys():
        if key not in kinds:
            return f"unknown key {key!r}"
        if not isinstance(manifest.get(key), kinds[key]):
            return f"{key!r} is missing or of the wrong type"
    rows, columns = manifest["rows"], manifest["columns"]
    if set(rows) != {"examples", "events", "train", "valid", "test"}:
        return "'rows' does not name the tables and splits"
    if not all(isinstance(n, int) and not isinstance(n, bool) and n >= 0 for n in rows.values()):
        return "'rows' has something else than counts"
    if (counted := sum(rows[name] for name in SPLITS)) != rows["examples"]:
        return f"its splits have {counted:,} examples, but of all examples the manifest says {rows['examples']:,}"
    if set(columns) != {"user", "timestamp", "surface", "example_id"}:
        return "'columns' does not name the source's columns"
    if not all(name is None or isinstance(name, str) for name in columns.values()):
        return "'columns' has something else than names"
    for name, value in manifest["files"].items():
        if not storage.is_file_name(name):
            return f"'files' names {name!r}, which is no file of a data set"
        if not isinstance(value, str):
            return f"'files' has no hash for {name!r}"
    return None
