"""The teacher log: one answer for each example, whatever happened while it was written."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from gemkit.cli.main import main
from gemkit.data import storage
from gemkit.data.dataset import Dataset
from gemkit.errors import GemkitError
from gemkit.registry import load_registry
from gemkit.session import load_run, newest_trained, open_dataset
from gemkit.testing.data import make_dataset
from gemkit.testing.runs import silent, tiny_run
from gemkit.testing.teaching import write_log
from gemkit.train import train
from gemkit.transfer import codes
from gemkit.transfer import teach as teaching
from gemkit.transfer.codes import Coding
from gemkit.transfer.log import INDEX, TeacherLog
from gemkit.transfer.teach import Lesson, teach


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return make_dataset(tmp_path_factory.mktemp("log") / "data", num_examples=300, num_events=600)


@pytest.fixture(scope="module")
def gem(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Dataset]:
    """A trained run, and its data set."""
    folder = tmp_path_factory.mktemp("teacher")
    run = tiny_run(folder, "train.max_steps=2", "sequence=none", num_examples=600, num_events=100)
    train(run, load_registry(), progress=silent())
    return next((folder / "runs").iterdir()), open_dataset(run, load_registry(), silent())


# --- the folder ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("bits", [None, 4, 8, 32])
def test_what_is_written_is_read(tmp_path: Path, data: Dataset, bits: int | None) -> None:
    chosen = np.random.default_rng(0).permutation(data.num_examples)[:101]
    logits = np.random.default_rng(1).normal(size=(101, 2)).astype(np.float32)
    width = None if bits is None else 5
    write_log(tmp_path / "log", data, logits, rows=chosen, code_width=width, code_bits=bits or 8, snapshot_s=7)
    log = TeacherLog.open(tmp_path / "log")
    rows, snapshot = log.rows()
    ids = data.columns[storage.EXAMPLE_ID][chosen]
    assert log.num_rows == 101 and rows.example_id.tolist() == sorted(ids.tolist())
    assert (rows.logits == logits[np.argsort(ids)]).all()
    assert (rows.timestamp == data.columns[storage.TIMESTAMP][chosen][np.argsort(ids)]).all()
    assert (snapshot == 7).all()
    assert rows.code.shape == (101, {None: 0, 4: 3, 8: 5, 32: 20}[bits])


def change(folder: Path, **values: Any) -> None:
    index = json.loads((folder / INDEX).read_text())
    for key, value in values.items():
        if key in index["parts"][0]:
            index["parts"][0][key] = value
        else:
            index[key] = value
    (folder / INDEX).write_text(json.dumps(index))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"version": 9}, "version 9"),
        ({"file": "../../secret.arrow"}, "a part is called"),
        ({"file": "parts/000009.arrow"}, "000009.arrow is missing"),
        ({"sha256": "0"}, "has changed since"),
        ({"rows": 3}, "not as log.json says"),
        ({"tasks": ["click", "pay"]}, "_logit_pay"),
        ({"code": {"width": 9, "bits": 8, "of": "example"}}, "its shapes do not fit"),
        ({"code": {"width": 4, "bits": 8, "of": "shop"}}, "codes are"),
        ({"code": {"width": 4, "bits": 7}}, "codes are"),
        ({"snapshot_s": "now"}, "no numbers"),
        ({"parts": 3}, "TypeError"),
    ],
)
def test_a_damaged_log_is_refused(tmp_path: Path, data: Dataset, values: dict[str, Any], message: str) -> None:
    write_log(tmp_path / "log", data)
    change(tmp_path / "log", **values)
    with pytest.raises(GemkitError, match=message):
        TeacherLog.open(tmp_path / "log").rows()


def test_an_example_answered_twice_and_a_nan_are_refused(tmp_path: Path, data: Dataset) -> None:
    log = write_log(tmp_path / "log", data, rows=np.arange(10))
    part = log._part(log.parts[0])
    log.append(part, "again", "", 0)
    with pytest.raises(GemkitError, match="answered twice"):
        log.rows()
    log.parts.pop()
    log.append(part._replace(example_id=part.example_id + 10_000, logits=part.logits * np.nan), "nan", "", 0)
    with pytest.raises(GemkitError, match="a number is not finite"):
        log.rows()


def test_a_log_is_not_made_in_a_folder_of_something_else(tmp_path: Path, data: Dataset) -> None:
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(GemkitError, match="is no teacher log"):
        TeacherLog.create(tmp_path, ("click",), "synthetic", "")
    with pytest.raises(GemkitError, match="holds no teacher log"):
        TeacherLog.open(tmp_path / "nowhere")


# --- teaching -----------------------------------------------------------------------------------------------


def test_a_teacher_answers_what_is_newer_than_itself(gem: tuple[Path, Dataset], tmp_path: Path) -> None:
    run, data = gem
    taught = teach(run, tmp_path / "log", Lesson(), load_registry(), silent())
    rows, snapshot = TeacherLog.open(tmp_path / "log").rows()
    times = np.asarray(data.columns[storage.TIMESTAMP])
    newer = np.flatnonzero(times > newest_trained(data))
    assert taught == (len(newer), len(newer)) and 0 < len(newer) < data.num_examples
    assert rows.example_id.tolist() == sorted(data.columns[storage.EXAMPLE_ID][newer].tolist())
    assert (snapshot == times[data.split("train")].max()).all() and (rows.timestamp > snapshot).all()
    # The answers are those of the model, alone and in other company.
    loaded = load_run(run, load_registry())
    for batch in teaching._batches(loaded, data, newer[::7]):
        with torch.no_grad():
            expected = loaded.model(batch).logits.numpy()
        place = np.searchsorted(rows.example_id, batch.example_id.numpy())
        np.testing.assert_allclose(rows.logits[place], expected, rtol=1e-4, atol=1e-5)


def test_a_teacher_that_is_killed_goes_on(
    gem: tuple[Path, Dataset], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, _ = gem
    lesson = Lesson(coding=Coding(3, 4, "example"))
    whole = teach(run, tmp_path / "whole", lesson, load_registry(), silent())
    monkeypatch.setattr(teaching, "PART_ROWS", 25)
    append, appended = TeacherLog.append, []

    def killed(self: TeacherLog, *args: Any) -> None:
        if len(appended) == 2:
            (self.folder / "parts" / "000002.arrow").write_bytes(b"half")
            raise KeyboardInterrupt
        appended.append(args)
        append(self, *args)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(TeacherLog, "append", killed)
        teach(run, tmp_path / "log", lesson, load_registry(), silent())
    assert teach(run, tmp_path / "log", lesson, load_registry(), silent()) == (whole.asked, whole.asked - 50)
    assert teach(run, tmp_path / "log", lesson, load_registry(), silent()) == (whole.asked, 0)
    one, two = (TeacherLog.open(tmp_path / name).rows() for name in ("whole", "log"))
    for first, second in zip((*one[0], one[1]), (*two[0], two[1]), strict=True):
        np.testing.assert_allclose(first, second, rtol=1e-4, atol=1e-5)


def test_examples_that_the_teacher_knows_need_a_word(gem: tuple[Path, Dataset], tmp_path: Path) -> None:
    run, data = gem
    log = tmp_path / "log"
    with pytest.raises(GemkitError, match="not newer than the teacher") as caught:
        teach(run, log, Lesson(days=(0, 1000)), load_registry(), silent())
    assert caught.value.fix == "--seen, if that is wanted" and not TeacherLog.is_there(log)
    assert teach(run, log, Lesson(seen=True), load_registry(), silent()).answered == data.num_examples
    assert TeacherLog.open(log).parts[0].snapshot_s is None


def test_days_and_surfaces(gem: tuple[Path, Dataset], tmp_path: Path) -> None:
    run, data = gem
    end = float(data.days(np.arange(data.num_examples)).max())
    surface = data.schema.surfaces[0]
    lesson = Lesson(days=(0.95 * end, end), surfaces=(surface,))
    teach(run, tmp_path / "log", lesson, load_registry(), silent())
    expected = data.pick(np.arange(data.num_examples), (0.95 * end, end), (surface,))
    found = TeacherLog.open(tmp_path / "log").rows()[0].example_id
    assert found.tolist() == sorted(data.columns[storage.EXAMPLE_ID][expected].tolist()) and len(found) > 3
    with pytest.raises(GemkitError, match="has no surface 'shop'"):
        teach(run, tmp_path / "log", Lesson(surfaces=("shop",)), load_registry(), silent())


def test_a_teacher_of_one_surface_answers_on_that_surface(tmp_path: Path) -> None:
    words = ["train.max_steps=1", "sequence=none", f"runs={tmp_path / 'runs'}"]
    data = {"num_examples": 600, "num_events": 100}
    whole = open_dataset(tiny_run(tmp_path, *words, **data), load_registry(), silent())
    surface = whole.schema.surfaces[1]
    train(tiny_run(tmp_path, *words, f"data.only_surfaces=[{surface}]", **data), load_registry(), progress=silent())
    (run,) = (tmp_path / "runs").iterdir()
    teach(run, tmp_path / "log", Lesson(), load_registry(), silent())
    answered = np.isin(
        np.asarray(whole.columns[storage.EXAMPLE_ID]), TeacherLog.open(tmp_path / "log").rows()[0].example_id
    )
    assert answered.any() and set(np.asarray(whole.columns[storage.SURFACE])[answered]) == {1}


def test_a_log_of_another_data_set_is_not_added_to(gem: tuple[Path, Dataset], tmp_path: Path, data: Dataset) -> None:
    write_log(tmp_path / "log", data)
    with pytest.raises(GemkitError, match="another build of the data set"):
        teach(gem[0], tmp_path / "log", Lesson(), load_registry(), silent())


def test_the_command(gem: tuple[Path, Dataset], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    log = str(tmp_path / "log")
    assert main(["teach", str(gem[0]), "--log", log, "--codes", "2", "--bits", "4"]) == 0
    assert "answers in" in capsys.readouterr().out
    assert main(["teach", str(gem[0]), "--log", str(tmp_path / "two"), "--anchor", log]) == 0
    for words, message in (
        (["--days", "3"], "--days is '3'"),
        (["--bits", "5"], "--bits is 5"),
        (["--codes", "3"], "the log has other codes"),
        (["--codes", "2", "--bits", "4", "--codes-of", "user"], "2 numbers of 4 bits, of the example"),
    ):
        assert main(["teach", str(gem[0]), "--log", log, *words]) == 2
        assert message in capsys.readouterr().err


def test_codes_of_users_need_to_know_whose_an_example_is(gem: tuple[Path, Dataset]) -> None:
    loaded = load_run(gem[0], load_registry())
    data = loaded.open_dataset(load_registry(), silent())
    lesson = Lesson(coding=Coding(2, 8, "user"))
    space = teaching._code_space(lesson, loaded, data, silent())
    assert space.coding == lesson.coding
    data.schema = dataclasses.replace(data.schema, group=None)
    with pytest.raises(GemkitError, match="does not say whose an example is"):
        teaching._code_space(lesson, loaded, data, silent())


# --- codes --------------------------------------------------------------------------------------------------


def readouts(n: int = 4000, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    found: np.ndarray = rng.normal(size=(n, 4)) @ rng.normal(size=(4, 12)) + 5 + 0.01 * rng.normal(size=(n, 12))
    return found.astype(np.float32)


@pytest.mark.parametrize(("bits", "error"), [(32, 0.0), (8, 0.02), (4, 0.16)])
def test_codes_are_near_what_was_packed(bits: int, error: float) -> None:
    space = codes.fit(readouts(), 3, bits)
    code = space.encode(readouts(seed=0))
    assert np.abs(code.mean(0)).max() < 0.01 and np.abs(code.std(0) - 1).max() < 0.01
    stored = space.pack(code)
    assert stored.dtype == np.uint8 and stored.shape == (4000, space.num_bytes)
    found = space.unpack(stored)
    assert np.sqrt(((found - code) ** 2).mean()) <= error
    if bits < 32:
        step = codes.LIMITS[bits] / (2 ** (bits - 1) - 1)
        inside = np.abs(code) < codes.LIMITS[bits]
        assert np.abs(found - code)[inside].max() <= step / 2 + 1e-6


def test_the_code_of_a_linear_autoencoder_keeps_what_it_can() -> None:
    """Four numbers say all of readouts that lie in four dimensions; three leave exactly the smallest direction out."""
    x = readouts()
    variances = np.linalg.svd(x - x.mean(0), compute_uv=False) ** 2
    for width in (3, 4):
        code = codes.fit(x, width, 32).encode(x)
        rebuilt = code @ np.linalg.lstsq(code, x - x.mean(0), rcond=None)[0]
        lost = ((x - x.mean(0) - rebuilt) ** 2).sum() / variances.sum()
        assert lost == pytest.approx(variances[width:].sum() / variances.sum(), rel=1e-2)


def test_an_anchored_teacher_writes_the_old_codes() -> None:
    """A teacher whose readouts are turned, stretched and shifted says the same thing in the old code space."""
    x = readouts()
    rng = np.random.default_rng(3)
    turned = (x @ rng.normal(size=(12, 12)) + rng.normal(size=12)).astype(np.float32)
    old = codes.fit(x, 3, 32)
    new = codes.anchored(turned[:2000], old.encode(x[:2000]), 32, "example")
    own = codes.fit(turned, 3, 32)
    held_out, wanted = turned[2000:], old.encode(x[2000:])
    assert np.corrcoef(new.encode(held_out).ravel(), wanted.ravel())[0, 1] > 0.995
    assert np.corrcoef(own.encode(held_out).ravel(), wanted.ravel())[0, 1] < 0.9


def test_codes_of_users_keep_what_their_examples_share() -> None:
    """The loudest directions are about items; the quiet one is the user's, and is the one that is kept."""
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(300), 6)
    taste = rng.normal(size=300)[users]
    readout = 5 * rng.normal(size=(1800, 3)) @ rng.normal(size=(3, 10)) + np.outer(taste, rng.normal(size=10))
    readout = (readout + 0.1 * rng.normal(size=readout.shape)).astype(np.float32)

    def tells(space: codes.CodeSpace) -> float:
        """How well a user's first examples tell the taste behind the last."""
        code = space.encode(readout)[:, 0].reshape(300, 6)
        return float(abs(np.corrcoef(code[:, :3].mean(1), taste.reshape(300, 6)[:, 5])[0, 1]))

    assert tells(codes.fit_users(readout, users, 1, 32)) > 0.8
    assert tells(codes.fit(readout, 1, 32)) < 0.1
    with pytest.raises(GemkitError, match="no user has two examples"):
        codes.fit_users(readout, np.arange(1800), 1, 32)


def test_codes_of_users_are_the_leading_directions_of_pairs() -> None:
    """Against a loop over all pairs of examples of one user, each user weighing as its examples do."""
    rng = np.random.default_rng(1)
    users = np.array([0, 0, 0, 1, 1, 2, 3, 3, 3, 3])  # user 2 has no pair
    x = rng.normal(size=(10, 4)).astype(np.float32)
    centred = x.astype(np.float64) - x[users != 2].mean(0)
    wanted = np.zeros((4, 4))
    for i, j in np.ndindex(10, 10):
        if i != j and users[i] == users[j]:
            wanted += np.outer(centred[i], centred[j]) / ((users == users[i]).sum() - 1)
    direction = np.linalg.eigh(wanted)[1][:, -1]
    found = codes.fit_users(x, users, 1, 32).matrix[:, 0]
    assert abs(found @ direction) / np.linalg.norm(found) == pytest.approx(1, abs=1e-5)


def test_too_wide_a_code_is_refused() -> None:
    with pytest.raises(GemkitError, match="codes of 13 numbers"):
        codes.fit(readouts(), 13, 8)
