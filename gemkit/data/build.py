"""From a `Source` to a dataset folder: checked, divided by user, learned from the training split, written by partition.

    stage    read the source piece by piece, check every cell, divide the rows by user          (`stage`)
    learn    split times, vocabularies, means: from the training split only                     (`learn`)
    write    one partition after the other: sorted, encoded, histories as pointers              (`write_shard`)
    finish   the manifest; the folder appears complete, or not at all                           (`finish`)

Memory is bounded by the pieces of the source and by the largest partition. What is done is kept in `<folder>.building`
when a build ends early, and the next one with the same options goes on from there.
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from gemkit import __version__
from gemkit.config.fields import to_mapping
from gemkit.data import storage
from gemkit.data.base import Base
from gemkit.data.checks import check_declaration
from gemkit.data.engine import MAX_PARTITIONS, Limits, release_memory
from gemkit.data.fetch import sha256_of
from gemkit.data.holders import Holder
from gemkit.data.learn import Learned, declared_schema, learn
from gemkit.data.source import Source, Stream
from gemkit.data.stage import After, stage
from gemkit.data.staged import Staged
from gemkit.data.vocabulary import Vocabulary
from gemkit.data.write_shard import ShardWriter
from gemkit.errors import GemkitError
from gemkit.runs.files import replacing, writing_failed

Progress = Callable[[str, int, int], None]

PARTITION_BYTES = 128 << 20
"""Of a source that is read piece by piece, for each partition that is built; one is in memory at a time."""

WHOLE_BYTES = 512 << 20
"""The same of a source that is in memory as a whole: there is less to gain, and one partition is the simplest."""


@dataclass(frozen=True)
class Share:
    """Which partitions a machine builds: those whose number leaves the rest `index` when divided by `count`."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise GemkitError(
                f"part {self.index} of {self.count}", where="--partitions", allowed="0/n to (n-1)/n, e.g. 0/4"
            )

    def has(self, partition: int) -> bool:
        """Whether this machine builds a partition."""
        return partition % self.count == self.index


def build(
    source: Source,
    folder: Path,
    progress: Progress,
    options: dict[str, Any] | None = None,
    limits: Limits | None = None,
    share: Share | None = None,
) -> None:
    """Writes the dataset folder; it appears complete, or not at all.

    Args:
        progress: Called as (name, steps done, steps in all; 0: unknown).
        options: What the source was made with; `manifest.json` keeps it, to tell whether a folder is up to date. A
            build that ends early can be gone on with only if they are given.
        share: Build these partitions only, into `<folder>.building`; `finish` makes the data set when all are there.

    Raises:
        GemkitError: The declaration contradicts itself, a column has values that its meaning does not allow, or the
            build does not fit into its memory.
    """
    check_declaration(source)
    storage.refuse_other_folder(folder)
    work = Work(folder, source, options or {}, limits or Limits(), share or Share(), progress)
    with work.cleaned_up(keep=options is not None):
        work.run()
        if share is None:
            work.finish()


