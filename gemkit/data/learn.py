"""The second pass of a build: what is learned from the training split, and nothing else.

Split times, vocabularies, means and deviations. The result depends on the rows, not on how they were cut into pieces
or partitions.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

from gemkit.data import staged as names
from gemkit.data import storage
from gemkit.data.arrays import as_array, flat, transformed
from gemkit.data.base import Base
from gemkit.data.columns import Codes
from gemkit.data.engine import Limits, engine, release_memory
from gemkit.data.holders import Holder
from gemkit.data.refusals import refuse_gaps, refuse_other_widths, refuse_outliers, refuse_twins
from gemkit.data.schema import CategoricalFeature, DenseFeature, EventField, Schema, Table
from gemkit.data.source import Source, Split
from gemkit.data.staged import Staged, codes_of
from gemkit.data.statistics import ExactSum, deviation
from gemkit.data.vocabulary import count_values, merge_counts
from gemkit.errors import GemkitError

if TYPE_CHECKING:
    import duckdb


@dataclass(frozen=True)
class Splitter:
    """Which examples are train (0), valid (1), test (2).

    Attributes:
        boundaries: First second of valid, and of test; None: by the staged column.
        only: All examples are of this split.
    """

    boundaries: tuple[int, int] | None = None
    only: int | None = None

    @property
    def columns(self) -> list[str]:
        """Staged columns that `of` reads."""
        return [names.TIME, *([names.SPLIT] if self.boundaries is None and self.only is None else [])]

    def of(self, examples: pa.Table) -> np.ndarray:
        """Shape: (rows,) int8."""
        if self.only is not None:
            return np.full(examples.num_rows, self.only, np.int8)
        if self.boundaries is None:
            column: np.ndarray = examples[names.SPLIT].to_numpy()
            return column
        time = examples[names.TIME].to_numpy()
        by_time: np.ndarray = np.searchsorted(np.array(self.boundaries), time, side="right").astype(np.int8)
        return by_time


@dataclass
class Learned:
    """What the shards are written with.

    Attributes:
        schema: Complete.
        splitter: Of all examples of the segment.
        vocabularies: The rows that the segment adds, for each table that is not hashed.
    """

    schema: Schema
    splitter: Splitter
    vocabularies: dict[str, pa.Table]


@dataclass
class Totals:
    """What one look at every partition adds up to."""

    split: np.ndarray = field(default_factory=lambda: np.zeros(3, np.int64))
    labelled: set[str] = field(default_factory=set)
    has_weight: bool = False
    surfaces: list[pa.Table] = field(default_factory=list)
    streams: list[pa.Table] = field(default_factory=list)
    sums: dict[int, ExactSum] = field(default_factory=dict)
    lowest: dict[int, float] = field(default_factory=dict)
    highest: dict[int, float] = field(default_factory=dict)
    holders: dict[str, np.ndarray] = field(default_factory=dict)


def learn(
    source: Source,
    declared: Schema,
    staged: Staged,
    holders: dict[str, Holder],
    limits: Limits,
    report: Callable[[], None],
    *,
    base: Base | None = None,
    only: int | None = None,
) -> Learned:
    """Reads all staged rows.

    Args:
        declared: The source's schema, with nothing learned yet.
        base: The data set that is appended to: its statistics and ids stay, and ids are added.
        only: Appended examples are of this split, whatever the data set's rule.

    Raises:
        GemkitError: A split has no examples, a task no labels; a value does not fit the others.
    """
    work = staged.folder / "counts"
    tables = {t.name: number for number, t in enumerate(declared.tables) if not t.hashed}
    with engine(staged.folder, limits) as connection:
        splitter = _splitter(source.split, staged, connection, base, only)
        totals = Totals(holders={of: np.zeros(len(h.texts), np.int64) for of, h in holders.items()})
        for partition in range(staged.num_partitions):
            counts = _look(source, declared, staged, partition, splitter, holders, totals)
            for table, number in tables.items():
                storage.write_table(counts[table], work / f"{number}-{partition:03d}.arrow")
            release_memory()
            report()
        if base is None:
            refuse_gaps(source, totals)
        dense = base.schema.dense if base else _statistics(source, staged, splitter, holders, totals)
        refuse_outliers(source, dense, staged, holders, totals)
        refuse_twins(source, staged, connection, base)
        rules = {rule.name: rule for rule in source.tables}
        vocabularies = {}
        for table, number in tables.items():
            parts = _counts(work, number, declared, table, holders, totals)
            known = base.vocabulary_files(table) if base else []
            rule = rules.get(table)
            min_count = source.min_count if rule is None or rule.min_count is None else rule.min_count
            vocabularies[table] = merge_counts(connection, parts, known, min_count)
            report()
    old = {t.name: t.num_embeddings for t in base.schema.tables} if base else {}
    sizes = {name: old.get(name, 1) + rows.num_rows for name, rows in vocabularies.items()}
    vectors = tuple(
        replace(v, width=holders[v.of].vectors[v.name].shape[1] if v.of in holders else width)
        for v, width in zip(declared.vectors, staged.widths, strict=True)
    )
    if base:
        refuse_other_widths(source, vectors, base)
    schema = replace(
        declared,
        name=base.schema.name if base else declared.name,
        tables=tuple(t if t.hashed else replace(t, num_embeddings=sizes[t.name]) for t in declared.tables),
        dense=dense,
        vectors=vectors,
        streams=_names(totals.streams, base.schema.streams if base else ()) if source.stream else declared.streams,
        surfaces=_names(totals.surfaces, base.schema.surfaces if base else ()) if source.surface else declared.surfaces,
    )
    return Learned(schema, splitter, vocabularies)


def declared_schema(source: Source) -> Schema:
    """The schema before anything is learned."""
    features: tuple[CategoricalFeature | EventField, ...] = (*source.categorical, *source.event_fields)
    rules = {rule.name: rule for rule in source.tables}

    def table(name: str) -> Table:
        rule = rules.get(name)
        if rule is None or rule.hash_rows is None:
            return Table(name=name)
        return Table(name=name, num_embeddings=rule.hash_rows + 1, hashed=True, hash_seed=rule.hash_seed)

    return Schema(
        name=source.name,
        tables=tuple(table(name) for name in dict.fromkeys(f.table or f.name for f in features)),
        dense=source.dense,
        categorical=tuple(replace(f, table=f.table or f.name) for f in source.categorical),
        vectors=source.vectors,
        event_fields=tuple(replace(f, table=f.table or f.name) for f in source.event_fields),
        streams=("event",) if source.events is not None else (),
        tasks=source.tasks,
        group=source.group,
    )


def _splitter(
    rule: Split, staged: Staged, connection: duckdb.DuckDBPyConnection, base: Base | None, only: int | None
) -> Splitter:
    if only is not None:
        return Splitter(only=only)
    if rule.by == "column":
        return Splitter()
    if base is not None:
        boundaries = base.manifest["boundaries"]
        if boundaries is None:
            raise GemkitError(
                "the data set has no times at which its splits begin: it was split by a column",
                where="split",
                fix="split by a column, or say `--split train`",
            )
        return Splitter((boundaries["valid_from_s"], boundaries["test_from_s"]))
    if rule.by == "boundary":
        return Splitter((rule.valid_from_s, rule.test_from_s))
    num_rows = sum(staged.rows[names.EXAMPLES])
    num_test = max(1, round(rule.test * num_rows))
    num_valid = max(1, round(rule.valid * num_rows))

    def kth(k: int) -> int:
        times = pa.schema({names.TIME: pa.int64()})
        batches = (b for p in range(staged.num_partitions) for b in _times(staged, p).cast(times).to_batches())
        connection.register("times", pa.RecordBatchReader.from_batches(times, batches))
        found = connection.sql(f"SELECT time FROM times ORDER BY time LIMIT 1 OFFSET {k}").fetchall()[0][0]
        connection.unregister("times")
        return int(found)

    return Splitter((kth(max(0, num_rows - num_test - num_valid)), kth(max(0, num_rows - num_test))))


def _times(staged: Staged, partition: int) -> pa.Table:
    return staged.read(names.EXAMPLES, partition, [names.TIME])


def _look(
    source: Source,
    declared: Schema,
    staged: Staged,
    partition: int,
    splitter: Splitter,
    holders: dict[str, Holder],
    totals: Totals,
) -> dict[str, pa.Table]:
    """Adds a partition to `totals`; the counts of its training ids, for each table that is not hashed."""
    columns = [names.WEIGHT, *splitter.columns]
    columns += [f"{names.LABEL}{i}" for i in range(len(source.tasks))]
    columns += [f"{names.DENSE}{i}" for i, d in enumerate(source.dense) if d.of == "examples"]
    categorical = [(f"{names.CATEGORY}{i}", c) for i, c in enumerate(declared.categorical) if c.of == "examples"]
    columns += [name for name, _ in categorical]
    columns += [names.USER] if source.user else []
    columns += [names.SURFACE] if source.surface else []
    columns += [names.ITEM] if "items" in holders else []
    examples = staged.read(names.EXAMPLES, partition, columns)
    split = splitter.of(examples)
    train = split == 0
    totals.split += np.bincount(split, minlength=3)
    totals.has_weight |= bool(examples[names.WEIGHT].to_numpy()[train].any())
    totals.labelled |= {
        t.name for t, label in zip(source.tasks, labels(source, examples), strict=True) if ((label >= 0) & train).any()
    }
    if source.surface:
        totals.surfaces.append(count_values([(codes_of(examples[names.SURFACE]), None)]))
    for i, d in enumerate(source.dense):
        if d.of == "examples" and examples.num_rows:
            values = examples[f"{names.DENSE}{i}"].to_numpy()
            totals.sums.setdefault(i, ExactSum()).add(transformed(values[train], d.transform))
            totals.lowest[i] = min(totals.lowest.get(i, np.inf), float(values.min()))
            totals.highest[i] = max(totals.highest.get(i, -np.inf), float(values.max()))
    for of, holder in holders.items():
        who = codes_of(examples[names.USER if of == "users" else names.ITEM])
        rows = holder.find(who.values)
        counts = np.bincount(who.codes[train & (who.codes >= 0)], minlength=len(rows))
        totals.holders[of][rows[rows >= 0]] += counts[rows >= 0]

    parts: dict[str, list[tuple[Codes, np.ndarray | None]]] = {t.name: [] for t in declared.tables}
    for name, c in categorical:
        column = examples[name].combine_chunks()
        if c.multi:
            lengths = as_array(column.value_lengths()) if examples.num_rows else np.zeros(0, np.int64)
            parts[c.table].append((bag_codes(column), np.repeat(train, lengths)))
        else:
            parts[c.table].append((codes_of(column), train))
    if source.events is not None:
        fields = [f"{names.FIELD}{i}" for i in range(len(declared.event_fields))]
        columns = [names.USER, names.TIME, *fields, *([names.STREAM] if source.stream else [])]
        events = staged.read(names.EVENTS, partition, columns)
        if source.stream:
            totals.streams.append(count_values([(codes_of(events[names.STREAM]), None)]))
        seen = _seen(examples, train, events)
        for name, e in zip(fields, declared.event_fields, strict=True):
            parts[e.table].append((codes_of(events[name]), seen))
    return {t.name: count_values(parts[t.name]) for t in declared.tables if not t.hashed}


def _seen(examples: pa.Table, train: np.ndarray, events: pa.Table) -> np.ndarray:
    """Which events are in the history of at least one training example. Shape: (events,) bool."""
    who, whose = codes_of(examples[names.USER]), codes_of(events[names.USER])
    last = np.full(len(who.values), np.iinfo(np.int64).min)
    np.maximum.at(last, who.codes[train], examples[names.TIME].to_numpy()[train])
    # Users by their place among the examples' users; those that are not there have seen nothing.
    place = as_array(pa.compute.index_in(whose.values, value_set=who.values).fill_null(-1))
    last_of = np.append(last, np.iinfo(np.int64).min)[place]
    seen: np.ndarray = events[names.TIME].to_numpy() < last_of[whose.codes]
    return seen


def bag_codes(column: pa.Array) -> Codes:
    """The ids of bags, back to back."""
    return codes_of(flat(column).cast(pa.string()).dictionary_encode())


def labels(source: Source, examples: pa.Table) -> list[np.ndarray]:
    """Labels that count; -1 where they do not, for want of a value or through `masked_by`. Shape: (rows,) int8 each."""
    raw = {t.name: examples[f"{names.LABEL}{i}"].to_numpy() for i, t in enumerate(source.tasks)}
    masks = {t.name: t.masked_by for t in source.tasks}
    result = []
    for task in source.tasks:
        known, masker = raw[task.name] >= 0, task.masked_by
        while masker:
            known = known & (raw[masker] == 1)
            masker = masks[masker]
        result.append(np.where(known, raw[task.name], -1).astype(np.int8))
    return result


def _statistics(
    source: Source, staged: Staged, splitter: Splitter, holders: dict[str, Holder], totals: Totals
) -> tuple[DenseFeature, ...]:
    sums = dict(totals.sums)
    for i, d in enumerate(source.dense):
        if d.of != "examples":
            values = transformed(holders[d.of].dense[d.name], d.transform)
            sums[i] = ExactSum()
            sums[i].add(values, totals.holders[d.of])
    squares = {i: ExactSum() for i in sums}
    own = [i for i, d in enumerate(source.dense) if d.of == "examples"]
    for partition in range(staged.num_partitions if own else 0):
        columns = [*splitter.columns, *(f"{names.DENSE}{i}" for i in own)]
        examples = staged.read(names.EXAMPLES, partition, columns)
        train = splitter.of(examples) == 0
        for i in own:
            values = transformed(examples[f"{names.DENSE}{i}"].to_numpy()[train], source.dense[i].transform)
            squares[i].add((values - sums[i].mean) ** 2)
    for i, d in enumerate(source.dense):
        if d.of != "examples":
            values = transformed(holders[d.of].dense[d.name], d.transform)
            squares[i].add((values - sums[i].mean) ** 2, totals.holders[d.of])
    return tuple(
        replace(d, mean=sums[i].mean, std=deviation(sums[i].mean, squares[i])) for i, d in enumerate(source.dense)
    )


def _counts(
    work: Path, number: int, declared: Schema, table: str, holders: dict[str, Holder], totals: Totals
) -> Iterator[pa.Table]:
    for path in sorted(work.glob(f"{number}-*.arrow")):
        yield storage.open_table(path)
    for c in declared.categorical:
        if c.table == table and c.of in holders:
            yield holders[c.of].value_counts(c.name, totals.holders[c.of])


def _names(counts: list[pa.Table], known: tuple[str, ...]) -> tuple[str, ...]:
    """Known names, then new ones, most frequent first, equals in order of text."""
    totals = pa.concat_tables(counts).group_by("value").aggregate([("count", "sum")])
    ordered = totals.sort_by([("count_sum", "descending"), ("value", "ascending")])["value"].to_pylist()
    return (*known, *(name for name in ordered if name not in known))
