"""The cycle: every day is predicted before it is trained on, and a kill at any moment changes nothing."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from gemkit.cli.main import main
from gemkit.config.build import load_run_config
from gemkit.config.fields import from_mapping
from gemkit.config.run import RunConfig
from gemkit.data import storage
from gemkit.errors import GemkitError
from gemkit.registry import load_registry
from gemkit.runs import checkpoint
from gemkit.session import load_run, open_dataset
from gemkit.testing.runs import silent, table_config, tiny_run
from gemkit.train import Training
from gemkit.transfer import teach as teaching
from gemkit.transfer import units
from gemkit.transfer.cycle.config import CycleConfig
from gemkit.transfer.cycle.report import markdown, report, write_report
from gemkit.transfer.cycle.run import CycleRunner, Served
from gemkit.transfer.log import Part, TeacherLog

DATA = {"num_examples": 900, "num_events": 100}
BASE = ["data=tiny", "size.dim=8", "size.num_blocks=1", "size.num_tokens=4", "interaction.rank=4"]
BASE += ["sequence=none", "cross=none", "train.batch_size=32", "parallel.accelerator=cpu", "train.log_every=1"]
CYCLE: dict[str, Any] = {
    "base": BASE,
    "teacher": {"words": ["interaction.hidden=[16]"], "codes": 3, "every": 2},
    "students": {
        "alone": {},
        "feed": {"words": ["data.only_tasks=[click]"], "learns": ["student_adapter", "representation"]},
    },
    "teacher_days": 4,
    "first_day": 6,
    "days": 3,
    "task": "click",
}


@pytest.fixture(scope="module")
def configs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cycle")
    (folder / "configs" / "data").mkdir(parents=True)
    (folder / "configs" / "data" / "tiny.yaml").write_text(yaml.safe_dump(table_config(folder / "data", **DATA)))
    open_dataset(tiny_run(folder / "data", **DATA), load_registry(), silent())
    return folder / "configs"


def runner_of(configs: Path, out: Path, **changes: Any) -> CycleRunner:
    cycle: CycleConfig = from_mapping(CycleConfig, CYCLE | changes)
    return CycleRunner(cycle, out, units.Units(load_registry(), (), [configs], silent()))


@pytest.fixture(scope="module")
def whole(configs: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[list[Served], Path]:
    """An uninterrupted cycle."""
    out = tmp_path_factory.mktemp("whole")
    return runner_of(configs, out).run(), out


def test_every_model_serves_every_day_and_goes_on_from_the_day_before(
    configs: Path, whole: tuple[list[Served], Path]
) -> None:
    served, out = whole
    days = {name: [s.day for s in served if s.model == name] for name in ("alone", "feed", "gem")}
    assert days == {"alone": [6, 7, 8], "feed": [6, 7, 8], "gem": [6, 8]}
    data = open_dataset(tiny_run(configs.parent / "data", **DATA), load_registry(), silent())
    times = np.asarray(data.columns[storage.TIMESTAMP])
    by_day = np.floor(data.days(np.arange(len(times)))).astype(int)
    for one in served:
        loaded = load_run(one.run.path, load_registry())
        before = times[by_day < one.day].max()
        assert loaded.snapshot_s == before, "a model has seen what it predicts, or has missed a day"
        assert one.run.metrics()["test"]["click"]["examples"] == (by_day == one.day).sum()
    feed = [s.run for s in served if s.model == "feed"]
    assert load_run(feed[1].path, load_registry()).model.run.train.start_from == str(feed[0].path)
    (folder,) = out.glob("log-*")
    log = TeacherLog.open(folder)
    rows, snapshot = log.rows()
    answered = np.isin(np.asarray(data.columns[storage.EXAMPLE_ID]), rows.example_id)
    assert answered.tolist() == ((by_day >= 4) & (by_day < 8)).tolist()
    assert (rows.timestamp > snapshot).all() and len({p.checkpoint for p in log.parts}) == 2
    last = [r for r in feed[-1].rows() if r["split"] == "train"][-1]
    assert last["transfer/answered"] == 1


def test_a_model_can_wait_until_labels_have_come(configs: Path, tmp_path: Path) -> None:
    """It serves every day, is trained once on each day, `wait_days` later, and knows the labels of that morning."""
    students = {"alone": {"wait_days": 1}, "feed": CYCLE["students"]["feed"] | {"wait_days": 1}}
    teacher = CYCLE["teacher"] | {"wait_days": 1, "every": 1}
    served = runner_of(configs, tmp_path, students=students, teacher=teacher).run()
    for name in ("alone", "feed", "gem"):
        runs = [(s.day, load_run(s.run.path, load_registry()).model.run.data) for s in served if s.model == name]
        assert [day for day, _ in runs] == [6, 7, 8]
        assert [data.train_days for _, data in runs] == [(4, 5), (5, 6), (6, 7)]
        assert all((data.labels_as_of, data.test_days) == (day, (day, day + 1)) for day, data in runs)
    (folder,) = tmp_path.glob("log-*")
    rows, snapshot = TeacherLog.open(folder).rows()
    assert (rows.timestamp > snapshot).all()
    with pytest.raises(GemkitError, match="after 2 days of waiting no day is left"):
        runner_of(configs, tmp_path, students={"alone": {"wait_days": 2}})


def test_a_refreshed_teacher_goes_on_in_its_code_space(configs: Path, whole: tuple[list[Served], Path]) -> None:
    """Its readouts moved: what it writes is encoded by a map of its own, to the codes that the first one left."""
    (folder,) = whole[1].glob("log-*")
    log = TeacherLog.open(folder)
    assert log.space is not None
    first, last = log.parts[0], log.parts[-1]
    refreshed = next(s.run for s in whole[0] if s.model == "gem")
    assert refreshed.path.name == last.teacher != first.teacher
    loaded = load_run(refreshed.path, load_registry())
    data = loaded.open_dataset(load_registry(), silent())
    by_id = {int(i): row for row, i in enumerate(np.asarray(data.columns[storage.EXAMPLE_ID]))}

    def readouts(part: Part) -> np.ndarray:
        rows = np.array([by_id[int(i)] for i in log.as_asked([part]).example_id])
        return teaching._readouts(loaded, data, rows, silent())

    others = [part for part in log.parts if part.checkpoint == first.checkpoint]
    space = teaching._anchored(loaded, data, log, others, silent())
    written = log.as_asked([last]).code
    assert (written != log.space.pack(log.space.encode(readouts(last)))).any(), "encoded as the first teacher's"
    np.testing.assert_array_equal(written, space.pack(space.encode(readouts(last))))
    wanted = log.space.unpack(log.as_asked([first]).code)
    own, kept = (np.square(s.encode(readouts(first)) - wanted).mean() for s in (log.space, space))
    assert kept < own, "the map is no nearer to the old codes than none"


def numbers(served: list[Served]) -> list[tuple[str, int, Any]]:
    return [(s.model, s.day, s.run.metrics()["test"]) for s in served]


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_random_points_it_ends_like_an_uninterrupted_one(
    configs: Path, whole: tuple[list[Served], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    """Killed in a step, before or after a checkpoint, before or after an answer: each time at another moment."""
    rng = np.random.default_rng(seed)
    step, append, train = Training.step, TeacherLog.append, units.train
    left = [0]

    def killing(function: Any) -> Any:
        def wrapped(*args: Any, **options: Any) -> Any:
            left[0] -= 1
            if left[0] == 0 and rng.random() < 0.5:
                raise KeyboardInterrupt
            result = function(*args, **options)
            if left[0] == 0:
                raise KeyboardInterrupt
            return result

        return wrapped

    kills = 0
    with monkeypatch.context() as patch:
        patch.setattr(Training, "step", killing(step))
        patch.setattr(TeacherLog, "append", killing(append))
        patch.setattr(units, "train", killing(train))
        for _ in range(4):
            left[0] = int(rng.integers(1, 7))
            try:
                runner_of(configs, tmp_path).run()
            except KeyboardInterrupt:
                kills += 1
    found = runner_of(configs, tmp_path).run()
    assert kills >= 2
    assert numbers(found) == numbers(whole[0])
    one, two = (checkpoint.load(s[-2].run.checkpoints / "last.safetensors")[0] for s in (found, whole[0]))
    assert all((one[name] == two[name]).all() for name in one if not name.startswith("rng"))


def test_nothing_is_done_twice(
    configs: Path, whole: tuple[list[Served], Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused(*args: Any) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(units, "train", refused)
    assert numbers(runner_of(configs, whole[1]).run()) == numbers(whole[0])
    with pytest.raises(AssertionError, match="trained again"):  # a change does reach its model
        runner_of(configs, whole[1], students={**CYCLE["students"], "alone": {"words": ["optimizer.lr=0.01"]}}).run()


def test_other_codes_are_another_log_for_other_students(
    configs: Path, whole: tuple[list[Served], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = shutil.copytree(whole[1], tmp_path / "copy")
    trained: list[str] = []

    def first(run: RunConfig, *args: Any) -> None:
        trained.append(Path(run.runs).parent.name)
        raise KeyboardInterrupt

    monkeypatch.setattr(units, "train", first)
    with pytest.raises(KeyboardInterrupt):
        runner_of(configs, out, teacher={**CYCLE["teacher"], "codes": 2}).run()
    assert trained == ["feed"]
    assert {TeacherLog.open(log).space.width for log in out.glob("log-*")} == {2, 3}  # type: ignore[union-attr]


def test_the_report_is_over_days(whole: tuple[list[Served], Path], tmp_path: Path) -> None:
    facts = report(whole[0], "click")
    feed = facts["models"]["feed"]
    nes = [s.run.metrics()["test"]["click"]["ne"] for s in whole[0] if s.model == "feed"]
    assert [day["ne"] for day in feed["days"].values()] == pytest.approx(nes)
    assert feed["ne"] == pytest.approx(np.mean(nes))
    text = markdown(facts)
    assert f"| 7 | {facts['models']['alone']['days']['7']['ne']:.4f} |" in text and "| mean |" in text
    assert re.search(r"\| 7 \|.*\| - \|", text), "the GEM was not updated for day 7"
    write_report(facts, tmp_path)
    assert json.loads((tmp_path / "report.json").read_text())["models"].keys() == {"alone", "feed", "gem"}
    picture = (tmp_path / "days.svg").read_text()
    assert all(f">{text}</text>" in picture or f"<!-- {text} -->" in picture for text in ("alone", "gem", "day"))


def test_models_learn_labels_as_they_were_known(configs: Path, tmp_path: Path) -> None:
    words = {"base": [*BASE, "data.only_tasks=[buy]"], "students": {"feed": {}}, "days": 1, "task": "buy"}
    models = {labels: runner_of(configs, tmp_path / labels, labels=labels, **words) for labels in ("known", "final")}
    found = {labels: runner.run() for labels, runner in models.items()}
    for known, final in zip(*((s.run for s in found[labels]) for labels in ("known", "final")), strict=True):
        as_of = [load_run_config(run.path / "config.yaml", load_registry()).data.labels_as_of for run in (known, final)]
        assert as_of == [6, None]  # the day that is served, before which they learned
        one, two = (f.metrics()["test"]["buy"] for f in (known, final))
        assert one["positives"] == two["positives"] and one["logloss"] != two["logloss"]


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"students": {}}, "has no students"),
        ({"first_day": 4}, "no day that the GEM has not seen"),
        ({"students": {"a/b": {}}}, "a model is called"),
        ({"students": {"feed": {"learns": 3}}}, "names no strategy"),
        ({"teacher": {"code_bits": 3}}, "code_bits = 3"),
        ({"day": 3}, "unknown key day"),
        ({"students": {"gem": {}}}, "as the teacher is"),
    ],
)
def test_cycles_that_make_no_sense_are_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(GemkitError, match=message):
        from_mapping(CycleConfig, CYCLE | values)


def test_the_command(configs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "c.yaml").write_text(json.dumps(CYCLE))
    words = ["cycle", "--config-dir", str(configs), str(tmp_path / "c.yaml"), "--check"]
    assert main(words) == 0
    assert "alone, feed serve days 6 to 8" in capsys.readouterr().out
    assert main([*words, "size.dim=none"]) == 2
    assert "gem, size.dim" in capsys.readouterr().err
