"""What a cycle is: a teacher, its students, and the days, as a YAML file."""

from __future__ import annotations

import dataclasses
from typing import Any

from gemkit.config.fields import Config, option
from gemkit.errors import GemkitError
from gemkit.transfer.coding import CodingConfig
from gemkit.transfer.graph.config import check_name, strategies

GEM = "gem"
"""How files and reports call the teacher."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class TeacherConfig(CodingConfig):
    """The GEM of a cycle."""

    words: tuple[str, ...] = option((), "Words of its runs, after the cycle's `base`.")
    every: int = option(1, "Days between its updates; each then takes all days since the last.", ge=1)
    wait_days: int = option(0, "Days that pass before a day is trained on: labels that come late are there then.", ge=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class StudentConfig(Config):
    """A vertical model of a cycle."""

    words: tuple[str, ...] = option((), "Words of its runs, after the cycle's `base`.")
    learns: Any = option(
        None, "What it learns from the GEM: a strategy, a list, or a mapping to options; null: nothing, labels alone."
    )
    wait_days: int = option(0, "Days that pass before a day is trained on: labels that come late are there then.", ge=0)

    def check(self) -> None:
        if self.learns is not None:
            strategies(self.learns, "learns")


@dataclasses.dataclass(frozen=True, kw_only=True)
class CycleConfig(Config):
    """A teacher and its students, day by day."""

    base: tuple[str, ...] = option((), "Words of every run.")
    teacher: TeacherConfig = option(TeacherConfig(), "The GEM.")
    students: dict[str, StudentConfig] = option({}, "Name -> vertical model.")
    teacher_days: int = option(7, "The GEM's first training: days 0 until this one.", ge=1)
    first_day: int = option(
        8, "First day that students serve. Their first training: the days since the GEM's, which it answers.", ge=2
    )
    days: int = option(7, "Days that they serve.", ge=1, le=3650)
    seeds: int = option(1, "Seeds 1, 2, ...: each goes through all days.", ge=1, le=100)
    labels: str = option(
        "known",
        "Models are trained on labels as they were known on that day, a conversion that comes later counting as none; "
        "or on final ones. A day is judged by its final labels.",
        choices=("known", "final"),
    )
    task: str | None = option(None, "Task that the report is about; null: the first.")

    def check(self) -> None:
        if not self.students:
            raise GemkitError("the cycle has no students", where="students", fix="students: {feed: {learns: distill}}")
        for name in self.students:
            check_name(name, "students")
            if name == GEM:
                raise GemkitError(f"a student is called {GEM}, as the teacher is", where="students", fix="rename it")
        if self.first_day <= self.teacher_days:
            raise GemkitError(
                f"first_day = {self.first_day} leaves students no day that the GEM has not seen",
                where="first_day",
                allowed=f"more than teacher_days = {self.teacher_days}",
            )
        waits = {"teacher": self.teacher.wait_days}
        waits |= {f"students.{name}": student.wait_days for name, student in self.students.items()}
        for where, wait_days in waits.items():
            if self.first_day - wait_days <= self.teacher_days:
                raise GemkitError(
                    f"after {wait_days} days of waiting no day is left to train on before day {self.first_day}",
                    where=f"{where}.wait_days",
                    allowed=f"less than first_day - teacher_days = {self.first_day - self.teacher_days}",
                )
