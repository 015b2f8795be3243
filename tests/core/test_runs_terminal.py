"""What a person sees: bars, lines, tables, and TensorBoard files."""

from __future__ import annotations

import io
import sys
import time
from pathlib import Path

import pytest
from rich.console import Console

from gemkit.errors import GemkitError
from gemkit.runs import progress as progress_module
from gemkit.runs.curves import flatten
from gemkit.runs.progress import Progress, duration
from gemkit.runs.tables import print_metrics, print_run_end
from gemkit.runs.tensorboard import TensorBoardWriter

METRICS = {
    "like": {
        "auc": 0.81234,
        "logloss": 0.5,
        "ne": 0.9,
        "ne_base": "train",
        "gauc_impressions": None,
        "examples": 123456,
        "surfaces": {"feed": {"auc": 0.8, "examples": 100000}, "reels": {"auc": None, "examples": 23456}},
    },
    "a_task_with_quite_a_long_name": {"auc": 0.7, "logloss": 0.25, "ne_base": "train", "examples": 7},
}


def terminal(width: int = 100) -> Console:
    return Console(file=io.StringIO(), force_terminal=True, width=width, color_system=None, legacy_windows=False)


def pipe() -> Console:
    return Console(file=io.StringIO(), force_terminal=False)


def text(console: Console) -> str:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: now[0])
    return now


def test_lines_elsewhere_than_in_a_terminal(clock: list[float]) -> None:
    console = pipe()
    with Progress(console=console) as progress, progress.task("train", total=8000) as bar:
        for _ in range(40):
            clock[0] += 1
            bar.advance(200, loss=0.53125)
        with progress.task("evaluate") as inner:
            inner.advance(5)
    lines = text(console).splitlines()
    assert lines == [
        "train: 0 / 8,000 examples (0%)",
        "train: 2,000 / 8,000 examples (25%), 200 examples/s, 0:00:30 left, loss 0.5312",
        "train: 4,000 / 8,000 examples (50%), 200 examples/s, 0:00:20 left, loss 0.5312",
        "train: 6,000 / 8,000 examples (75%), 200 examples/s, 0:00:10 left, loss 0.5312",
        "train: 8,000 / 8,000 examples (100%), 200 examples/s, 0:00:00 left, loss 0.5312",
        "evaluate: 0 examples",
        "evaluate: done, 5 examples in 0:00:00",
        "train: done, 8,000 / 8,000 examples (100%) in 0:00:40, 200 examples/s",
    ]


def test_what_was_done_before_does_not_count_for_the_rate(clock: list[float]) -> None:
    console = pipe()
    with Progress(console=console).task("train", total=8000, done=6000) as bar:
        clock[0] += 10
        bar.advance(1000)
    assert "7,000 / 8,000 examples (87%), 100 examples/s, 0:00:10 left" in text(console)


def test_an_error_shows_as_stopped(clock: list[float]) -> None:
    console = pipe()
    with pytest.raises(RuntimeError), Progress(console=console) as progress, progress.task("train", total=10) as bar:
        bar.advance(3)
        raise RuntimeError
    assert "train: stopped, 3 / 10 examples (30%)" in text(console)


def test_values_are_read_only_when_something_is_drawn(clock: list[float]) -> None:
    class Loss:
        reads = 0

        def __float__(self) -> float:
            Loss.reads += 1
            return 0.5

    with Progress(console=pipe()).task("train", total=100) as bar:
        for _ in range(100):
            clock[0] += 0.25
            bar.advance(1, loss=Loss())
    assert Loss.reads == 2  # 25 seconds, a line every ten


def test_bars_in_a_terminal() -> None:
    console = terminal(110)
    with Progress(console=console) as progress, progress.task("train", total=1000) as bar:
        bar.advance(400, loss=0.5)
        with progress.task("evaluate", total=10) as inner:
            inner.advance(10)
            time.sleep(0.3)
        progress.print("valid: auc 0.8")
        bar.advance(600)
    out = text(console)
    assert "evaluate" in out
    assert "loss 0.5" in out
    assert "valid: auc 0.8" in out
    last = out.replace("\x1b[?25h", "").rstrip().splitlines()[-1]
    assert "train" in last and "1,000 / 1,000 examples (100%) in 0:00:" in last
    assert out.count("\x1b[?25l") == out.count("\x1b[?25h") == 1  # cursor hidden and shown again


def test_a_bar_fits_80_columns(clock: list[float]) -> None:
    console = terminal(80)
    with Progress(console=console) as progress, progress.task("evaluate", total=803_240) as bar:
        clock[0] += 10
        bar.advance(412_672, loss=0.53014)
        time.sleep(0.4)
    assert "412,672/803,240  41,267 examples/s  0:00:09 left  loss 0.5301" in text(console)


