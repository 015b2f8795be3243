"""Compiles kernels for a GPU without having one, and reads what the compiler made of them.

    python -m gemkit_kernels.aot [OP ...] [--architecture 80 | 90]

Prints one line for each shipped tile and architecture. Ends with code 1 if a tile spills registers to memory, takes
more shared memory than a block may have, or lacks instructions that it was meant to use.
"""

from __future__ import annotations

import argparse
import importlib
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

from gemkit_kernels import OPS
from gemkit_kernels.tiles import Build

ARCHITECTURES = (80, 90)
SHARED_BYTES = {80: 163 * 1024, 90: 227 * 1024}
"""What one block may have at most."""


class Machine(NamedTuple):
    """The machine code of one tile.

    Attributes:
        stack_bytes: Local memory of a thread: what registers did not hold.
        matrix: Matrix instructions: HGMMA is Hopper's wgmma, HMMA the older kind. Counted, like `copies`, only for
            tiles that are meant to have some.
        copies: Loads from global to shared memory that the program does not wait for.
    """

    registers: int
    stack_bytes: int
    shared_bytes: int
    matrix: dict[str, int]
    copies: int


def compile_build(build: Build, architecture: int) -> Machine:
    """Compiles for compute capability `architecture` / 10."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    names = build.kernel.arg_names
    constants = {n: build.constants[n] for n in names if n in build.constants}
    signature = {n: build.arguments.get(n, "constexpr") for n in names}
    # Tensors begin at multiples of 16 bytes, as they do when a kernel is started from PyTorch.
    attrs = {(i,): [["tt.divisibility", 16]] for i, n in enumerate(names) if signature[n].startswith("*")}
    source = ASTSource(fn=build.kernel, signature=signature, constexprs=constants, attrs=attrs)
    options = {"num_warps": build.num_warps, "num_stages": build.num_stages}
    compiled = triton.compile(source, target=GPUTarget("cuda", architecture, 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        report = _tool("cuobjdump", "-res-usage", str(cubin))
        # A third of the time, so only where instructions are asked for.
        code = _tool("cuobjdump", "-sass", str(cubin)) if build.wgmma or build.pipelined else ""
    registers, stack = (int(re.findall(rf"{word}:(\d+)", report)[0]) for word in ("REG", "STACK"))
    matrix = {word: len(re.findall(rf"\b{word}\.", code)) for word in ("HGMMA", "HMMA", "QGMMA")}
    copies = len(re.findall(r"\b(?:LDGSTS|UTMALDG)\b", code))
    return Machine(registers, stack, compiled.metadata.shared, matrix, copies)


def faults(build: Build, architecture: int, machine: Machine) -> list[str]:
    """What is wrong with a tile."""
    found = []
    if machine.stack_bytes:
        found.append(f"spills {machine.stack_bytes} bytes of each thread")
    if machine.shared_bytes > SHARED_BYTES[architecture]:
        found.append(f"takes {machine.shared_bytes} bytes of shared memory, a block has {SHARED_BYTES[architecture]}")
    if build.wgmma and architecture >= 90 and not machine.matrix["HGMMA"]:
        found.append("has no HGMMA")
    if build.pipelined and not machine.copies:
        found.append("waits for its loads: no LDGSTS")
    return found


def builds(op: str) -> list[Build]:
    """The tiles that `op` ships."""
    found: list[Build] = importlib.import_module(f"gemkit_kernels.{op}.triton").builds()
    return found


def main() -> int:
    """See the module."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("ops", nargs="*", metavar="OP", help=f"of {', '.join(OPS)}; all of them by default")
    parser.add_argument("--architecture", type=int, choices=ARCHITECTURES)
    options = parser.parse_args()
    bad = 0
    for op in options.ops or OPS:
        for build in builds(op):
            for architecture in build.architectures:
                if options.architecture not in (None, architecture):
                    continue
                machine = compile_build(build, architecture)
                wrong = faults(build, architecture, machine)
                bad += bool(wrong)
                matrix = " ".join(f"{n} {word}" for word, n in machine.matrix.items() if n)
                print(
                    f"{op}: {build.name}, sm_{architecture}: {machine.registers} registers, "
                    f"{machine.shared_bytes} bytes shared, {matrix or 'instructions not asked for'}"
                    f"{', ' if machine.copies else ''}{machine.copies or ''}{' LDGSTS' if machine.copies else ''}"
                    + "".join(f"\n    {fault}" for fault in wrong),
                    flush=True,
                )
    return int(bad > 0)


def _tool(name: str, *arguments: str) -> str:
    """Output of one of the CUDA tools that come with Triton."""
    import triton

    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / name
    done = subprocess.run([str(path), *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"{name} failed:\n{done.stderr}")
    return done.stdout + done.stderr


if __name__ == "__main__":
    sys.exit(main())
