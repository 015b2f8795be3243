"""Teacher logs and runs: the join, codes as of a time, shared parameters, a student from end to end."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from gemkit_transfer.representation import AsOf

from gemkit.cli.main import main
from gemkit.config.compose import compose
from gemkit.data import storage
from gemkit.data.batch import Batch
from gemkit.data.collate import Reading, collate
from gemkit.data.dataset import Dataset
from gemkit.errors import GemkitError
from gemkit.evaluate import evaluate
from gemkit.predict import predict
from gemkit.registry import load_registry
from gemkit.runs import checkpoint
from gemkit.runs.folder import RunFolder
from gemkit.session import load_run, open_dataset, reading_of
from gemkit.testing import bench
from gemkit.testing.data import make_dataset
from gemkit.testing.runs import silent, tiny_run
from gemkit.testing.teaching import write_log
from gemkit.train import train
from gemkit.transfer.answers import LoggedAnswers, _read
from gemkit.transfer.log import TeacherLog

SIZE = ("size.num_blocks=1", "sequence=none", "cross=none", "train.batch_size=64")


def batch_of(rows: np.ndarray) -> Batch:
    return collate(bench.dataset(), rows, Reading(read_events=False))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("transfer_runs")


def finished(data: Path, runs: Path, *words: str) -> RunFolder:
    train(tiny_run(data, *SIZE, *words, f"runs={runs}"), load_registry(), progress=silent())
    (path,) = runs.iterdir()
    return RunFolder.open(path)


# --- the join -----------------------------------------------------------------------------------------------


def test_the_join_is_exact_under_shuffling_and_missing_rows(tmp_path: Path) -> None:
    whole = bench.dataset()
    rng = np.random.default_rng(4)
    answered = rng.permutation(whole.num_examples)[: whole.num_examples // 2]
    logits = rng.normal(size=(len(answered), 2)).astype(np.float32)
    write_log(tmp_path / "log", whole, logits, rows=answered, snapshot_s=whole.first_s - 100)
    answers = LoggedAnswers(str(tmp_path / "log"), whole.schema)
    by_row = dict(zip(answered.tolist(), logits, strict=True))
    for seed in range(3):
        rows = np.random.default_rng(seed).integers(whole.num_examples, size=200)  # in any order, some twice
        batch = batch_of(rows)
        found = answers(batch)
        for i, row in enumerate(rows.tolist()):
            expected = by_row.get(row)
            assert found.known[i].tolist() == [float(expected is not None)] * 2
            assert found.logits[i].tolist() == ([0, 0] if expected is None else expected.tolist())
            age = float(whole.columns[storage.TIMESTAMP][row] - whole.first_s + 100)
            assert found.ages[i].item() == (0 if expected is None else age)
    assert 0 < found.known.mean() < 1


def test_tasks_are_found_by_name(tmp_path: Path) -> None:
    whole = bench.dataset()
    log = write_log(tmp_path / "log", whole)
    (tmp_path / "log" / "log.json").write_text(
        (tmp_path / "log" / "log.json").read_text().replace('"click",\n  "buy"', '"buy",\n  "click"')
    )
    assert TeacherLog.open(tmp_path / "log").tasks == log.tasks[::-1]
    batch = batch_of(np.arange(50))
    found = LoggedAnswers(str(tmp_path / "log"), whole.schema)(batch)
    rows, _ = log.rows()
    place = np.searchsorted(rows.example_id, batch.example_id.numpy())
    np.testing.assert_array_equal(found.logits.numpy(), rows.logits[place])


def test_a_log_without_a_task_of_the_student_is_refused(tmp_path: Path) -> None:
    whole = bench.dataset()
    log = TeacherLog.create(tmp_path / "log", ("click",), whole.schema.name, whole.origin)
    assert log.num_rows == 0
    with pytest.raises(GemkitError, match="says nothing about buy") as caught:
        LoggedAnswers(str(tmp_path / "log"), whole.schema)(batch_of(np.arange(5)))
    assert caught.value.allowed == "tasks click"


def test_ids_of_another_data_set_are_noticed(tmp_path: Path) -> None:
    other = make_dataset(tmp_path / "other", num_examples=500, seed=9)
    write_log(tmp_path / "log", other)
    with pytest.raises(GemkitError, match="written for other examples"):
        LoggedAnswers(str(tmp_path / "log"), bench.dataset().schema)(batch_of(np.arange(50)))


# --- codes as of a time -------------------------------------------------------------------------------------


@pytest.mark.parametrize("mean", [False, True], ids=["newest", "mean"])
def test_codes_as_of_a_time_equal_a_loop(tmp_path: Path, mean: bool) -> None:
    whole = bench.dataset()
    chosen = np.random.default_rng(0).permutation(whole.num_examples)[:500]
    log = write_log(tmp_path / "log", whole, rows=chosen, code_width=3, code_bits=32)
    rows, _ = log.rows()
    assert log.space is not None
    codes = log.space.unpack(rows.code)
    batch = batch_of(np.arange(whole.num_examples))
    found = AsOf.of(str(tmp_path / "log"), mean)(batch.group, batch.timestamp).numpy()
    by_time = np.argsort(rows.timestamp, kind="stable").tolist()
    for i in range(whole.num_examples):
        user, time = batch.group[i].item(), batch.timestamp[i].item()
        older = [j for j in by_time if rows.group[j] == user and rows.timestamp[j] < time]
        if not older:
            assert found[i].tolist() == [0, 0, 0, 0]
            continue
        expected = codes[older].mean(0) if mean else codes[older[-1]]
        last = [j for j in older if rows.timestamp[j] == rows.timestamp[older[-1]]]
        if mean or len(last) == 1:  # of several at one time, any may be the newest
            np.testing.assert_allclose(found[i, :3], expected, atol=1e-5)
        assert found[i, 3] == 1
    assert 0 < found[:, 3].mean() < 1


def test_a_code_never_contains_its_example(tmp_path: Path) -> None:
    """Whatever the teacher says about an example and all later ones, the example's own code stays."""
    whole = bench.dataset()
    log = write_log(tmp_path / "log", whole, code_width=3, code_bits=32)
    batch = batch_of(np.arange(whole.num_examples))
    times = np.asarray(whole.columns[storage.TIMESTAMP])
    moment = int(np.median(times))
    before = AsOf.of(str(tmp_path / "log"), True)
    rows, _ = log.rows()
    later = rows.timestamp >= moment
    assert log.space is not None
    spoiled = np.where(later[:, None], log.space.pack(np.full((log.num_rows, 3), 7.0)), rows.code)
    after_log = TeacherLog.create(tmp_path / "after", log.tasks, log.data, log.origin, log.space)
    after_log.append(rows._replace(code=spoiled), "spoiled", "", 0)
    after = AsOf.of(str(tmp_path / "after"), True)
    one, two = (f(batch.group, batch.timestamp) for f in (before, after))
    same = torch.isclose(one, two, atol=1e-5).all(1)
    assert same[batch.timestamp <= moment].all() and not same.all()