def test_bars_end_when_an_error_escapes() -> None:
    console = terminal()
    with pytest.raises(RuntimeError), Progress(console=console) as progress:
        progress.task("fetch", total=10).__enter__()
        raise RuntimeError
    assert text(console).endswith("\x1b[?25h") or "\x1b[?25h" in text(console)
    assert progress._screen is None


@pytest.mark.parametrize("console", [terminal(), pipe()], ids=["terminal", "pipe"])
def test_nothing_when_quiet(console: Console) -> None:
    with Progress(quiet=True, console=console) as progress:
        with progress.task("train", total=10) as bar:
            bar.advance(10)
        progress.callback()("ml-1m.zip", 10, 10)
        progress.print("hello")
    assert text(console) == ""


def test_callback_keeps_a_bar_for_each_file(clock: list[float]) -> None:
    console = pipe()
    with Progress(console=console) as progress, progress.callback() as report:
        for done in range(0, 5_000_001, 1_000_000):
            clock[0] += 4
            report("ml-1m.zip", done, 5_000_000)
        report("readme", 0, 0)
        report("readme", 2000, 0)
        report("there.zip", 700, 700)
    assert text(console).splitlines() == [
        "ml-1m.zip: 0 bytes / 5.0 MB",
        "ml-1m.zip: 3.0 MB / 5.0 MB, 250.0 kB/s, 0:00:08 left",
        "ml-1m.zip: done, 5.0 MB / 5.0 MB in 0:00:20, 250.0 kB/s",
        "readme: 0 bytes",
        "there.zip: 0 bytes / 700 bytes",
        "there.zip: done, 700 bytes / 700 bytes in 0:00:00",
        "readme: done, 2.0 kB in 0:00:00",
    ]


def test_duration() -> None:
    assert [duration(s) for s in (0, 59.6, 3661)] == ["0:00:00", "0:01:00", "1:01:01"]


def test_plain_table_is_aligned_and_never_cut() -> None:
    console = pipe()
    print_metrics(METRICS, "test", console)
    lines = text(console).splitlines()
    assert lines[:7] == [
        "test",
        "                            like  a_task_with_quite_a_long_name",
        "  AUC                     0.8123                         0.7000",
        "  logloss                 0.5000                         0.2500",
        "  NE (base rate: train)   0.9000                              -",
        "  gAUC (by impressions)        -                              -",
        "  examples               123,456                              7",
    ]
    assert "like, by surface" in lines
    assert "  feed     0.8000   100,000" in lines


def test_many_tasks_keep_one_line_a_row_elsewhere_than_in_a_terminal() -> None:
    console = pipe()
    print_metrics({f"task_{i}": {"auc": 0.5} for i in range(40)}, "test", console)
    assert len(text(console).splitlines()) == 4


@pytest.mark.parametrize("width", [40, 100])
def test_terminal_table_fits(width: int) -> None:
    console = terminal(width)
    print_metrics(METRICS, "test", console)
    assert "0.8123" in text(console)
    assert max(len(line) for line in text(console).splitlines()) <= width


@pytest.mark.parametrize("make", [terminal, pipe])
def test_end_of_run_says_where_and_what_next(make: object) -> None:
    console = terminal(30) if make is terminal else pipe()
    run = Path("some runs") / ("2026-11-22_10-15-03_" + "x" * 60)
    print_run_end({"test": METRICS, "train": {"params": 1_234_567, "mfu": 0.1234, "wall_s": 61.5}}, run, console)
    lines = text(console).splitlines()
    assert f"run folder  {run}" in lines
    assert f"  gemkit evaluate '{run}'" in lines
    assert f"  gemkit train --resume '{run}'" in lines
    assert "1,234,567 parameters, MFU 12.3%, 61.5 s" in lines


def test_tensorboard_files_hold_the_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    writer = TensorBoardWriter(tmp_path)
    writer.append(5, "train", {"loss": 0.5})
    writer.append(5, "valid", {"like": {"auc": 0.75, "ne_base": "train", "pr_auc": None}})
    writer.close()
    events = EventAccumulator(str(tmp_path)).Reload()
    assert sorted(events.Tags()["scalars"]) == ["train/loss", "valid/like/auc"]
    assert events.Scalars("valid/like/auc")[0].step == 5


def test_missing_tensorboard_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(GemkitError, match=r"pip install"):
        TensorBoardWriter(tmp_path)


def test_flatten_leaves_surfaces_and_texts_out() -> None:
    row = {"step": 1, "split": "valid", "lr": 0.1, "like": METRICS["like"]}
    assert list(flatten(row)) == [
        ("", "lr", 0.1),
        ("like", "auc", 0.81234),
        ("like", "logloss", 0.5),
        ("like", "ne", 0.9),
        ("like", "examples", 123456.0),
    ]
