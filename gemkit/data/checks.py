"""Checks that a `Source` does not contradict itself, before any column is read."""

from __future__ import annotations

import re
from collections.abc import Iterable

from gemkit.data.schema import CategoricalFeature, DenseFeature, EventField, VectorFeature
from gemkit.data.source import Source
from gemkit.errors import GemkitError, did_you_mean


def check_declaration(source: Source) -> None:
    """Raises a `GemkitError` that names the declaration at fault."""
    declared: tuple[DenseFeature | CategoricalFeature | VectorFeature, ...]
    declared = (*source.dense, *source.categorical, *source.vectors)
    features = [f.name for f in declared]
    tasks = [t.name for t in source.tasks]
    _check_names("feature", features)
    _check_names("task", tasks)
    _check_names("event field", [f.name for f in source.event_fields])
    with_table: tuple[CategoricalFeature | EventField, ...] = (*source.categorical, *source.event_fields)
    tables = {f.table or f.name for f in with_table}
    _check_names("table", tables)
    _check_rules([rule.name for rule in source.tables], tables)
    _check_holders(source, declared)
    if not tasks:
        raise GemkitError(
            "no task is declared", where="tasks", fix="name the column with the label: `tasks: [{name: click}]`"
        )
    if not features:
        raise GemkitError("no feature is declared", where="dense, categorical, vectors")
    leaks = sorted(set(features) & set(tasks))
    if leaks:
        raise GemkitError(
            f"column {leaks[0]!r} is a feature and a label",
            where="tasks",
            fix="a label cannot be its own feature: drop one",
        )
    told = [(t.name, what, c) for t in source.tasks for what, c in (("delay", t.delay), ("truth", t.truth)) if c]
    for task, what, column in told:
        if column in features or column in tasks:
            raise GemkitError(
                f"column {column!r} is the {what} of task {task!r} and a feature or a label",
                where=f"tasks.{what}",
                fix="what follows from a label cannot be its feature: drop one",
            )
    _check_masks({t.name: t.masked_by for t in source.tasks})
    if source.split.by != "column" and not source.timestamp:
        raise GemkitError(
            "a split by time needs a timestamp",
            where="timestamp",
            fix="name the column of times in `timestamp`, or split by a column of split names: `split: {by: column}`",
        )
    if source.event_fields and source.events is None:
        raise GemkitError(
            "event fields are declared, but there are no events", where="event_fields", fix="name the events' file"
        )
    if source.events is not None:
        missing = [n for n in ("user", "timestamp", "event_fields") if not getattr(source, n)]
        if missing:
            raise GemkitError(
                f"events need {', '.join(missing)}",
                where=missing[0],
                fix="name the columns that say whose event it is, when it happened, and what it was",
            )


def _check_names(what: str, names: Iterable[str]) -> None:
    seen: set[str] = set()
    for name in names:
        if name in seen:
            raise GemkitError(f"{what} {name!r} is declared twice", where=f"{what}s")
        # Names become columns, file names and parameter names; a dot would split the latter.
        if not is_name(name):
            raise GemkitError(
                f"{what} {name!r} cannot have this name",
                where=f"{what}s",
                allowed="a letter or digit, then anything but . / \\ : and control characters; at most 200 bytes",
                fix="rename the column",
            )
        seen.add(name)


def _check_rules(rules: list[str], tables: set[str]) -> None:
    for name in rules:
        if name not in tables:
            raise GemkitError(
                f"there is a rule for table {name!r}, which no feature names",
                where="tables",
                allowed=", ".join(sorted(tables)) or "none: there are no categorical features",
                fix=did_you_mean(name, tables),
            )
        if rules.count(name) > 1:
            raise GemkitError(f"there are two rules for table {name!r}", where="tables", fix="keep one")


def _check_holders(source: Source, declared: tuple[DenseFeature | CategoricalFeature | VectorFeature, ...]) -> None:
    """Features of users and items have a table that holds them, and the table a key and features."""
    for of, table, key in (("users", source.users, source.user), ("items", source.items, source.item)):
        features = [f.name for f in declared if f.of == of]
        if features and table is None:
            raise GemkitError(
                f"feature {features[0]!r} is of {of}, but there is no table of {of}",
                where=of,
                fix=f"name the table in `{of}`, or let the examples hold the column: `of: examples`",
            )
        if table is not None and not key:
            raise GemkitError(
                f"there is a table of {of}, but no column that says which of them an example is about",
                where=of[:-1],
                fix=f"name the column, in both tables, in `{of[:-1]}`",
            )
        if table is not None and not features:
            raise GemkitError(
                f"there is a table of {of}, but no feature is of {of}",
                where=of,
                fix=f"declare its columns with `of: {of}`, or leave the table out",
            )


def _check_masks(masks: dict[str, str | None]) -> None:
    for name in masks:
        path, masker = [name], masks[name]
        while masker:
            if masker not in masks:
                raise GemkitError(
                    f"task {path[-1]!r} is masked by {masker!r}, which is no task",
                    where="tasks",
                    allowed=", ".join(masks),
                    fix=did_you_mean(masker, masks),
                )
            if masker in path:
                raise GemkitError(f"tasks mask each other: {' -> '.join([*path, masker])}", where="tasks")
            path.append(masker)
            masker = masks[masker]


def is_name(name: str) -> bool:
    """Whether a feature, task, event field or table may have this name."""
    return (
        re.fullmatch(r"[^\W_][^./\\:]*", name) is not None
        and name.isprintable()
        and len(name.encode("utf-8", "surrogateescape")) <= 200
    )
