"""Opening a run's folder: a new one, one to go on with, or the one of processes that died and were started again."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path
from typing import NamedTuple

from gemkit.config.build import to_yaml
from gemkit.config.run import RunConfig
from gemkit.interfaces import ParallelBackend
from gemkit.registry import Registry
from gemkit.runs.files import write_text
from gemkit.runs.folder import RunFolder
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
    resume = resume or _before_restart(run)
    if resume is None:
        owners = [registry.plugin_of(kind, config.name) for kind, config in run.components()]
        plugins = {plugin: version for plugin, _, version in owners}
        folder = RunFolder.create(Path(run.runs), slug(run), to_yaml(run), command, plugins)
    else:
        folder = RunFolder.open(resume)
    resources.enter_context(locked(folder.path))
    resources.enter_context(logged(folder.path, progress))
    remove_leftovers(folder.path)
    _remember_for_restart(run, folder)
    backend.broadcast((str(folder.path), resume is not None))
    return Opened(folder, resume is not None)


def _before_restart(run: RunConfig) -> Path | None:
    """The folder of the processes that torchrun has replaced by these, if it has (`--max-restarts`)."""
    path = _pointer(run)
    if path is None or os.environ.get("TORCHELASTIC_RESTART_COUNT", "0") == "0" or not path.exists():
        return None
    return Path(json.loads(path.read_text(encoding="utf-8"))["folder"])


def _remember_for_restart(run: RunConfig, folder: RunFolder) -> None:
    path = _pointer(run)
    if path is not None:
        write_text(path, json.dumps({"folder": str(folder.path)}) + "\n")


def _pointer(run: RunConfig) -> Path | None:
    """Where a launch of torchrun notes its folder: its agent, our parent, outlives the processes that it restarts."""
    launch = os.environ.get("TORCHELASTIC_RUN_ID")
    name = "".join(c if c.isalnum() else "-" for c in f"{launch}-{os.getppid()}")
    return None if launch is None else Path(run.runs) / f".torchrun-{name}.json"
