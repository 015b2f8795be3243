"""Reads files that may be larger than memory, piece by piece: the cells that `gemkit.data.files.read_table` gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet

from gemkit.data.csvfile import header, stream_csv
from gemkit.data.files import FORMATS, UNREADABLE, check_columns, kind_of, read_table, unreadable
from gemkit.data.source import Stream
from gemkit.data.stage import told
from gemkit.errors import GemkitError

LARGE_BYTES = 64 << 20
"""In memory, about: what is larger is read piece by piece. Checked and divided, rows take several times as much."""

BLOCK_BYTES = 1 << 24
BATCH_ROWS = 1 << 17
IN_MEMORY = {".csv": 2, ".tsv": 2, ".parquet": 6, ".arrow": 1, ".feather": 2}
"""About how many bytes of memory a byte on disk becomes."""

# With `pre_buffer` every byte that has been read stays in memory; without a buffer whole columns are read at once.
STREAMED = {"page_checksum_verification": True, "pre_buffer": False, "buffer_size": 1 << 20}

Then = Callable[[pa.Table], pa.Table]


def read_files(
    paths: Sequence[Path],
    *,
    text: Iterable[str | None],
    numbers: Iterable[str | None],
    others: Iterable[str | None],
    then: Then = lambda table: table,
) -> pa.Table | Stream:
    """The named columns of files that hold one table together: in memory if they are one file and small.

    Args:
        text, numbers, others: As for `read_table`.
        then: What is done to each piece.

    Raises:
        GemkitError: A file cannot be read, or has no such column or several of that name. Of a stream this may also be
            raised while it is read.
    """
    text, numbers, others = list(text), list(numbers), list(others)
    sizes = [p.stat().st_size * (5 if p.suffix.lower() == ".gz" else 1) for p in paths]
    num_bytes = sum(size * IN_MEMORY.get(kind_of(p), 2) for size, p in zip(sizes, paths, strict=True))
    if len(paths) == 1 and num_bytes <= LARGE_BYTES:
        return then(read_table(paths[0], text=text, numbers=numbers, others=others))
    names = list(dict.fromkeys(c for c in (*others, *text, *numbers) if c))
    for path in paths:
        if kind_of(path) in (".csv", ".tsv"):
            check_columns(path, header(path, _delimiter(path)), names)

    def read() -> Iterator[pa.Table]:
        for path in paths:
            row = 0
            for piece in _pieces(path, names):
                yield told(then(piece), path.name, row)
                row += piece.num_rows

    return Stream(read, num_bytes)


def _pieces(path: Path, names: list[str]) -> Iterator[pa.Table]:
    try:
        if kind_of(path) in (".csv", ".tsv"):
            yield from stream_csv(path, _delimiter(path), names, BLOCK_BYTES)
        elif kind_of(path) == ".parquet":
            with pyarrow.parquet.ParquetFile(path, **STREAMED) as file:
                check_columns(path, file.schema_arrow.names, names)
                for batch in file.iter_batches(BATCH_ROWS, columns=names):
                    yield pa.table(batch).select(names)
        elif kind_of(path) in (".arrow", ".feather"):
            with pa.memory_map(str(path)) as file, pa.ipc.open_file(file) as reader:
                check_columns(path, reader.schema.names, names)
                for i in range(reader.num_record_batches):
                    batch = pa.table(reader.get_batch(i)).select(names)
                    batch.validate(full=True)
                    for row in range(0, batch.num_rows, BATCH_ROWS):
                        yield batch.slice(row, BATCH_ROWS)
        else:
            raise GemkitError(f"{path.name} has an unknown format", where=str(path), allowed=FORMATS)
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def _delimiter(path: Path) -> str:
    return "\t" if kind_of(path) == ".tsv" else ","