@dataclass
class Work:
    """A build on its way."""

    folder: Path
    source: Source
    options: dict[str, Any]
    limits: Limits
    share: Share
    progress: Progress
    base: Base | None = None
    after: After | None = None
    only: int | None = None
    steps: int = field(default=0, init=False)
    num_late: dict[str, int] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        self.path = self.folder.with_name(f"{self.folder.name}.building")
        self.out = self.path / "out"
        self.segment = self.base.segment if self.base else 0
        if self.base:
            self.num_partitions = self.base.num_partitions
        elif self.limits.num_partitions:
            self.num_partitions = self.limits.num_partitions
        else:
            self.num_partitions = min(MAX_PARTITIONS, max(1, _num_partitions(self.source)))

    def run(self) -> None:
        """Stages, learns, and writes this machine's partitions."""
        self._start()
        staged = self._staged()
        self.num_late = staged.num_late
        holders = {of: Holder(self.source, of) for of in ("users", "items") if getattr(self.source, of) is not None}
        learned = learn(
            self.source,
            declared_schema(self.source),
            staged,
            holders,
            self.limits,
            self._report,
            base=self.base,
            only=self.only,
        )
        files = self._write_learned(learned)
        vocabularies = {}
        for table in learned.schema.tables:
            old = self.base.vocabulary_files(table.name) if self.base else []
            new = [self.out / n for n in files if n == storage.vocabulary_file(table.name, self.segment)]
            vocabularies[table.name] = Vocabulary(table, [*old, *new])
        writer = ShardWriter(self.source, learned, staged, vocabularies, holders, self.base)
        rows = {"items": 0}
        if "items" in holders:
            name = f"{storage.segment_folder(self.segment)}/{storage.ITEMS}"
            rows["items"] = writer.write_items(self.out / name)
            files[name] = sha256_of(self.out / name)
        self._check_memory(staged)
        for partition in range(self.num_partitions):
            if self.share.has(partition) and not self._done(partition).is_file():
                self._write_partition(writer, partition)
            self._report()
        about = {
            "learned": hashlib.sha256(json.dumps(files, sort_keys=True).encode()).hexdigest(),
            "files": files,
            "items": rows["items"],
            "boundaries": _boundaries(learned),
            "vocabularies": {name: v.num_rows for name, v in learned.vocabularies.items()},
            "name": learned.schema.name,
            "partitions": self.num_partitions,
            "times": staged.times,
        }
        storage.write_json(about, self.path / f"learned-{self.share.index}-of-{self.share.count}.json")

    def finish(self) -> None:
        """Makes the data set of all partitions."""
        from gemkit.data.finish import finish

        finish(self)
        self._report()

    def _start(self) -> None:
        """Throws away what another build left."""
        key = {
            "format_version": storage.FORMAT_VERSION,
            "gemkit": __version__,
            "options": self.options,
            "source_files": self.source.files,
            "declared": to_mapping(declared_schema(self.source)),
            "partitions": self.num_partitions,
            "segment": self.segment,
            "after": self.base.manifest["digest"] if self.base else None,
            "only": self.only,
            "late": asdict(self.after) if self.after else None,
        }
        file = self.path / "key.json"
        # Nothing is in the folder before its key, which appears whole: another machine may be making it right now.
        if (file.is_file() and not _same(file, key)) or not (self.options or self.source.files):
            shutil.rmtree(self.path, ignore_errors=True)
        self.path.mkdir(parents=True, exist_ok=True)
        with replacing(file) as temporary:
            storage.write_json(key, temporary)

    @property
    def staged_folder(self) -> Path:
        """Where this machine keeps the source's checked rows."""
        return self.path / f"staged-{self.share.index}-of-{self.share.count}"

    def _staged(self) -> Staged:
        folder = self.staged_folder
        staged, done = Staged(folder, self.num_partitions), folder / "done.json"
        if done.is_file():
            for name, value in storage.read_json(done).items():
                setattr(staged, name, value)
            shutil.rmtree(folder / "counts", ignore_errors=True)
            return staged
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        first_id = self.base.num_examples if self.base else 0
        stage(self.source, staged, self.limits, self._report, first_id, self.after)
        release_memory()
        storage.write_json(staged.counts(), done)
        return staged

    def _write_learned(self, learned: Learned) -> dict[str, str]:
        """The schema and the new vocabulary rows, with their hashes."""
        files = {}
        name = storage.schema_file(self.segment)
        self.out.mkdir(parents=True, exist_ok=True)
        storage.write_json(to_mapping(learned.schema), self.out / name)
        files[name] = sha256_of(self.out / name)
        for table, rows in learned.vocabularies.items():
            name = storage.vocabulary_file(table, self.segment)
            storage.write_table(rows, self.out / name)
            files[name] = sha256_of(self.out / name)
        return files

    def _write_partition(self, writer: ShardWriter, partition: int) -> None:
        name = storage.partition_folder(self.segment, partition)
        target = self.out / name
        fresh = target.with_name(f"{target.name}.tmp")
        shutil.rmtree(fresh, ignore_errors=True)
        shutil.rmtree(target, ignore_errors=True)
        rows = writer.write(partition, fresh)
        release_memory()
        files = {f"{name}/{p.name}": sha256_of(p) for p in sorted(fresh.iterdir())}
        fresh.rename(target)
        storage.write_json({"rows": rows, "files": files}, self._done(partition))

    def _done(self, partition: int) -> Path:
        return self.path / f"partition-{partition:03d}.json"

    def _check_memory(self, staged: Staged) -> None:
        largest = max(sum(t[p] for t in staged.num_bytes.values()) for p in range(self.num_partitions))
        if largest <= self.limits.partition_bytes:
            return
        needed = -(-largest * self.num_partitions // self.limits.partition_bytes)
        fix = f"--num-partitions {min(MAX_PARTITIONS, 2 * needed)}" if self.base is None else "give it more memory"
        raise GemkitError(
            f"a partition takes {largest >> 20} MiB, more than {self.limits.memory_bytes >> 20} MiB of memory leave it",
            where="--memory",
            allowed=f"{self.limits.partition_bytes >> 20} MiB; users are divided over {self.num_partitions} partitions",
            fix=fix,
        )

    def _report(self) -> None:
        self.steps += 1
        self.progress(f"build {self.source.name}", self.steps, 0)

    def cleaned_up(self, *, keep: bool) -> _CleanUp:
        """Removes the work folder at the end; if `keep`, not when the build was interrupted."""
        return _CleanUp(self, keep)


class _CleanUp:
    def __init__(self, work: Work, keep: bool) -> None:
        self._work, self._keep = work, keep

    def __enter__(self) -> None:
        pass

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: Any) -> None:
        # A refused source is refused again, and a share waits for the others.
        done = kind is None and (self._work.share.count == 1 and not self._work.out.exists())
        if done or (kind is not None and (not self._keep or issubclass(kind, GemkitError))):
            # What other machines have built stays.
            shutil.rmtree(self._work.path if self._work.share.count == 1 else self._work.staged_folder, True)
        if isinstance(error, OSError):
            raise writing_failed(self._work.folder, error.errno or 5) from error


def _same(path: Path, key: dict[str, Any]) -> bool:
    try:
        return bool(storage.read_json(path) == json.loads(json.dumps(key)))
    except (OSError, ValueError):
        return False


def _boundaries(learned: Learned) -> dict[str, int] | None:
    found = learned.splitter.boundaries
    return None if found is None else {"valid_from_s": found[0], "test_from_s": found[1]}


def _num_partitions(source: Source) -> int:
    tables = [t for t in (source.examples, source.events) if t is not None]
    size = PARTITION_BYTES if any(isinstance(t, Stream) for t in tables) else WHOLE_BYTES
    num_bytes = sum(t.num_bytes if isinstance(t, Stream) else int(t.nbytes) for t in tables)
    return -(-num_bytes // size)
