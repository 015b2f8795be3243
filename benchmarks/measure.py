"""Timing on a machine that others share: processor time, sides in turn, medians."""

from __future__ import annotations

import json
import multiprocessing
import resource
import statistics
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

RESULTS = Path(__file__).resolve().parent / "results"


def cpu_s(work: Callable[[], Any]) -> float:
    """Seconds of processor time, all threads together."""
    start = time.process_time()
    work()
    return time.process_time() - start


def in_turn(work: Mapping[str, Callable[[], Any]], rounds: int) -> dict[str, list[float]]:
    """Processor time of each, `rounds` times in turn, after a first time that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in work}
    for number in range(rounds + 1):
        for name, call in work.items():
            taken = cpu_s(call)
            if number:
                seconds[name].append(taken)
    return seconds


def median_ratio(numerators: list[float], denominators: list[float]) -> float:
    """The median of the ratios of one round each."""
    return statistics.median(a / b for a, b in zip(numerators, denominators, strict=True))


def in_a_process(work: Callable[[], Any]) -> Any:
    """What `work` returns in a forked process, and how far its memory rose above where it began, in bytes."""
    context = multiprocessing.get_context("fork")
    receiving, sending = context.Pipe(duplex=False)

    def child() -> None:
        sending.send(peak_above(work))

    process = context.Process(target=child)
    process.start()
    sending.close()
    try:
        return receiving.recv()
    finally:
        process.join()


def peak_above(work: Callable[[], Any]) -> tuple[Any, int]:
    """What `work` returns, and how far the process's memory rose above where it stood, in bytes."""
    _forget_peak()
    before = _rss()
    result = work()
    return result, max(_peak() - before, 0)


def _forget_peak() -> None:
    # A child inherits its parent's peak; Linux lets a process set its own back.
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")


def _rss() -> int:
    return _status("VmRSS")


def _peak() -> int:
    return _status("VmHWM")


def _status(key: str) -> int:
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(key + ":"):
            return int(line.split()[1]) * 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def machine() -> dict[str, Any]:
    """Processor, versions and commit, for the result file."""
    from gemkit.runs.environment import describe_environment

    found = describe_environment({})
    return {"cpu": found.get("cpu"), "torch": found["packages"]["torch"], "git": found.get("git")}


def write(name: str, report: Mapping[str, Any]) -> None:
    """Writes `results/<name>.json`."""
    path = RESULTS / f"{name}.json"
    path.write_text(json.dumps(report, indent=2) + "\n", encoding="utf-8")
    print(path)
