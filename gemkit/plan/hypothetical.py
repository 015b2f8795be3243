"""Tables that no data set here has: a schema of a given size, and a batch that fits it."""

from __future__ import annotations

import numpy as np
import torch

from gemkit.data.batch import Batch, History
from gemkit.data.schema import ROLES, CategoricalFeature, EventField, Schema, Table, Task
from gemkit.errors import GemkitError
from gemkit.model import GEM
from gemkit.plan.assumptions import Hypothetical


def table_rows(params: float, num_tables: int, skew: float, dim: int) -> list[int]:
    """Rows of each table, the largest first; at least one."""
    shares = [(i + 1) ** -skew for i in range(num_tables)]
    return [max(1, round(params / dim * share / sum(shares))) for share in shares]


def hypothetical_schema(tables: Hypothetical, dim: int, read_events: bool) -> Schema:
    """One token for each table; roles take turns.

    Raises:
        GemkitError: A table has more rows than an id can count.
    """
    assert tables.embedding_params is not None
    rows = table_rows(tables.embedding_params, tables.embedding_tables, tables.embedding_skew, dim)
    if rows[0] > 2**31 - 1:
        raise GemkitError(
            f"the largest table has {rows[0]:,} rows",
            where="--embedding-params",
            allowed=f"{2**31 - 1:,} rows in a table",
            fix="more --embedding-tables, a smaller --embedding-skew, or a larger size.dim",
        )
    names = [f"table{i}" for i in range(len(rows))]
    fields = min(tables.event_fields, len(rows)) if read_events else 0
    return Schema(
        name="hypothetical",
        tables=tuple(Table(name=n, num_embeddings=r) for n, r in zip(names, rows, strict=True)),
        categorical=tuple(
            CategoricalFeature(name=f"feature{i}", role=ROLES[i % len(ROLES)], table=n) for i, n in enumerate(names)
        ),
        event_fields=tuple(EventField(name=f"field{i}", table=names[i]) for i in range(fields)),
        streams=("all",) if fields else (),
        tasks=(Task(name="click"),),
    )


def hypothetical_batch(schema: Schema, dense: GEM, num_examples: int, history: int) -> Batch:
    """Every example has a history of its own, of `history` events. All ids are 0: lookups count, not what they find.

    Args:
        dense: The model, which lays the histories out.
    """
    ids = {f.name: torch.zeros(num_examples, dtype=torch.int64) for f in schema.categorical}
    histories = None
    if dense.reads_events:
        total = num_examples * history
        index = torch.arange(num_examples)
        histories = History(
            offsets=torch.arange(num_examples + 1) * history,
            ages=torch.ones(total),
            stream=torch.zeros(total, dtype=torch.int64),
            history_index=index,
            first_example=index,
            layout=dense.layout(np.full(num_examples, history), np.zeros(total, np.int64)),
        )
        ids |= {f.key: torch.zeros(total, dtype=torch.int64) for f in schema.event_fields}
    column, zeros = torch.zeros(num_examples, 1), torch.zeros(num_examples, dtype=torch.int64)
    return Batch(
        ids=ids,
        bag_offsets={},
        dense=torch.zeros(num_examples, 0),
        vectors={},
        history=histories,
        labels=column,
        masks=torch.ones(num_examples, 1),
        delays=torch.full((num_examples, 1), torch.nan),
        elapsed=torch.full((num_examples,), torch.inf),
        weights=torch.ones(num_examples),
        surface=zeros,
        group=zeros,
        timestamp=zeros,
        example_id=torch.arange(num_examples),
    )
