"""Every shipped tile compiles for A100 and H100 without a GPU, spills nothing, and has the instructions it should."""

from __future__ import annotations

import importlib
import itertools
import subprocess
import sys

import pytest
from gemkit_kernels import OPS

pytest.importorskip("triton")


@pytest.mark.parametrize("architecture", ["80", "90"])
@pytest.mark.parametrize("op", OPS)
def test_shipped_tiles(op: str, architecture: str) -> None:
    command = [sys.executable, "-m", "gemkit_kernels.aot", op, "--architecture", architecture]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, "\n".join(_faults(done.stdout)) + done.stderr[-4000:]
    shipped = importlib.import_module(f"gemkit_kernels.{op}.triton").builds()
    builds = [build for build in shipped if int(architecture) in build.architectures]
    assert len(shipped) > 0 and (builds or op == "fp8")  # no GPU before Hopper's time converts to FP8
    for build in builds:
        assert f"{build.name}, sm_{architecture}: " in done.stdout


def test_faults_are_seen() -> None:
    from gemkit_kernels.aot import Machine, faults
    from gemkit_kernels.tiles import Build

    build = Build("b", None, {}, {}, 4, wgmma=True, pipelined=True)
    machine = Machine(255, 0, 1024, {"HGMMA": 4, "HMMA": 0}, 3)
    assert faults(build, 90, machine) == []
    assert faults(build, 90, machine._replace(stack_bytes=8))
    assert faults(build, 90, machine._replace(shared_bytes=2**18))
    assert faults(build, 90, machine._replace(matrix={"HGMMA": 0, "HMMA": 4}))
    assert faults(build, 90, machine._replace(copies=0))
    assert faults(build, 80, machine._replace(matrix={"HGMMA": 0, "HMMA": 4})) == []


def _faults(output: str) -> list[str]:
    pairs = itertools.pairwise(output.splitlines())
    return [f"{before}\n{line}" for before, line in pairs if line.startswith("    ")]
