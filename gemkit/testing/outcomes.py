"""What the command line does with a mutation: a valid run, a clear error, or something that must not happen."""

from __future__ import annotations

import contextlib
import io
import itertools
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

from gemkit.cli.main import main
from gemkit.testing.mutations import PAYLOAD, Mutation

LIMIT_S = 30.0
MOST_LINES = 8
"""Lines of an error; a valid run may say as much on stderr."""

VALID, ERROR, DEFECT = "valid run", "clear error", "defect"


class Outcome(NamedTuple):
    """
    Attributes:
        result: `VALID`, `ERROR` or `DEFECT`.
        named: Whether the error's message names what the mutation hit.
        why: What makes it a defect.
        text: What was printed on stderr.
        built: Whether the model was built and has taken a step.
    """

    result: str
    named: bool
    why: str
    text: str
    seconds: float
    built: bool


class HangError(BaseException):
    """A mutation took longer than `LIMIT_S`; no `except Exception` may keep it."""


def outcome_of(mutation: Mutation, folder: Path, run_folder: Path, build: bool = True) -> Outcome:
    """Runs a mutation in this process.

    Args:
        folder: An empty folder of its own.
        run_folder: A trained run; mutations of a saved config work on a copy of it. Beside its folder of runs lies a
            teacher log, `teacher_log`.
        build: Whether a config that is accepted is built into a model, which takes one training step.
    """
    started_s = time.perf_counter()
    log = run_folder.parent.parent / "teacher_log"
    places = {"{folder}": str(folder), "{run}": str(run_folder), "{log}": str(log)}
    argv = [_filled(word, places) for word in mutation.argv]
    if any(name.startswith("run/") for name, _ in mutation.files):
        shutil.copytree(run_folder, folder / "run")
    for name, data in mutation.files:
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        for place, text in places.items():
            data = data.replace(place.encode(), text.encode())
        path.write_bytes(data)
    code, out, err, why = _call(argv)
    built = False
    if code == 0 and build and argv[0] == "config":
        code, _, err, why = _call(["train", *argv[1:]])
        built = code == 0
    if (folder / PAYLOAD).exists():
        why = "code of a config was run"
    why = why or _judge(mutation, code, out, err)
    named = any(name in err for name in mutation.names)
    result = DEFECT if why else VALID if code == 0 else ERROR
    return Outcome(result, named, why, err, time.perf_counter() - started_s, built)


def _judge(mutation: Mutation, code: int | None, out: str, err: str) -> str:
    if code not in (0, 2):
        return f"exit code {code}"
    if "Traceback" in err:
        return "a traceback"
    if len(err.splitlines()) > MOST_LINES or len(err) > 4000:
        return f"{len(err.splitlines())} lines, {len(err)} characters"
    if code == 2 and not err.startswith("error: ") and "\nerror: " not in err:
        return "an error without a message"
    if code == 0 and mutation.refused:
        return "accepted, and must be refused"
    return ""


def _call(argv: list[str]) -> tuple[int | None, str, str, str]:
    """Exit code, stdout, stderr, and what went wrong beyond them."""
    out, err = io.StringIO(), io.StringIO()
    try:
        with (
            contextlib.redirect_stdout(out),
            contextlib.redirect_stderr(err),
            mock.patch("gemkit.train.train", one_step),
            _time_limit(),
        ):
            return main(argv), out.getvalue(), err.getvalue(), ""
    except HangError:
        return None, out.getvalue(), err.getvalue(), f"longer than {LIMIT_S:g} s"
    except SystemExit as stop:
        return None, out.getvalue(), err.getvalue(), f"SystemExit {stop.code}"
    except BaseException as error:
        return None, out.getvalue(), err.getvalue(), f"{type(error).__name__}: {error}"


def one_step(run: Any, registry: Any, *_: Any, **__: Any) -> None:
    """In place of `gemkit.train.train`: sets the training up, and takes one step."""
    from gemkit.runs.clock import Clock
    from gemkit.session import to_device
    from gemkit.testing.runs import silent
    from gemkit.train import Training

    if run.data.name != "table":
        return  # nothing is downloaded here
    with contextlib.ExitStack() as resources:
        training = Training(run, registry, None, silent(), ["gemkit", "train"], resources)
        training.clock = Clock(0.0, 0)  # which `fit` starts
        training.model.dense.train()
        batches = to_device(training.loader.epoch(0), training.backend)
        training.step(list(itertools.islice(batches, run.train.accumulate)))


def _filled(word: str, places: dict[str, str]) -> str:
    for place, text in places.items():
        word = word.replace(place, text)
    return word


@contextlib.contextmanager
def _time_limit() -> Iterator[None]:
    def stop(*_: object) -> None:
        raise HangError

    before: Callable[..., Any] | int | None = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
