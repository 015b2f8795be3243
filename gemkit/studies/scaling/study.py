"""One ladder from its runs to its report."""

from __future__ import annotations

from gemkit.config.ladder import FROM_DATA
from gemkit.data.dataset import Dataset
from gemkit.registry import Registry
from gemkit.runs.progress import Progress
from gemkit.studies.ablate import Study
from gemkit.studies.collect import task_of
from gemkit.studies.scaling.collect import collect_ladder, no_truth
from gemkit.studies.scaling.plan import Ladder, LadderFolder
from gemkit.studies.scaling.report import print_summary, write_reports


class ScalingStudy(Study):
    """A ladder in its folder: runs, stops and goes on like any study, and has a report of its own."""

    subcommand = "scale"

    def __init__(
        self, ladder: Ladder, registry: Registry, folder: LadderFolder, jobs: int | None = None, command: str = ""
    ) -> None:
        super().__init__(ladder.plan, registry, folder, jobs, command)
        self.ladder = ladder

    def _write(self, progress: Progress) -> None:
        result = collect_ladder(self.ladder, self.folder, self.command)
        print_summary(result, write_reports(result, self.folder.path), progress.console)

    def _datasets(self, progress: Progress) -> Dataset:
        """
        Raises:
            GemkitError: As for any study; or the floor is to be the data set's, which does not know it.
        """
        dataset = super()._datasets(progress)
        if self.ladder.config.floor == FROM_DATA:
            name = task_of(self.plan, dataset.schema.task_names)
            if next(task for task in dataset.schema.tasks if task.name == name).truth is None:
                raise no_truth(name)
        return dataset
