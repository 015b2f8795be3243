"""`gemkit data check`: goes through a whole dataset folder, and says what is wrong as data and as lines to print."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from gemkit.data import storage
from gemkit.data.validation.folder import violations
from gemkit.data.validation.manifest import read_checked_manifest
from gemkit.data.validation.schema import read_checked_schema
from gemkit.data.validation.violation import Violation, about_file
from gemkit.data.verify import verify_file
from gemkit.errors import GemkitError

Progress = Callable[[str, int, int], None]


class Report(NamedTuple):
    """What a check found.

    Attributes:
        rows: As the manifest counts them: examples, events and the examples of each split.
    """

    folder: Path
    violations: list[Violation]
    rows: dict[str, int]
    num_files: int
    wall_s: float

    @property
    def summary(self) -> str:
        """One line."""
        found = f"{len(self.violations):,} violation{'s' * (len(self.violations) != 1)}" if self.violations else "sound"
        counts = ", ".join(f"{self.rows.get(name, 0):,} {name}" for name in ("examples", "events"))
        return f"{self.folder}: {found}; {counts}, {self.num_files:,} files, {self.wall_s:.1f} s"

    def as_json(self, limit: int) -> dict[str, Any]:
        """Plain data; of the violations the first `limit`."""
        return {
            "folder": str(self.folder),
            "num_violations": len(self.violations),
            "violations": [v._asdict() for v in self.violations[:limit]],
            "rows": self.rows,
            "num_files": self.num_files,
            "wall_s": round(self.wall_s, 3),
        }


def check(folder: Path, progress: Progress = lambda *_: None) -> Report:
    """Every rule, on every file, whether or not the folder has been verified before.

    Args:
        progress: Called as (name, files hashed, files).

    Raises:
        GemkitError: `folder` holds no data set.
    """
    started_s = time.perf_counter()
    if not (folder / storage.MANIFEST).is_file():
        read_checked_manifest(folder)
    manifest = storage.read_manifest(folder) or {}
    rows, files = manifest.get("rows"), manifest.get("files")
    found = list(_violations(folder, progress))
    return Report(
        folder,
        found,
        rows if isinstance(rows, dict) else {},
        len(files) if isinstance(files, dict) else 0,
        time.perf_counter() - started_s,
    )


def _violations(folder: Path, progress: Progress) -> Iterator[Violation]:
    try:
        manifest = read_checked_manifest(folder)
    except GemkitError as error:
        yield about_file(storage.MANIFEST, error.what, error.allowed)
        return
    files: dict[str, str] = manifest["files"]
    unread = set()
    for number, (name, wanted) in enumerate(files.items()):
        progress("hash", number, len(files))
        try:
            verify_file(folder, name, wanted)
        except GemkitError as error:
            unread |= set() if (folder / name).is_file() else {name}
            yield about_file(name, error.what, error.allowed)
    progress("hash", len(files), len(files))
    try:
        schema = read_checked_schema(folder, manifest)
    except GemkitError as error:
        name = storage.schema_file(len(manifest["segments"]) - 1)
        if name not in unread:
            yield about_file(name, error.what, error.allowed)
        return
    # A file that has changed is gone through all the same: its rows may show what happened.
    yield from violations(folder, manifest, schema, thorough=True, unread=unread)
