"""Shipped tiles compile for A100 and H100 without a GPU, spill nothing, and have the instructions they should.

Every tile takes minutes, in `make test-all`; in `make test` each kernel has one, for H100.
"""

from __future__ import annotations

import itertools
import subprocess
import sys

import pytest
from gemkit_kernels import OPS

pytest.importorskip("triton")


@pytest.mark.parametrize("op", OPS)
def test_a_tile_of_each_kernel(op: str) -> None:
    """With and without each set of options that a tile ships with; of several tiles, one from which most is asked."""
    from gemkit_kernels.aot import builds, compile_build, faults
    from gemkit_kernels.tiles import Build

    def code(build: Build) -> tuple[str, ...]:
        switches = (f"{name}={v}" for name, v in build.constants.items() if v is None or isinstance(v, bool))
        return build.kernel.__name__, *sorted(switches)

    asked = sorted(builds(op), key=lambda build: build.wgmma + build.pipelined)
    chosen = {code(build): build for build in asked if 90 in build.architectures}
    assert len(chosen) >= 2 and chosen.keys() == {code(build) for build in asked}
    for build in chosen.values():
        machine = compile_build(build, 90)
        assert machine.registers > 0 and faults(build, 90, machine) == [], (build.name, machine)


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ["80", "90"])
@pytest.mark.parametrize("op", OPS)
def test_shipped_tiles(op: str, architecture: str) -> None:
    from gemkit_kernels.aot import builds

    command = [sys.executable, "-m", "gemkit_kernels.aot", op, "--architecture", architecture]
    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert done.returncode == 0, "\n".join(_faults(done.stdout)) + done.stderr[-4000:]
    shipped = builds(op)
    chosen = [build for build in shipped if int(architecture) in build.architectures]
    assert len(shipped) > 0 and (chosen or op == "fp8")  # no GPU before Hopper's time converts to FP8
    for build in chosen:
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


def test_faults_are_printed_and_end_with_code_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from gemkit_kernels import aot
    from gemkit_kernels.tiles import Build

    stack_bytes = {"good": 0, "bad": 8}
    builds = [Build(name, None, {}, {}, 4, architectures=(90,)) for name in stack_bytes]
    monkeypatch.setattr(aot, "builds", lambda op: builds if op == "fp8" else builds[:1])
    monkeypatch.setattr(aot, "compile_build", lambda b, _: aot.Machine(255, stack_bytes[b.name], 1024, {"HMMA": 2}, 0))
    for words, code, lines in (([], 1, len(OPS) + 2), (["gdpa"], 0, 1), (["fp8", "--architecture", "80"], 0, 0)):
        monkeypatch.setattr(sys, "argv", ["aot", *words])
        assert aot.main() == code
        shown = capsys.readouterr().out
        assert len(shown.splitlines()) == lines
        assert _faults(shown) == (
            ["fp8: bad, sm_90: 255 registers, 1024 bytes shared, 2 HMMA\n    spills 8 bytes of each thread"]
            if code
            else []
        )


def _faults(output: str) -> list[str]:
    pairs = itertools.pairwise(output.splitlines())
    return [f"{before}\n{line}" for before, line in pairs if line.startswith("    ")]
