"""One study from its definition to its report, in the order in which it happens."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console

from gemkit.config.run import RunConfig
from gemkit.cost import model_cost
from gemkit.data import storage
from gemkit.data.dataset import Dataset
from gemkit.data.prepare import dataset_folder, prepare
from gemkit.data.selection import Selection
from gemkit.errors import GemkitError
from gemkit.registry import Registry
from gemkit.runs.environment import usable_cores
from gemkit.runs.lock import locked
from gemkit.runs.progress import Progress
from gemkit.runs.stopping import Stopped
from gemkit.studies.collect import collect, task_of
from gemkit.studies.display import Display
from gemkit.studies.execute import Executor, jobs_of, train_words, unfinished
from gemkit.studies.folder import StudyFolder
from gemkit.studies.match import matched
from gemkit.studies.plan import Plan
from gemkit.studies.report import print_summary, write_reports


class Study:
    """A study in its folder.

    Args:
        jobs: Runs at once; None: a core each, or one if there is a GPU.
        command: What started it, for the report.
    """

    subcommand = "ablate"

    def __init__(
        self, plan: Plan, registry: Registry, folder: StudyFolder, jobs: int | None = None, command: str = ""
    ) -> None:
        self.plan, self.registry, self.folder, self.command = plan, registry, folder, command
        self.given_jobs = jobs

    def commands(self) -> list[str]:
        """A line for each run that is left: the command that does it, for any launcher.

        Raises:
            GemkitError: The folder holds another study.
        """
        self._prepare(Progress(console=Console(stderr=True)))
        self.folder.define(self.plan, self.command)
        threads = self._threads(self.given_jobs) if self.given_jobs else None
        left = unfinished(self.plan, self.folder)
        return [shlex.join(["gemkit", *train_words(self.plan, self.folder, job, threads)]) for job in left]

    def execute(self) -> int:
        """Does what is left, and reports; returns how many runs have failed.

        Raises:
            GemkitError: The folder holds another study, or another process works on it.
            Stopped: SIGINT or SIGTERM came; what has finished is reported.
        """
        self._prepare(Progress())
        jobs, total = self.given_jobs or default_jobs(), len(jobs_of(self.plan))
        with locked(self.folder.path):
            self.folder.define(self.plan, self.command)
            display = Display(total, total - len(unfinished(self.plan, self.folder)), jobs)
            executor = Executor(self.plan, self.folder, jobs, self._threads(jobs), display)
            executor.run()
            failed = self._report()
        if (number := executor.stop.signal_number) is not None:
            go_on = f"gemkit {self.subcommand} --out {shlex.quote(str(self.folder.path))}"
            raise Stopped(f"stopped; runs that have begun go on from a checkpoint\n  go on:   {go_on}", number)
        return failed

    def report(self) -> int:
        """Reports what has finished, and runs nothing; returns how many runs have failed.

        Raises:
            GemkitError: The folder holds no study, or another one.
        """
        if self.folder.definition() is None:
            raise GemkitError(
                f"{self.folder.path} holds no study", where="--report", fix="name its folder: --out FOLDER"
            )
        stored = self.folder.matches(self.plan)
        if self.plan.config.match and all(v.name in stored for v in self.plan.variants):
            self.plan = matched(self.plan, self.registry, lambda run: 1.0, stored)
        self.folder.check(self.plan)
        return self._report()

    def _report(self) -> int:
        """Writes the reports of what has finished; returns how many runs have failed."""
        progress = Progress()
        if len(unfinished(self.plan, self.folder)) == len(jobs_of(self.plan)):
            progress.print("nothing to report: no run has finished")
        else:
            self._write(progress)
        return sum(self.folder.error(job.variant, job.seed) is not None for job in jobs_of(self.plan))

    def _write(self, progress: Progress) -> None:
        """Makes reports of what the runs have left; at least one has finished."""
        with progress, progress.task("resample", total=self.plan.config.resamples, unit="resamples") as bar:
            result = collect(self.plan, self.folder, self.command, bar.advance)
        print_summary(result, write_reports(result, self.folder.path), progress.console)

    def _prepare(self, progress: Progress) -> None:
        """Fetches and builds the data, and matches costs.

        Raises:
            GemkitError: The data cannot be had, or lacks what the study asks for; or a variant cannot be matched.
        """
        dataset = self._datasets(progress)
        task_of(self.plan, dataset.schema.task_names)
        if self.plan.config.resample == "groups" and dataset.schema.group is None:
            raise GemkitError("the data set names no group", where="--resample", fix="--resample examples")
        if (what := self.plan.config.match) is not None:

            def cost(run: RunConfig) -> float:
                found = model_cost(run, self.registry, dataset)
                return found.dense_params if what == "params" else found.flops_per_example

            stored = self.folder.matches(self.plan)
            with progress.task("match", total=len(self.plan.variants) - 1, unit="variants") as bar:
                self.plan = matched(self.plan, self.registry, cost, stored, bar.advance)
        self.folder.create()

    def _datasets(self, progress: Progress) -> Dataset:
        """The base's data set; all that the variants read are there afterwards.

        Raises:
            GemkitError: A variant is tested on other examples than the base, or wants another data set in its folder.
        """
        opened: dict[Path, Dataset] = {}
        options: dict[Path, dict[str, Any]] = {}
        ids: np.ndarray | None = None
        base: Dataset | None = None
        for variant in self.plan.variants:
            data = variant.run.data
            folder = dataset_folder(data)
            if options.setdefault(folder, data.build_options) != data.build_options:
                raise GemkitError(
                    f"variant '{variant.name}' would build the data set of others anew, with other options",
                    where=str(folder),
                    fix="give it a folder of its own, with a variant of two words: data.root=... beside the option",
                )
            if folder not in opened:
                with progress.callback("bytes") as fetching, progress.callback("steps") as building:
                    spec = self.registry.get("data", data.name)
                    opened[folder] = prepare(spec, data, fetching, building, progress.print)
            dataset = opened[folder].selected(Selection.of(data))
            base = base or dataset
            own = np.sort(dataset.columns[storage.EXAMPLE_ID][dataset.split("test")])
            if ids is not None and not np.array_equal(ids, own):
                raise GemkitError(
                    f"variant '{variant.name}' is tested on other examples than the base",
                    where=str(dataset.folder),
                    fix="toggle options of the data set that leave its test split as it is",
                )
            ids = own
        assert base is not None  # a plan has variants
        return base

    def _threads(self, jobs: int) -> int:
        return max(1, (usable_cores() or 1) // jobs)


def default_jobs() -> int:
    """Runs at once where nobody says how many."""
    import torch

    return 1 if torch.cuda.is_available() else usable_cores() or 1
