"""The last step of a build: the manifest, written when all partitions are there and agree."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gemkit import __version__
from gemkit.data import storage
from gemkit.data.base import COLUMNS
from gemkit.data.source import SPLITS
from gemkit.errors import GemkitError
from gemkit.runs.files import replacing

if TYPE_CHECKING:
    from gemkit.data.build import Work

ROWS = ("examples", "events", *SPLITS)


def finish(work: Work) -> None:
    """Makes a data set, or a new segment of one, of the partitions in a work folder, and removes the work folder.

    Raises:
        GemkitError: Partitions are missing, or were built from different files.
    """
    learned = _learned(work)
    partitions = _partitions(work, int(learned["partitions"]))
    rows = {name: sum(p["rows"][name] for p in partitions) for name in ROWS}
    files = dict(learned["files"])
    for partition in partitions:
        files |= partition["files"]
    segment = {
        "rows": rows | {"items": learned["items"]},
        "partitions": [p["rows"] for p in partitions],
        "vocabularies": learned["vocabularies"],
        # Whether each example is in the split that its time says.
        "by_boundaries": learned["boundaries"] is not None,
        "first_s": learned["times"][0],
        "last_s": learned["times"][1],
        "gemkit": __version__,
        "source_files": work.source.files,
        "options": work.options,
    }
    if work.base is None:
        manifest = {
            "format_version": storage.FORMAT_VERSION,
            "name": learned["name"],
            "gemkit": __version__,
            "rows": rows,
            "partitions": len(partitions),
            "boundaries": learned["boundaries"],
            "segments": [segment],
            "files": files,
            "source_files": work.source.files,
            "options": work.options,
            "columns": {name: getattr(work.source, name) for name in COLUMNS},
        }
        write_manifest(manifest, work.out)
        storage.take_place(work.out, work.folder)
    else:
        _append(work, segment, files)
    shutil.rmtree(work.path)


def write_manifest(manifest: dict[str, Any], folder: Path) -> None:
    """Writes manifest.json with its digest; it replaces an older one in one step."""
    content = {key: value for key, value in manifest.items() if key != "digest"}
    content["files"] = dict(sorted(content["files"].items()))
    with replacing(folder / storage.MANIFEST) as temporary:
        storage.write_json(content | {"digest": storage.digest_of(content)}, temporary)


def _append(work: Work, segment: dict[str, Any], files: dict[str, str]) -> None:
    """New files first, which no reader knows of; then the manifest, which names them."""
    assert work.base is not None
    old = work.base.manifest
    target = work.folder / storage.segment_folder(work.segment)
    shutil.rmtree(target, ignore_errors=True)  # of an append that was interrupted right here
    (work.out / storage.segment_folder(work.segment)).rename(target)
    for name in files:
        if not name.startswith(storage.SEGMENTS):
            (work.folder / name).parent.mkdir(parents=True, exist_ok=True)
            (work.out / name).replace(work.folder / name)
    before = storage.schema_file(work.segment - 1)
    manifest = old | {
        "rows": {name: old["rows"][name] + segment["rows"][name] for name in ROWS},
        "segments": [*old["segments"], segment],
        "files": {name: found for name, found in old["files"].items() if name != before} | files,
    }
    write_manifest(manifest, work.folder)
    (work.folder / before).unlink(missing_ok=True)


def _learned(work: Work) -> dict[str, Any]:
    found = {path: storage.read_json(path) for path in sorted(work.path.glob("learned-*.json"))}
    if not found:
        raise GemkitError(
            "no partition has been built", where=str(work.path), fix="gemkit data build NAME --partitions 0/n"
        )
    (first, learned), *others = found.items()
    for path, other in others:
        if other["learned"] != learned["learned"]:
            raise GemkitError(
                f"{first.name} and {path.name} were built from different files or with different options",
                where=str(work.path),
                fix="build all parts anew from the same files, with the same options and gemkit",
            )
    return dict(learned)


def _partitions(work: Work, number: int) -> list[dict[str, Any]]:
    paths = [work.path / f"partition-{p:03d}.json" for p in range(number)]
    missing = [str(p) for p, path in enumerate(paths) if not path.is_file()]
    if missing:
        shown = ", ".join(missing[:10]) + (" ..." if len(missing) > 10 else "")
        raise GemkitError(
            f"{len(missing)} of {number} partitions are missing: {shown}",
            where=str(work.path),
            fix="build them with --partitions i/n, or copy the folders of all machines into this one",
        )
    return [storage.read_json(path) for path in paths]
