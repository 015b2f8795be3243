"""What a build refuses only once it has seen all rows: empty splits, outliers, example ids that are there twice."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from gemkit.data import staged as names
from gemkit.data import storage
from gemkit.data.arrays import standardised
from gemkit.data.base import Base
from gemkit.data.columns import Columns, shown_rows
from gemkit.data.holders import Holder
from gemkit.data.schema import DenseFeature, VectorFeature
from gemkit.data.source import SPLITS, Source
from gemkit.data.staged import Staged
from gemkit.errors import GemkitError

if TYPE_CHECKING:
    import duckdb

    from gemkit.data.learn import Totals


def refuse_gaps(source: Source, totals: Totals) -> None:
    """Raises if a split has no examples, a task no labels in train, or train no weight."""
    title = source.examples_title
    fix = f"give each of {', '.join(SPLITS)} at least one row"
    if source.split.by == "time":
        fix = "examples of equal timestamp stay together: change `split.valid`/`split.test`, or split by a column"
    elif source.split.by == "boundary":
        fix = "change `split.valid_from_s`/`split.test_from_s`"
    for count, name in zip(totals.split, SPLITS, strict=True):
        if not count:
            raise GemkitError(f"the {name} split is empty", where=title, fix=fix)
    if source.weight and not totals.has_weight:
        raise GemkitError(
            "all weights of the train split are 0", where=f"{title}, column {source.weight}", allowed="some above 0"
        )
    for task in source.tasks:
        if task.name not in totals.labelled:
            raise GemkitError(
                f"task {task.name!r} has no label in the train split", where=f"{title}, column {task.name}"
            )


def refuse_outliers(
    source: Source, dense: tuple[DenseFeature, ...], staged: Staged, holders: dict[str, Holder], totals: Totals
) -> None:
    """Raises if a dense value is too far from the training split's to compute with."""
    for i, d in enumerate(dense):
        if d.of != "examples":
            holder = holders.get(d.of)
            if holder is not None:
                back = np.empty(len(holder.order), np.int64)
                back[holder.order] = np.arange(len(back))
                holder.columns.refuse_outliers(d, holder.dense[d.name][back])
            continue
        ends = np.array([totals.lowest.get(i, d.mean), totals.highest.get(i, d.mean)])
        if np.isfinite(standardised(ends, d)).all():
            continue
        # Rare: read again, to name the rows in the order of the file.
        columns = [names.ROW, f"{names.DENSE}{i}"]
        table = pa.concat_tables(
            [
                staged.read(names.EXAMPLES, p, columns).filter(_far(staged, p, d, i))
                for p in range(staged.num_partitions)
            ]
        ).sort_by(names.ROW)
        raise Columns.far(source.examples_title, d, float(table.column(1)[0].as_py()), table[names.ROW].to_numpy())


def _far(staged: Staged, partition: int, feature: DenseFeature, number: int) -> pa.Array:
    values = staged.read(names.EXAMPLES, partition, [f"{names.DENSE}{number}"]).column(0).to_numpy()
    return pa.array(~np.isfinite(standardised(values, feature)))


def refuse_twins(source: Source, staged: Staged, connection: duckdb.DuckDBPyConnection, base: Base | None) -> None:
    """Raises if an example id is there twice."""
    if not source.example_id:
        return
    kind = pa.schema({"id": pa.int64(), "row": pa.int64()})

    def batches() -> Iterator[pa.RecordBatch]:
        for partition in range(staged.num_partitions):
            yield from staged.read(names.EXAMPLES, partition, [names.ID, names.ROW]).cast(kind).to_batches()
        for segment in range(base.segment if base else 0):
            for partition in range(staged.num_partitions):
                assert base is not None
                ids = base.open(segment, partition, storage.EXAMPLES)
                assert ids is not None
                old = pa.array(np.full(ids.num_rows, -1))  # rows of earlier segments have no number here
                yield from pa.table([ids[storage.EXAMPLE_ID], old], schema=kind).to_batches()

    connection.register("ids", pa.RecordBatchReader.from_batches(kind, batches()))
    twins = connection.sql("SELECT id FROM ids GROUP BY id HAVING count(*) > 1 ORDER BY id").to_arrow_table()["id"]
    connection.unregister("ids")
    if len(twins):
        found = pa.concat_tables(pa.Table.from_batches([b], kind) for b in batches())
        rows = found.filter(pa.compute.is_in(found["id"], value_set=twins.combine_chunks()))["row"].to_numpy()
        rows = np.sort(rows[rows >= 0])
        raise GemkitError(
            f"example id {twins[0].as_py()} appears twice",
            where=f"{source.examples_title}, column {source.example_id}, {shown_rows(rows)}",
        )


def refuse_other_widths(source: Source, vectors: tuple[VectorFeature, ...], base: Base) -> None:
    """Raises if appended vectors are not as wide as the data set's."""
    for new, old in zip(vectors, base.schema.vectors, strict=True):
        if new.width != old.width:
            raise GemkitError(
                f"the vectors of {new.name!r} have {new.width} numbers, those of the data set {old.width}",
                where=f"{source.examples_title}, column {new.name}",
                allowed=f"{old.width} numbers in each row",
            )