# --- sharing ------------------------------------------------------------------------------------------------


def tensors_of(folder: RunFolder) -> Any:
    return checkpoint.load(folder.checkpoints / "best.safetensors")[0]


@pytest.mark.parametrize("tuning", ["frozen", "full"])
def test_shared_parts_begin_as_the_teachers(data: Path, tmp_path: Path, tuning: str) -> None:
    teacher = finished(data, tmp_path / "teacher", "train.max_steps=4")
    words = ["transfer=parameter_sharing", f"transfer.teacher={teacher.path}", f"transfer.tuning={tuning}"]
    words += ["transfer.share=[tables.item_id,dense.tokenizer.*]", "seed=2", "train.max_steps=2"]
    words += ["optimizer.lr=1e-5", "optimizer.embedding_lr=1e-5"]
    student = finished(data, tmp_path / "student", *words)
    theirs, ours = tensors_of(teacher), tensors_of(student)
    shared = ["tables.item_id", *(n for n in theirs if n.startswith("dense.tokenizer."))]
    assert len(shared) > 3
    same = {name: bool(torch.equal(theirs[name], ours[name])) for name in theirs}
    assert not any(same[name] for name in same if name not in shared)
    if tuning == "frozen":
        assert all(same[name] for name in shared)
    else:
        assert not any(same[name] for name in shared)
        for name in shared:  # two steps of next to no size away
            torch.testing.assert_close(ours[name], theirs[name], rtol=0, atol=1e-3)


def test_sharing_that_cannot_be_is_refused(data: Path, tmp_path: Path) -> None:
    teacher = finished(data, tmp_path / "teacher", "train.max_steps=1")
    words = ["transfer=parameter_sharing", f"transfer.teacher={teacher.path}"]
    with pytest.raises(GemkitError, match=r"nothing in the student is called tables\.shop"):
        finished(data, tmp_path / "a", *words, "transfer.share=[tables.shop]")
    with pytest.raises(GemkitError, match="in the student and"):
        finished(data, tmp_path / "b", *words, "size.dim=8", "interaction.rank=4")
    other = tmp_path / "other"
    run = tiny_run(other, *SIZE, *words, f"runs={tmp_path / 'c'}", num_items=20)
    with pytest.raises(GemkitError, match="other ids in the teacher's data set"):
        train(run, load_registry(), progress=silent())


