"""An error in one process ends all of them, and is said once."""

from __future__ import annotations

import pytest
from launch import HERE, torchrun

pytestmark = pytest.mark.xdist_group("processes")
"""One after the other: four processes are enough for a machine."""


def test_the_others_say_that_it_was_not_them() -> None:
    done = torchrun(2, str(HERE / "ending_worker.py"), timeout_s=60.0)
    assert done.returncode != 0
    said = [line for line in done.stdout.splitlines() if line.startswith("error: ")]
    assert sorted(said) == [
        "error: a bad row",
        "error: another process has ended, or has not answered within parallel.timeout_s; its output says why",
    ]
    assert "a defect of" not in done.stdout
