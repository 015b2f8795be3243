"""Which of a data set's examples, and of its tasks, a run reads: windows of days, surfaces, labels known by a day."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

from gemkit.data.schema import Schema
from gemkit.errors import GemkitError, did_you_mean

if TYPE_CHECKING:
    from gemkit.config.run import DataConfig

DAY_S = 86_400


@dataclasses.dataclass(frozen=True)
class Selection:
    """What is left of a data set. The default leaves all of it.

    Attributes:
        days: Split -> first day and last day (excluded) of its examples, from whatever stored split; a split that is
            not named is the stored one. Day 0 begins at the midnight (UTC) before the data set's first example.
        surfaces: Only examples on these; empty: on all.
        tasks: Only these labels; empty: all.
        labels_as_of: The day at whose beginning the labels of train and valid are looked at; None: when all is known.
    """

    days: tuple[tuple[str, tuple[float, float]], ...] = ()
    surfaces: tuple[str, ...] = ()
    tasks: tuple[str, ...] = ()
    labels_as_of: float | None = None

    @classmethod
    def of(cls, config: DataConfig) -> Selection:
        """What a run's data section asks for."""
        named = (("train", config.train_days), ("valid", config.valid_days), ("test", config.test_days))
        days = tuple((name, (pair[0], pair[1])) for name, pair in named if pair is not None)
        return cls(days, config.only_surfaces, config.only_tasks, config.labels_as_of)

    def window(self, split: str) -> tuple[float, float] | None:
        """The days of a split, or None for the stored one."""
        return dict(self.days).get(split)

    def picks(self, split: str) -> bool:
        """Whether a split is anything but the stored one."""
        return bool(self.surfaces) or self.window(split) is not None

    def reduced(self, schema: Schema) -> Schema:
        """The schema with the chosen tasks only, in its own order.

        Raises:
            GemkitError: It has no surface or task of a name.
        """
        _known(self.surfaces, schema.surfaces, schema.name, "surface")
        _known(self.tasks, schema.task_names, schema.name, "task")
        if not self.tasks:
            return schema
        kept = [t for t in schema.tasks if t.name in self.tasks]
        # The mask is in the stored labels, whether its task is read or not.
        kept = [t if t.masked_by in self.tasks else dataclasses.replace(t, masked_by=None) for t in kept]
        return dataclasses.replace(schema, tasks=tuple(kept))


def _known(names: Iterable[str], known: tuple[str, ...], data: str, what: str) -> None:
    for i, name in enumerate(names):
        if name not in known:
            raise GemkitError(
                f"data set '{data}' has no {what} '{name}'",
                where=f"data.only_{what}s[{i}]",
                allowed=", ".join(known),
                fix=did_you_mean(name, known),
            )


def nothing_left(selection: Selection, split: str, schema: Schema, last_day: int) -> GemkitError:
    """The error for a split of which a selection leaves no example, in a data set that ends on day `last_day`."""
    window = selection.window(split)
    wanted = [] if window is None else [f"days {window[0]:g} to {window[1]:g}"]
    wanted += [f"surface {' or '.join(selection.surfaces)}"] if selection.surfaces else []
    return GemkitError(
        f"data set '{schema.name}' has no such example for {split}: {', '.join(wanted)}",
        where="data.only_surfaces" if window is None else f"data.{split}_days",
        allowed=None if window is None else f"days 0 to {last_day + 1}",
    )
