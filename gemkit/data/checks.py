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
    _check_names("table", {f.table or f.name for f in with_table})
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
    _check_masks({t.name: t.masked_by for t in source.tasks})
    if source.split.by == "time" and not source.timestamp:
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
