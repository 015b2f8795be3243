"""DuckDB as the build uses it: within a memory limit, spilling into the build's folder, reading no file itself."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from gemkit.errors import GemkitError

if TYPE_CHECKING:
    import duckdb

MIN_MEMORY_BYTES = 768 << 20
"""Python and its libraries take half of it, whatever is built."""

BASE_BYTES = 450 << 20
"""What the process takes besides its tables: 260 MiB for Python and libraries, the rest for pieces under way."""

MAX_PARTITIONS = 1000
UNITS = {"": 1, "B": 1, "KB": 1000, "KIB": 1 << 10, "MB": 10**6, "MIB": 1 << 20, "GB": 10**9, "GIB": 1 << 30}


@dataclass(frozen=True)
class Limits:
    """What a build may use.

    Attributes:
        memory_bytes: Peak memory of the process, about.
        num_partitions: Into how many parts users are divided; None: by the size of the source. It shapes the files of
            the data set; `memory_bytes` does not.
    """

    memory_bytes: int = 4 << 30
    num_partitions: int | None = None

    def __post_init__(self) -> None:
        if self.memory_bytes < MIN_MEMORY_BYTES:
            raise GemkitError(
                f"{self.memory_bytes / 2**20:.0f} MiB of memory are too little",
                where="--memory",
                allowed=f"{MIN_MEMORY_BYTES >> 20}MiB and more",
            )
        if self.num_partitions is not None and not 1 <= self.num_partitions <= MAX_PARTITIONS:
            raise GemkitError(
                f"{self.num_partitions} partitions", where="--num-partitions", allowed=f"1 to {MAX_PARTITIONS}"
            )

    @property
    def buffer_bytes(self) -> int:
        """Rows that wait to be written, over all partitions."""
        return (self.memory_bytes - BASE_BYTES) // 8

    @property
    def partition_bytes(self) -> int:
        """Staged rows of one partition. While it is built it takes three times as much (measured)."""
        return (self.memory_bytes - BASE_BYTES) // 4

    @property
    def engine_bytes(self) -> int:
        """DuckDB's share. It works when no partition is in memory."""
        return (self.memory_bytes - BASE_BYTES) * 6 // 10


def bytes_of(text: str) -> int:
    """A size as people write it: ``1GiB``, ``800 MB``.

    Raises:
        GemkitError: It is none.
    """
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)\s*([KMG]?I?B|)", text.strip().upper())
    if match is None or match[2] not in UNITS:
        raise GemkitError(f"{text!r} is no size", where="--memory", allowed="a number and MiB, GiB, MB or GB")
    return int(float(match[1]) * UNITS[match[2]])


def release_memory() -> None:
    """Gives back what Arrow keeps for its next tables: between partitions that is more than Python itself takes."""
    import pyarrow as pa

    pa.default_memory_pool().release_unused()


@contextlib.contextmanager
def engine(work: Path, limits: Limits) -> Iterator[duckdb.DuckDBPyConnection]:
    """A database in memory that opens no file but those it spills into below `work`: tables go in and out by Arrow.

    Raises:
        GemkitError: It needs more memory than `limits` or more disk than there is.
    """
    import duckdb

    settings: dict[str, str | bool | int | float | list[str]] = {
        "memory_limit": f"{limits.engine_bytes >> 20}MiB",
        "threads": min(4, os.cpu_count() or 1),
        "temp_directory": str(work.absolute() / "spilled"),
        "preserve_insertion_order": False,
        "autoinstall_known_extensions": False,
        "autoload_known_extensions": False,
        "python_enable_replacements": False,
    }
    with duckdb.connect(":memory:", config=settings) as connection:
        connection.execute("SET enable_external_access = false")
        connection.execute("SET lock_configuration = true")
        try:
            yield connection
        except duckdb.OutOfMemoryException as error:
            raise GemkitError(
                f"the build does not fit into {limits.memory_bytes >> 20} MiB of memory", where="--memory", fix="more"
            ) from error
        except duckdb.IOException as error:
            raise OSError(str(error)) from error
