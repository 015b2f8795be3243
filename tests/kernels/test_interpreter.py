"""The kernels in Triton's interpreter, each operation in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from gemkit_kernels import OPS

pytest.importorskip("triton")
HERE = Path(__file__).parent / "interpreted"


@pytest.mark.parametrize("op", OPS)
def test_kernels_equal_their_reference(op: str) -> None:
    assert _passed(op, "not slow") >= 3


@pytest.mark.slow
@pytest.mark.parametrize("op", ["chunk_attention", "jagged_attention"])
def test_kernels_equal_their_reference_with_more_options(op: str) -> None:
    assert _passed(op, "slow") >= 3


def _passed(op: str, which: str) -> int:
    """How many checks of an operation pass, which must be all that are asked for."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "-m", which, str(HERE / f"check_{op}.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and "skipped" not in done.stdout, done.stdout
    return int(passed.group(1))


def test_every_operation_has_checks() -> None:
    assert {path.stem for path in HERE.glob("check_*.py")} == {f"check_{op}" for op in OPS}
