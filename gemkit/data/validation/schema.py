"""What `schema.json` must be, before any table is read by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemkit.config.fields import from_mapping
from gemkit.data import storage
from gemkit.data.checks import is_name
from gemkit.data.schema import HOLDERS, CategoricalFeature, DenseFeature, EventField, Schema, VectorFeature
from gemkit.data.validation.violation import REBUILD
from gemkit.errors import GemkitError


def read_checked_schema(folder: Path, manifest: dict[str, Any]) -> Schema:
    """The schema of a dataset folder.

    Raises:
        GemkitError: It is missing, damaged, contradicts itself or the manifest.
    """
    name = storage.schema_file(len(manifest["segments"]) - 1)
    path = folder / name
    if name not in manifest["files"]:
        raise GemkitError(f"the manifest does not name {name}", where=str(folder), fix=REBUILD)
    try:
        schema: Schema = from_mapping(Schema, storage.read_json(path))
    except (OSError, ValueError, TypeError) as error:
        raise GemkitError(f"the schema is damaged: {error}", where=str(path), fix=REBUILD) from error
    except GemkitError as error:
        raise GemkitError(error.what, where=f"{path}: {error.where}", allowed=error.allowed, fix=REBUILD) from error
    problem = _wrong_names(schema) or _wrong_references(schema) or _wrong_origin(schema, manifest)
    if problem:
        raise GemkitError(problem, where=str(path), fix=REBUILD)
    return schema


def features_of(schema: Schema, holder: str) -> tuple[DenseFeature | CategoricalFeature | VectorFeature, ...]:
    """The features whose columns the examples, users or items hold."""
    declared: tuple[DenseFeature | CategoricalFeature | VectorFeature, ...]
    declared = (*schema.dense, *schema.categorical, *schema.vectors)
    return tuple(f for f in declared if f.of == holder)


def has_users(schema: Schema) -> bool:
    """Whether there are tables of users: for their events, or for their features."""
    return schema.has_events or bool(features_of(schema, "users"))


def _wrong_names(schema: Schema) -> str | None:
    features = [f.name for holder in HOLDERS for f in features_of(schema, holder)]
    lists = {
        "features and tasks": [*features, *schema.task_names],
        "tables": [t.name for t in schema.tables],
        "event fields": [e.name for e in schema.event_fields],
    }
    for what, names in lists.items():
        bad = [n for n in names if not is_name(n)] or [n for n in names if names.count(n) > 1]
        if bad:
            return f"the {what} of the schema have the name {bad[0]!r}"
    if not schema.tasks or not features or not schema.surfaces or (schema.has_events and not schema.streams):
        return "the schema has no tasks, no features, no surfaces, or events without streams"
    return None


def _wrong_references(schema: Schema) -> str | None:
    tables = {t.name: t for t in schema.tables}
    with_table: tuple[CategoricalFeature | EventField, ...] = (*schema.categorical, *schema.event_fields)
    for f in with_table:
        if f.table not in tables:
            return f"feature {f.name!r} names the table {f.table!r}, which the schema does not have"
    for table in schema.tables:
        if table.hashed and table.num_embeddings < 2:
            return f"the hashed table {table.name!r} has no row to hash into"
    masks = {t.name: t.masked_by for t in schema.tasks}
    for name in masks:
        path, masker = [name], masks[name]
        while masker is not None:
            if masker not in masks:
                return f"task {path[-1]!r} is masked by {masker!r}, which is no task"
            if masker in path:
                return f"tasks mask each other: {' -> '.join([*path, masker])}"
            path.append(masker)
            masker = masks[masker]
    return None


def _wrong_origin(schema: Schema, manifest: dict[str, Any]) -> str | None:
    columns = manifest["columns"]
    if has_users(schema) and columns["user"] is None:
        return "the schema has events or features of users, but the manifest names no column of users"
    if schema.has_events and columns["timestamp"] is None:
        return "the schema has events, but the manifest names no column of times"
    if features_of(schema, "items") and columns["item"] is None:
        return "the schema has features of items, but the manifest names no column of items"
    if not schema.has_events and manifest["rows"]["events"]:
        return "the manifest counts events, but the schema has none"
    return None
