"""What `manifest.json` must be: its keys, and counts that add up over segments and partitions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemkit.data import storage
from gemkit.data.source import MAX_SECONDS, SPLITS
from gemkit.data.validation.violation import REBUILD
from gemkit.errors import GemkitError

KINDS = {
    "format_version": int, "name": str, "gemkit": str, "rows": dict, "partitions": int,
    "boundaries": (dict, type(None)), "segments": list, "files": dict, "source_files": dict,
    "options": dict, "columns": dict, "digest": str,
}  # fmt: skip
SEGMENT_KINDS = {
    "rows": dict, "partitions": list, "vocabularies": dict, "by_boundaries": bool, "first_s": int, "last_s": int,
    "gemkit": str, "source_files": dict, "options": dict,
}  # fmt: skip
ROWS = {"examples", "events", *SPLITS}
COLUMNS = {"user", "timestamp", "surface", "example_id", "item"}
MAX_SEGMENTS, MAX_PARTITIONS = 10_000, 1000
"""What the names of folders have digits for."""


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
    if version != storage.FORMAT_VERSION or isinstance(version, bool):
        raise GemkitError(
            f"{folder} has dataset format {version}",
            where=where,
            allowed=f"format {storage.FORMAT_VERSION}, which this gemkit reads",
            fix=REBUILD,
        )
    problem = _problem(manifest)
    if problem is None and manifest["digest"] != storage.digest_of(manifest):
        problem = "its content does not have the digest that it names"
    if problem:
        raise GemkitError(f"the manifest is damaged: {problem}", where=where, fix=REBUILD)
    return manifest


def _problem(manifest: dict[str, Any]) -> str | None:
    """What is wrong with the manifest's own form, or None."""
    problem = _wrong_keys(manifest, KINDS)
    if problem:
        return problem
    if not 1 <= manifest["partitions"] <= MAX_PARTITIONS:
        return f"'partitions' is {manifest['partitions']}"
    if not 1 <= len(manifest["segments"]) <= MAX_SEGMENTS:
        return f"it has {len(manifest['segments'])} segments"
    for name, value in manifest["files"].items():
        if not storage.is_file_name(name):
            return f"'files' names {name!r}, which is no file of a data set"
        if not isinstance(value, str):
            return f"'files' has no hash for {name!r}"
    if set(manifest["columns"]) != COLUMNS:
        return "'columns' does not name the source's columns"
    if not all(name is None or isinstance(name, str) for name in manifest["columns"].values()):
        return "'columns' has something else than names"
    boundaries = manifest["boundaries"]
    if boundaries is not None and (
        set(boundaries) != {"valid_from_s", "test_from_s"} or not all(map(_is_int, boundaries.values()))
    ):
        return "'boundaries' does not name the times at which the splits begin"
    return _wrong_counts(manifest) or _wrong_times(manifest["segments"])


def _wrong_keys(values: Any, kinds: dict[str, Any]) -> str | None:
    if not isinstance(values, dict):
        return "a segment is no object"
    for key in values.keys() | kinds.keys():
        if key not in kinds:
            return f"unknown key {key!r}"
        if not isinstance(values.get(key), kinds[key]) or (kinds[key] is int and not _is_int(values[key])):
            return f"{key!r} is missing or of the wrong type"
    return None


def _wrong_counts(manifest: dict[str, Any]) -> str | None:
    """What does not add up, or None."""
    problem = _no_counts("rows", manifest["rows"], ROWS)
    for number, segment in enumerate(manifest["segments"]):
        title = f"segment {number}"
        problem = problem or _wrong_keys(segment, SEGMENT_KINDS)
        problem = problem or _no_counts(f"rows of {title}", segment["rows"], ROWS | {"items"})
        problem = problem or _no_counts(f"vocabularies of {title}", segment["vocabularies"], None)
        if problem:
            return problem
        if len(segment["partitions"]) != manifest["partitions"]:
            return f"{title} has {len(segment['partitions'])} partitions, the data set {manifest['partitions']}"
        for i, partition in enumerate(segment["partitions"]):
            problem = problem or _no_counts(f"partition {i} of {title}", partition, ROWS | {"users"})
        problem = problem or _wrong_sum(title, segment["rows"], segment["partitions"])
    return problem or _wrong_sum("the manifest", manifest["rows"], [s["rows"] for s in manifest["segments"]])


def _no_counts(title: str, counts: Any, keys: set[str] | None) -> str | None:
    if not isinstance(counts, dict) or (keys is not None and set(counts) != keys):
        return f"{title!r} does not name the tables and splits"
    # Beyond 2**62, sums would not fit into the 64 bits with which rows are counted.
    if not all(_is_int(n) and 0 <= n < 2**62 for n in counts.values()):
        return f"{title!r} has something else than counts"
    if keys is not None and (counted := sum(counts[name] for name in SPLITS)) != counts["examples"]:
        return f"its splits have {counted:,} examples, but of all examples {title!r} says {counts['examples']:,}"
    return None


def _wrong_sum(title: str, rows: dict[str, int], parts: list[dict[str, int]]) -> str | None:
    for key in sorted(ROWS):
        counted = sum(part[key] for part in parts)
        if counted != rows[key]:
            return f"{title} has {rows[key]:,} {key}, its parts {counted:,}"
    return None


def _wrong_times(segments: list[dict[str, Any]]) -> str | None:
    newest = -MAX_SECONDS
    for number, segment in enumerate(segments):
        first, last = segment["first_s"], segment["last_s"]
        if not -MAX_SECONDS <= first <= last <= MAX_SECONDS:
            return f"segment {number} ends before it begins, or at no time"
        if first < newest:
            return f"segment {number} begins at {first}, before the segments before it end, at {newest}"
        newest = max(newest, last)
    return None


def _is_int(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
