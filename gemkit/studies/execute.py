"""Runs a study: each run a process of its own, several at once; what has finished is not run again."""

from __future__ import annotations

import dataclasses
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from time import sleep

from gemkit.runs.files import write_text
from gemkit.runs.folder import RunFolder
from gemkit.runs.lock import is_locked
from gemkit.runs.stopping import StopRequest
from gemkit.runs.wording import key_metrics
from gemkit.studies.display import Display
from gemkit.studies.folder import ERROR, OUTPUT, StudyFolder
from gemkit.studies.plan import Plan, Variant

GEMKIT = (sys.executable, "-P", "-m", "gemkit.cli.main")
"""Starts the command line. -P: a folder called gemkit where the user happens to be is not what is meant."""

POLL_S = 0.2
ERROR_LINES = 12


@dataclasses.dataclass(frozen=True, eq=False)
class Job:
    """One run of a study."""

    variant: Variant
    seed: int

    def __str__(self) -> str:
        return f"{self.variant.name}, seed {self.seed}"


def jobs_of(plan: Plan) -> list[Job]:
    """All runs. Seeds outermost: a study that is stopped half-way has as many of each variant."""
    return [Job(variant, seed) for seed in plan.seeds for variant in plan.variants]


def unfinished(plan: Plan, folder: StudyFolder) -> list[Job]:
    """The runs that are left."""
    return [job for job in jobs_of(plan) if folder.finished(job.variant, job.seed) is None]


def train_words(plan: Plan, folder: StudyFolder, job: Job, threads: int | None) -> list[str]:
    """The command that does a run, or goes on with it: the words after ``gemkit``.

    Args:
        threads: CPU threads of a run whose words do not say how many; None: PyTorch's choice.
    """
    started = folder.started(job.variant, job.seed)
    if started is not None:
        return ["train", "--resume", str(started)]
    dirs = [word for folder in plan.config_dirs for word in ("--config-dir", str(folder))]
    own = [f"seed={job.seed}", f"runs={quoted(str(folder.runs(job.variant, job.seed)))}"]
    own += _unless_given(job.variant, "train.save_predictions", "true")
    own += _unless_given(job.variant, "train.num_threads", str(threads)) if threads else []
    return ["train", *dirs, *job.variant.overrides, *own]


def quoted(text: str) -> str:
    """A text as the value of an override, whatever characters it holds."""
    if all(c.isalnum() or c in "/-_." for c in text):
        return text
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'"{escaped}"'


class Executor:
    """Runs what is left of a study.

    Args:
        jobs: Runs at once.
        threads: CPU threads of each run that does not say how many itself.
    """

    def __init__(self, plan: Plan, folder: StudyFolder, jobs: int, threads: int, display: Display) -> None:
        self.plan, self.folder, self.jobs, self.threads, self.display = plan, folder, jobs, threads, display
        self.stop = StopRequest()
        self._running: dict[Job, subprocess.Popen[bytes]] = {}
        self._stopping = False

    def run(self) -> None:
        """Runs all that has not finished. A run that fails does not stop the others.

        After SIGINT or SIGTERM (`self.stop`) no run is started, and those that are under way write a checkpoint.
        """
        waiting = unfinished(self.plan, self.folder)
        with self.stop, self.display:
            try:
                while self._running or (waiting and not self.stop):
                    self._start_some(waiting)
                    self._look_at_running()
                    self.display.refresh()
                    if self.stop and not self._stopping:
                        self._stopping = True
                        self.display.say("stopping: what is under way writes a checkpoint")
                        self._signal_all()
                    sleep(POLL_S)
            finally:
                self._signal_all()  # nothing is left, unless a second Ctrl-C came

    def _start_some(self, waiting: list[Job]) -> None:
        """Starts runs while there is room. One that another process works on is left to it, and looked at again."""
        if self.stop:
            return
        for job in list(waiting):
            if len(self._running) >= self.jobs:
                return
            if run := self.folder.finished(job.variant, job.seed):
                waiting.remove(job)
                self.display.finished(job, _metrics(run))
            elif not ((started := self.folder.started(job.variant, job.seed)) and is_locked(started)):
                waiting.remove(job)
                self._start(job)

    def _start(self, job: Job) -> None:
        words = train_words(self.plan, self.folder, job, self.threads)
        home = self.folder.runs(job.variant, job.seed)
        home.mkdir(parents=True, exist_ok=True)
        (home / ERROR).unlink(missing_ok=True)
        environment = os.environ | {"OMP_NUM_THREADS": str(job.variant.run.train.num_threads or self.threads)}
        with (home / OUTPUT).open("wb") as output:
            self._running[job] = subprocess.Popen(
                [*GEMKIT, *words],
                env=environment,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                # In a group of its own: Ctrl-C reaches the study alone, which then asks each run once.
                process_group=0,
            )
        self.display.started(job, home / OUTPUT)

    def _look_at_running(self) -> None:
        for job, process in list(self._running.items()):
            code = process.poll()
            if code is None:
                continue
            del self._running[job]
            if code == 0 and (run := self.folder.finished(job.variant, job.seed)):
                self.display.finished(job, _metrics(run))
            elif self._stopping and code in _stopped_codes():
                self.display.stopped(job)
            else:
                home = self.folder.runs(job.variant, job.seed)
                error = error_in(home / OUTPUT, code)
                write_text(home / ERROR, error + "\n")
                self.display.failed(job, error)

    def _signal_all(self) -> None:
        for process in self._running.values():
            process.send_signal(signal.SIGTERM)


def error_in(output: Path, code: int) -> str:
    """The last words of a run that failed: its error, or else what it printed last.

    Args:
        code: Its exit code; below 0, the number of the signal that ended it.
    """
    lines = output.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()
    errors = [i for i, line in enumerate(lines) if line.startswith("error: ")]
    last = lines[errors[-1] :] if errors else lines[-ERROR_LINES:]
    ending = f"ended by {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
    return "\n".join([*last[:ERROR_LINES], f"({ending})"])


def _metrics(run: Path) -> str:
    """The test metrics of a finished run's first task."""
    task, metrics = next(iter(RunFolder(run).metrics()["test"].items()))
    return f"{task} {key_metrics(metrics)}"


def _stopped_codes() -> Sequence[int]:
    """Exit codes of a run that was asked to stop, by itself or before it could listen."""
    return [code for number in (signal.SIGINT, signal.SIGTERM) for code in (128 + number, -number)]


def _unless_given(variant: Variant, key: str, value: str) -> Iterator[str]:
    """``key=value``, unless the variant's words say something about the key."""
    if not any(word.lstrip("+").startswith(f"{key}=") for word in variant.overrides):
        yield f"{key}={value}"
