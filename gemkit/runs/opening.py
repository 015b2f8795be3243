"""Opening a run's folder: a new one, one to go on with, or the one of processes that died and were started again."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import os
from pathlib import Path
from typing import Any, NamedTuple

from gemkit.config.build import to_yaml
from gemkit.config.run import RunConfig
from gemkit.interfaces import ParallelBackend
from gemkit.registry import Registry
from gemkit.runs.folder import CONFIG, METRICS, RunFolder
from gemkit.runs.keeping import remove_leftovers
from gemkit.runs.lock import locked
from gemkit.runs.log import logged
from gemkit.runs.progress import Progress
from gemkit.runs.wording import slug


class Opened(NamedTuple):
    """A run's folder, and whether it has been trained in before."""

    folder: RunFolder
    resumed: bool


def open_folder(
    run: RunConfig,
    registry: Registry,
    backend: ParallelBackend,
    resume: Path | None,
    command: list[str],
    progress: Progress,
    resources: contextlib.ExitStack,
) -> Opened:
    """The folder of this run in every process; the first one holds its lock and writes its log.

    Args:
        resume: A folder to go on with.
        command: What reproduces the run, for a new folder.
        resources: Close the lock and the log.

    Raises:
        GemkitError: It is not a run folder, is in use, or cannot be written.
    """
    if backend.rank:
        path, resumed = backend.broadcast(None)
        return Opened(RunFolder(Path(path)), resumed)
    launch = _Launch(run)
    resume = resume or launch.folder() or (_interrupted(run) if run.train.autoresume else None)
    if resume is None:
        owners = [registry.plugin_of(kind, config.name) for kind, config in run.components()]
        plugins = {plugin: version for plugin, _, version in owners}
        folder = RunFolder.create(Path(run.runs), slug(run), to_yaml(run), command, plugins)
    else:
        folder = RunFolder.open(resume)
    resources.enter_context(locked(folder.path))
    resources.enter_context(logged(folder.path, progress))
    remove_leftovers(folder.path)
    launch.remember(folder)
    backend.broadcast((str(folder.path), resume is not None))
    return Opened(folder, resume is not None)


def _interrupted(run: RunConfig) -> Path | None:
    """The newest run of this config, if it has not come to its end."""
    config = to_yaml(run)
    for path in sorted(Path(run.runs).glob("[!.]*"), reverse=True):  # names begin with the time
        stored = path / CONFIG
        if stored.is_file() and stored.read_text(encoding="utf-8") == config:
            return None if (path / METRICS).exists() else path
    return None


class _Launch:
    """What the processes of one launch of torchrun share, on all machines: its agents' store.

    The store outlives the processes that `--max-restarts` replaces. Which of them were replaced nobody says reliably:
    where a process of another machine died, those of this one are started again without being counted as restarted.
    """

    def __init__(self, run: RunConfig) -> None:
        self.store = _agents_store()
        # A process may train several runs one after the other, and so does the one that takes its place.
        self.key = f"{next(_OPENED)}/{hashlib.sha256(to_yaml(run).encode()).hexdigest()}"

    def folder(self) -> Path | None:
        """Where processes that these have replaced were training this run."""
        if self.store is None or not self.store.check([self.key]):
            return None
        return Path(self.store.get(self.key).decode())

    def remember(self, folder: RunFolder) -> None:
        if self.store is not None:
            self.store.set(self.key, str(folder.path))


_OPENED = itertools.count()
"""Runs that this process has opened."""


def _agents_store() -> Any:
    """None outside of torchrun."""
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return None
    from torch.distributed import PrefixStore, TCPStore  # type: ignore[attr-defined]

    address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
    return PrefixStore("gemkit/runs", TCPStore(address, port, is_master=False))
