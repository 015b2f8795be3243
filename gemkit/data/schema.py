"""The feature schema: what the columns of a data set mean. Stored as `schema.json` in the dataset folder.

A *table* is an id space with one embedding table; features name theirs, and features that name the same
table share it: the target's ``movie_id`` and the history's ``movie_id`` are one table.
"""

from __future__ import annotations

import dataclasses

from gemkit.config.fields import Config, option

ROLES = ("user", "item", "context")
HOLDERS = ("examples", "users", "items")
"""Tables that hold a feature's column: one value for each example, or one for each user or item."""
EVENT_PREFIX = "events."


@dataclasses.dataclass(frozen=True, kw_only=True)
class Table(Config):
    """An id space. Row 0 is kept for ids that the training split has not seen, and for empty cells."""

    name: str = option("", "Name of the table.")
    num_embeddings: int = option(1, "Rows, the unknown row included.", ge=1)
    hashed: bool = option(False, "Ids are hashes of the text (`gemkit.data.hashing`); there is no vocabulary.")
    hash_seed: int = option(0, "Seed of the hash.", ge=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DenseFeature(Config):
    """A number for each example; read as `(value - mean) / std` of the training split, after `transform`."""

    name: str = option("", "Column.")
    role: str = option("context", "Whose property it is.", choices=ROLES)
    transform: str = option("none", "Applied first; log1p is sign-preserving.", choices=("none", "log1p"))
    mean: float = option(0.0, "Mean of the transformed training values.")
    std: float = option(1.0, "Standard deviation of the transformed training values.", gt=0)
    of: str = option("examples", "Table that holds the column.", choices=HOLDERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class CategoricalFeature(Config):
    """One id, or a bag of ids, for each example, user or item."""

    name: str = option("", "Column.")
    role: str = option("context", "Whose property it is.", choices=ROLES)
    table: str = option("", "Id space.")
    multi: bool = option(False, "A bag of any number of ids instead of one.")
    of: str = option("examples", "Table that holds the column.", choices=HOLDERS)


@dataclasses.dataclass(frozen=True, kw_only=True)
class VectorFeature(Config):
    """A content embedding for each example: a fixed number of floats made elsewhere."""

    name: str = option("", "Column.")
    role: str = option("item", "Whose property it is.", choices=ROLES)
    width: int = option(1, "Numbers in each vector.", ge=1)
    of: str = option("examples", "Table that holds the column.", choices=HOLDERS)


Feature = DenseFeature | CategoricalFeature | VectorFeature


@dataclasses.dataclass(frozen=True, kw_only=True)
class EventField(Config):
    """A categorical property of the events in a history."""

    name: str = option("", "Column.")
    table: str = option("", "Id space; may be a target feature's.")

    @property
    def key(self) -> str:
        """The name under which a batch holds its ids, apart from a target feature of the same name."""
        return EVENT_PREFIX + self.name


@dataclasses.dataclass(frozen=True, kw_only=True)
class Task(Config):
    """A binary label, and the condition under which it is known.

    Attributes:
        masked_by: Another task; this task's label counts only where that label is 1
            (``love`` masked by ``like``, a conversion masked by the click).
    """

    name: str = option("", "Column of 0 and 1; empty cells are masked.")
    masked_by: str | None = option(None, "Task whose label must be 1 for this label to count.")
    weight: float = option(1.0, "Weight of the task's loss.", gt=0)
    delay: str | None = option(
        None, "Column of seconds from the example to what the label is about; empty where that has not happened."
    )
    truth: str | None = option(None, "Column with the label's true probability; synthetic data only.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Schema(Config):
    """All of a data set's features, events, tasks and surfaces, in the order in which batches hold them."""

    name: str = option("", "Name of the data set.")
    tables: tuple[Table, ...] = option((), "Id spaces.")
    dense: tuple[DenseFeature, ...] = option((), "Numbers.")
    categorical: tuple[CategoricalFeature, ...] = option((), "Ids and bags of ids.")
    vectors: tuple[VectorFeature, ...] = option((), "Content embeddings.")
    event_fields: tuple[EventField, ...] = option((), "Ids of each event; empty: the data set has no histories.")
    streams: tuple[str, ...] = option((), "Kinds of event, e.g. click and purchase; stream ids index this list.")
    tasks: tuple[Task, ...] = option((), "Labels; the first is the one that picks the best checkpoint.")
    surfaces: tuple[str, ...] = option(("all",), "Names of the surfaces; surface ids index this list.")
    group: str | None = option(None, "Column by which gAUC groups examples (mostly the user); null: no gAUC.")

    @property
    def features(self) -> tuple[Feature, ...]:
        """All but the events'."""
        return (*self.categorical, *self.dense, *self.vectors)

    @property
    def has_events(self) -> bool:
        return bool(self.event_fields)

    @property
    def feature_tables(self) -> dict[str, str]:
        """Feature key (``movie_id``, ``events.movie_id``) -> table, in batch order."""
        keys = {f.name: f.table for f in self.categorical}
        return keys | {f.key: f.table for f in self.event_fields}

    @property
    def task_names(self) -> tuple[str, ...]:
        return tuple(t.name for t in self.tasks)
