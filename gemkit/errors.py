"""Errors for people: what is wrong, where, what is allowed, how to mend it.

`GemkitError` is the one exception type that the command line turns into a few lines and exit code 2.
Anything else that escapes is a defect of gemkit or of a plugin and exits with 1.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class GemkitError(Exception):
    """Something that the user can mend: a name, a value, a file.

    Args:
        what: One sentence: what is wrong, with the offending value in it.
        where: The field, file, column or row, e.g. ``interaction.rank`` or ``ratings.csv, row 17``.
        allowed: What would be accepted there.
        fix: What to type or change.
    """

    def __init__(
        self,
        what: str,
        *,
        where: str | None = None,
        allowed: str | None = None,
        fix: str | None = None,
    ) -> None:
        self.what = what
        self.where = where
        self.allowed = allowed
        self.fix = fix
        super().__init__(str(self))

    def __str__(self) -> str:
        rows = [("where", self.where), ("allowed", self.allowed), ("fix", self.fix)]
        return "\n".join([self.what, *(f"  {label + ':':<9}{text}" for label, text in rows if text)])

    def __reduce__(self) -> tuple[object, ...]:
        # Worker processes send exceptions home by pickling; keyword-only arguments need this.
        return (_rebuild, (type(self), self.what, self.where, self.allowed, self.fix))


def _rebuild(
    kind: type[GemkitError],
    what: str,
    where: str | None,
    allowed: str | None,
    fix: str | None,
) -> GemkitError:
    return kind(what, where=where, allowed=allowed, fix=fix)


def nearest(name: str, choices: Iterable[str]) -> str | None:
    """The choice that looks most like `name`, or None if none looks like it."""
    matches = difflib.get_close_matches(name, list(choices), n=1, cutoff=0.5)
    return matches[0] if matches else None


def did_you_mean(name: str, choices: Iterable[str]) -> str | None:
    """A fix line for a misspelt name: ``did you mean 'wukong'?``, or None."""
    match = nearest(name, choices)
    return f"did you mean '{match}'?" if match else None
