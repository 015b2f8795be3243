"""One training run of many that belong together: found again if it is there, gone on with if it was stopped."""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from gemkit.config.compose import compose
from gemkit.config.fields import to_mapping
from gemkit.config.run import RunConfig
from gemkit.errors import GemkitError
from gemkit.registry import Registry
from gemkit.runs.folder import CONFIG, METRICS, RunFolder
from gemkit.runs.progress import Progress
from gemkit.session import open_dataset
from gemkit.train import train
from gemkit.transfer.codes import Coding
from gemkit.transfer.coding import CodingConfig


class Units:
    """Makes the runs of a graph or a cycle.

    Args:
        overrides: Words after those of the file, for every run.
        config_dirs: As for `compose`.
    """

    def __init__(
        self,
        registry: Registry,
        overrides: Sequence[str] = (),
        config_dirs: Sequence[Path] = (),
        progress: Progress | None = None,
    ) -> None:
        self.registry, self.overrides, self.config_dirs, self._given = registry, overrides, config_dirs, progress
        self._fingerprints: dict[str, str] = {}

    @property
    def progress(self) -> Progress:
        """A display for one run."""
        return self._given or Progress()

    def compose(self, words: Sequence[str], seed: int, parts: Mapping[str, Any]) -> RunConfig:
        """The run of these words, which learns by the strategies `parts` (name -> options with their `name`)."""
        all_words = [*words, *self.overrides, f"seed={seed}", "train.save_predictions=true"]
        run = compose(all_words, self.registry, self.config_dirs)
        if not parts:
            return run
        transfer = self.registry.config("transfer", {"name": "several", "parts": parts})
        return dataclasses.replace(run, transfer=transfer)

    def reads(self, strategy: str, option: str) -> bool:
        """Whether a strategy has an option of this name: `log`, or `teacher`."""
        return option in {f.name for f in dataclasses.fields(self.registry.get("transfer", strategy).config)}

    def coding(self, teacher: CodingConfig, strategies: Iterable[str]) -> Coding | None:
        """The codes that a teacher leaves for students that learn by these strategies; None: none."""
        blocks = [self.registry.get("transfer", name).cls for name in strategies]
        return teacher.coding(any(getattr(block, "reads_codes", False) for block in blocks))

    def key(self, run: RunConfig, *learned: Any) -> str:
        """What the result of a run depends on: its config, its data, and what else is named. No path is part of it."""
        train = dataclasses.replace(run.train, start_from=None)
        config = to_mapping(dataclasses.replace(run, transfer=None, runs="", train=train))
        text = json.dumps([config, self._fingerprint(run), *learned], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def trained(self, run: RunConfig, folder: Path, title: str) -> RunFolder:
        """The finished run in `folder`; it is trained, or gone on with, if it is not there."""
        done = sorted(folder.glob(f"*/{METRICS}"))
        if done:
            self.progress.print(f"{title}: is there")
            return RunFolder.open(done[0].parent)
        self.progress.print(f"{title}: training")
        started = next(iter(sorted(folder.glob(f"*/{CONFIG}"))), None)
        train(dataclasses.replace(run, runs=str(folder)), self.registry, started and started.parent, self.progress)
        return RunFolder.open(sorted(folder.glob(f"*/{METRICS}"))[0].parent)

    def _fingerprint(self, run: RunConfig) -> str:
        name = json.dumps([run.data.name, run.data.root, run.data.build_options], sort_keys=True, default=str)
        if name not in self._fingerprints:
            self._fingerprints[name] = open_dataset(run, self.registry, self.progress).fingerprint
        return self._fingerprints[name]


@contextlib.contextmanager
def naming(name: str) -> Iterator[None]:
    """Errors inside say which model they are about."""
    try:
        yield
    except GemkitError as error:
        where = f"{name}, {error.where}" if error.where else name
        raise GemkitError(error.what, where=where, allowed=error.allowed, fix=error.fix) from error