def test_two_teachers_share_different_parts(data: Path, tmp_path: Path) -> None:
    """Under two names in one list; a part that both would fill is refused."""
    one, two = (finished(data, tmp_path / f"teacher{i}", f"seed={i}", "train.max_steps=1") for i in (1, 2))

    def words(second: str) -> list[str]:
        parts = [f"{{name: parameter_sharing, teacher: {one.path}, share: [tables.item_id], tuning: frozen}}"]
        parts += [f"{{name: parameter_sharing, teacher: {two.path}, share: ['{second}'], tuning: frozen}}"]
        return ["transfer=several", f"transfer.parts={{a: {parts[0]}, b: {parts[1]}}}", "seed=3", "train.max_steps=1"]

    ours = tensors_of(finished(data, tmp_path / "student", *words("dense.tokenizer.*")))
    assert torch.equal(ours["tables.item_id"], tensors_of(one)["tables.item_id"])
    names = [name for name in ours if name.startswith("dense.tokenizer.")]
    assert names and all(torch.equal(ours[name], tensors_of(two)[name]) for name in names)
    with pytest.raises(GemkitError, match=r"tables\.item_id is shared twice, by a and by b"):
        finished(data, tmp_path / "refused", *words("tables.*"))


# --- from end to end ----------------------------------------------------------------------------------------


def test_a_student_from_end_to_end(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A teacher on early days, a log with codes, a student on later days, which is served without its teacher."""
    whole = open_dataset(tiny_run(data), load_registry(), silent())
    end = float(whole.days(np.arange(whole.num_examples)).max()) + 1e-6
    days = [f"data.{name}_days=[{a * end},{b * end}]" for name, a, b in (("train", 0, 0.4), ("valid", 0.4, 0.5))]
    teacher = finished(data, tmp_path / "teacher", *days)
    log = tmp_path / "log"
    assert main(["teach", str(teacher.path), "--log", str(log), "--codes", "4", "--bits", "4"]) == 0
    words = [f"data.train_days=[{0.5 * end},{0.8 * end}]", f"data.valid_days=[{0.8 * end},{0.9 * end}]"]
    words += ["transfer=[auxiliary_head,representation]", f"transfer.log={log}", "data.only_tasks=[click]"]
    student = finished(data, tmp_path / "student", *words)
    row = [r for r in student.rows() if r["split"] == "train"][-1]
    assert row["transfer/answered"] == 1 and row["transfer/teacher_age_days"] > 0
    assert student.metrics()["test"].keys() == {"click"}
    assert student.metrics()["train"]["flops_per_example"] > teacher.metrics()["train"]["flops_per_example"]
    assert evaluate(student.path, load_registry(), silent()) == student.metrics()["test"]
    assert not any("auxiliary" in name for name in tensors_of(student))
    examples = data / "examples.parquet"
    assert predict(student.path, examples, tmp_path / "out.csv", load_registry(), silent()) == 1200
    check_predictions(student.path, tmp_path / "out.csv", whole)
    (log / "parts" / "000000.arrow").unlink()
    _read.cache_clear()
    with pytest.raises(GemkitError, match="is missing"):
        evaluate(student.path, load_registry(), silent())


def check_predictions(student: Path, file: Path, whole: Dataset) -> None:
    """Examples from a file read their users' codes like those of the data set."""
    loaded = load_run(student, load_registry())
    rows = np.argsort(np.asarray(whole.columns[storage.EXAMPLE_ID]))  # the file's order
    reading = reading_of(loaded.model.run, loaded.model.dense)
    with torch.no_grad():
        expected = torch.sigmoid(loaded.model(collate(whole, rows, reading)).logits)[:, 0].numpy()
    found = np.loadtxt(file, delimiter=",", skiprows=1)[:, 1]
    np.testing.assert_allclose(found, expected, rtol=1e-4)


def test_lists_of_strategies_compose() -> None:
    words = ["transfer=[distill,representation]", "transfer.log=teachers/gem", "transfer.parts.distill.weight=3"]
    run = compose(words, load_registry())
    assert run.transfer.name == "several" and list(run.transfer.parts) == ["distill", "representation"]
    assert run.transfer.parts["distill"].weight == 3
    assert {part.log for part in run.transfer.parts.values()} == {"teachers/gem"}


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["transfer=[distill,distil]", "transfer.log=x"], "unknown transfer 'distil'"),
        (["transfer=[distill,distill]", "transfer.log=x"], "transfer names distill twice"),
        (["transfer=[]"], "no strategy is named"),
        (["transfer=[distill]"], "needs a teacher log"),
        (["transfer=[distill]", "transfer.log=x", "transfer.parts.distill.wait=1"], "unknown key"),
        (["transfer=several", "transfer.parts={distill: 3}"], "no mapping of options"),
        (["transfer=several", "transfer.parts={several: {}}"], "holds a list"),
        (["transfer=representation"], "needs a teacher log"),
        (["transfer=parameter_sharing"], "needs a teacher"),
    ],
)
def test_lists_that_make_no_sense_are_refused(words: list[str], message: str) -> None:
    with pytest.raises(GemkitError, match=message):
        compose(words, load_registry())
