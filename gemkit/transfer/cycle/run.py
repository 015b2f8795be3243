"""A cycle as a chain of runs, each of which starts from the one before.

    OUT/
        gem/seed1-day07-3f2ac09b1d/      the GEM after day 6: it has seen days 0 to 6
        feed/seed1-day08-9c01.../        the student that serves day 8; metrics.json has its metrics of that day
        log-32x8-seed1-77b0c1d2e3/       what the GEM said, day by day, here with codes of 32 numbers of 8 bits
        report.json  report.md  days.svg

The order of a day d: students serve it (with what they learned until d-1), then its labels are there, as far as they
are known when it ends: the GEM as it was before answers the day, students learn from labels and answers, and the GEM
goes on. So every prediction is made before anything was trained on its day: progressive validation.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, NamedTuple

from gemkit.runs.folder import RunFolder
from gemkit.transfer.codes import Coding
from gemkit.transfer.coding import log_name
from gemkit.transfer.cycle.config import GEM, CycleConfig
from gemkit.transfer.graph.config import strategies
from gemkit.transfer.teach import Lesson, teach
from gemkit.transfer.units import Units, naming


class Served(NamedTuple):
    """A model that has predicted a day which it has not seen."""

    model: str
    seed: int
    day: int
    run: RunFolder


class _State(NamedTuple):
    """A model as it is at the moment."""

    key: str
    run: RunFolder


class CycleRunner:
    """Goes through the days; what is there already is not done again."""

    def __init__(self, cycle: CycleConfig, out: Path, units: Units) -> None:
        self.cycle, self.out, self.units = cycle, out, units

    def check(self) -> None:
        """Composes every model, so that a word that is wrong is found before any training.

        Raises:
            GemkitError: A word or a strategy is not what it should be; the model is named.
        """
        with naming(GEM):
            self.units.compose(self._words(GEM, 0, 1 + self.cycle.teacher.wait_days), 1, {})
        for name, student in self.cycle.students.items():
            with naming(name):
                self.units.compose(self._words(name, 0, 1 + student.wait_days), 1, self._parts(name, "log"))

    @property
    def coding(self) -> Coding | None:
        """The codes that the GEM leaves; None: none."""
        learned = [part["name"] for name in self.cycle.students for part in self._parts(name, "log").values()]
        return self.units.coding(self.cycle.teacher, learned)

    def run(self) -> list[Served]:
        """All days of all seeds.

        Raises:
            GemkitError: A run fails; those before it stay.
        """
        self.check()
        self.out.mkdir(parents=True, exist_ok=True)
        return [served for seed in range(1, self.cycle.seeds + 1) for served in self._one_seed(seed)]

    def _one_seed(self, seed: int) -> list[Served]:
        cycle, served = self.cycle, []
        with naming(GEM):
            gem = self._step(GEM, seed, None, 0, cycle.teacher_days + cycle.teacher.wait_days)
        log = self.out / f"{log_name(self.coding)}-seed{seed}-{gem.key[:10]}"
        students: dict[str, _State] = {}
        answered = cycle.teacher_days
        learned = dict.fromkeys([GEM, *cycle.students], cycle.teacher_days)  # the day until which each was trained
        for day in range(cycle.first_day, cycle.first_day + cycle.days):
            with naming(GEM):
                self._answer(gem, log, answered, day)
            answered = day
            for name, student in cycle.students.items():
                with naming(name):
                    teacher = gem if student.learns is not None else None
                    students[name] = self._step(name, seed, students.get(name), learned[name], day, log, teacher)
                served.append(Served(name, seed, day, students[name].run))
                learned[name] = day - student.wait_days
            if (day - cycle.first_day) % cycle.teacher.every == 0:
                with naming(GEM):
                    gem = self._step(GEM, seed, gem, learned[GEM], day)
                learned[GEM] = day - cycle.teacher.wait_days
                served.append(Served(GEM, seed, day, gem.run))
        return served

    def _step(
        self,
        name: str,
        seed: int,
        before: _State | None,
        since: int,
        day: int,
        log: Path | None = None,
        teacher: _State | None = None,
    ) -> _State:
        """A model trained on the days from `since` that are old enough on day `day`, which it then predicts."""
        run = self.units.compose(self._words(name, since, day), seed, self._parts(name, str(log)))
        learned = [teacher.key, self.coding, strategies(self.cycle.students[name].learns, "")] if teacher else None
        key = self.units.key(run, before.key if before else None, learned)
        if before is not None:
            run = dataclasses.replace(run, train=dataclasses.replace(run.train, start_from=str(before.run.path)))
        folder = self.out / name / f"seed{seed}-day{day:02d}-{key[:10]}"
        return _State(key, self.units.trained(run, folder, f"{name}, seed {seed}, for day {day}"))

    def _answer(self, gem: _State, log: Path, since: int, until: int) -> None:
        """The GEM answers days that it has not seen; those that are answered stay."""
        lesson = Lesson(days=(float(since), float(until)), coding=self.coding)
        teach(gem.run.path, log, lesson, self.units.registry, self.units.progress)

    def _words(self, name: str, since: int, day: int) -> list[str]:
        """A model's words: trained on some days, tested on `day`. Nothing is held out for choosing."""
        model = self.cycle.teacher if name == GEM else self.cycle.students[name]
        until = day - model.wait_days
        days = {"train": (since, until), "valid": (until - 1, until), "test": (day, day + 1)}
        labels = [f"data.labels_as_of={day}"] if self.cycle.labels == "known" else []
        return [
            *self.cycle.base,
            *model.words,
            *(f"data.{split}_days=[{a},{b}]" for split, (a, b) in days.items()),
            *labels,
        ]

    def _parts(self, name: str, log: str) -> dict[str, Any]:
        """The strategies of a student, which read this log."""
        learns = self.cycle.students[name].learns if name in self.cycle.students else None
        parts: dict[str, Any] = {}
        for strategy, options in (strategies(learns, "learns") if learns else {}).items():
            parts[strategy] = {"name": strategy, **options}
            if self.units.reads(parts[strategy]["name"], "log"):
                parts[strategy].setdefault("log", log)
        return parts
