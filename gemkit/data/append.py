"""New days of logs become a new segment: what was built before is neither read again nor changed."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from gemkit.data.base import Base, check_same_declaration
from gemkit.data.build import Progress, Share, Work
from gemkit.data.checks import check_declaration
from gemkit.data.engine import Limits
from gemkit.data.learn import declared_schema
from gemkit.data.source import SPLITS, Source
from gemkit.data.stage import After
from gemkit.data.verify import verified


def append(
    source: Source,
    folder: Path,
    progress: Progress,
    options: dict[str, Any] | None = None,
    limits: Limits | None = None,
    *,
    split: str | None = None,
    drop_late: bool = False,
) -> dict[str, int]:
    """Adds the rows of `source` to the data set in `folder`; readers that have it open are not disturbed.

    Statistics of dense features stay. Ids are added: those of the new training examples and of what they have seen.
    Examples belong to the split that the data set's boundaries say, unless the source has a column of splits.

    Args:
        split: All new examples are of this split.
        drop_late: Leave out rows that are too old, in place of refusing them.

    Returns:
        Rows that were left out, by table.

    Raises:
        GemkitError: There is no data set, the declaration is another, or rows are older than what is there: an
            example that has been built would have had to see them.
    """
    check_declaration(source)
    manifest, schema = verified(folder)
    base = Base(folder, manifest, schema)
    check_same_declaration(source, declared_schema(source), base)
    # An example as old as the newest event would see it, and may not. An event may be as old as the newest example,
    # which does not see events of its own second. Without times nothing can be late.
    oldest_s = base.newest_s + 1 if schema.has_events else base.newest_s
    after = After(oldest_s, base.newest_s, drop_late) if source.timestamp else None
    only = None if split is None else SPLITS.index(split)
    work = Work(folder, source, options or {}, limits or Limits(), Share(), progress, base, after, only)
    with work.cleaned_up(keep=options is not None):
        work.run()
        work.finish()
    return work.num_late
