"""A dataset folder holds what its manifest says, byte for byte and rule for rule, before anything of it is used.

Hashing takes a second for each gigabyte or so, going through all rows about as long. So a folder in which everything
was right gets a stamp, `.verified.json`: size and times of each file, and the hash of the manifest. While all looks as
the stamp says, nothing is hashed or gone through again. The stamp is no part of the data set: not of its manifest, not
of its fingerprint.
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
from gemkit.data.schema import Schema
from gemkit.data.validation.folder import violations
from gemkit.data.validation.manifest import read_checked_manifest
from gemkit.data.validation.schema import read_checked_schema
from gemkit.data.validation.violation import REBUILD
from gemkit.errors import GemkitError

STAMP = ".verified.json"
RULES = 1
"""Raised when the rules for reading become stricter: a stamp of other rules is worth nothing."""

SETTLED_NS = 2 * 10**9
"""A younger file is not stamped: one tick of a file system's clock could hide a second change."""

State = list[int]


def verified(folder: Path) -> tuple[dict[str, Any], Schema]:
    """Manifest and schema of a dataset folder that can be read without harm.

    Every file has the hash that the manifest names, and holds only what its schema allows: types, bounds, order, and
    pointers that lead where they should. A folder that has passed is not gone through again until a file changes.

    Raises:
        GemkitError: There is no data set, it has another format version, a file has changed since it was built, or
            holds what no build writes.
    """
    manifest = read_checked_manifest(folder)
    digest = hashlib.sha256((folder / storage.MANIFEST).read_bytes()).hexdigest()
    stamped = _read_stamp(folder, digest)
    states: dict[str, State] = {}
    for name, wanted in manifest["files"].items():
        states[name] = verify_file(folder, name, wanted, stamped.get(name))
    schema = read_checked_schema(folder, manifest)
    # Only files that nobody can have touched spare the pass over the rows: a stamp that came with the folder does not
    # know the times that the file system gave them.
    if states != stamped:
        for violation in violations(folder, manifest, schema):
            raise violation.error(folder)
        settled = {n: s for n, s in states.items() if time.time_ns() - max(s[1], s[2]) > SETTLED_NS}
        if settled != stamped:
            _write_stamp(folder, {"rules": RULES, "manifest": digest, "files": settled})
    return manifest, schema


def verify_file(folder: Path, name: str, wanted: str, trusted: State | None = None) -> State:
    """Checks the hash of a file, unless it looks as `trusted` says.

    Returns:
        How it looks.

    Raises:
        GemkitError: It is missing, cannot be read, or has changed.
    """
    path = folder / name
    try:
        state = _state(path)
        if state == trusted:
            return state
        found = sha256_of(path)
        changing = _state(path) != state
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
    return state


def _state(path: Path) -> State:
    """Size, time of the last change of the content, and of anything (which, unlike the other, nobody can set)."""
    stat = path.stat()
    return [stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns]


def _read_stamp(folder: Path, digest: str) -> dict[str, Any]:
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        return dict(stamp["files"]) if stamp["manifest"] == digest and stamp["rules"] == RULES else {}
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
