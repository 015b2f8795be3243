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
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", str(HERE / f"check_{op}.py")]
    environment = {**os.environ, "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=600)
    assert done.returncode == 0, done.stdout[-8000:] + done.stderr[-2000:]
    passed = re.search(r"(\d+) passed", done.stdout)
    assert passed and int(passed.group(1)) >= 3 and "skipped" not in done.stdout, done.stdout


def test_every_operation_has_checks() -> None:
    assert {path.stem for path in HERE.glob("check_*.py")} == {f"check_{op}" for op in OPS}
