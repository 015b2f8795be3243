"""Where compiled code is kept, and for which machines it is good.

What torch.compile leaves behind is machine code for one processor, made by one compiler for one build of PyTorch.
PyTorch's own keys do not hold all of that (on a CPU it compiles with ``-march=native``, whatever that means where it
runs), so each environment has a folder of its own.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import platform
import re
import subprocess
from pathlib import Path

from gemkit.errors import GemkitError
from gemkit.runs.files import writing_failed

VARIABLE = "TORCHINDUCTOR_CACHE_DIR"
"""PyTorch's own variable of the environment; where it is set, it wins."""
TRITON_VARIABLE = "TRITON_CACHE_DIR"
NONE = "none"

_KEY = re.compile(r"[0-9a-f]{16}")


def default_root() -> Path:
    """The user's own folder for compiled code, where the XDG base directory specification puts caches."""
    home = Path(os.environ.get("XDG_CACHE_HOME", ""))  # a relative one is to be ignored, says the specification
    return (home if home.is_absolute() else Path.home() / ".cache") / "gemkit" / "compiled"


def compiled_folder(root: Path | None = None) -> Path:
    """Where this machine's compiled code is kept: `TORCHINDUCTOR_CACHE_DIR`, or the environment's folder in `root`.

    Args:
        root: None: `default_root()`.
    """
    return named_folder() or (root or default_root()).absolute() / key_of(environment())


def named_folder() -> Path | None:
    """The folder that the user has named by PyTorch's own variable."""
    named = os.environ.get(VARIABLE)
    if not named:
        return None
    from torch._inductor.runtime.cache_dir_utils import default_cache_dir

    # PyTorch sets the variable too when its compiler is imported, to its default: a folder in /tmp.
    return None if Path(named) == Path(default_cache_dir()).absolute() else Path(named).absolute()


def keep_compiled_code(root: Path | None = None) -> Path:
    """Has PyTorch and Triton keep what this process compiles, and look there first.

    The first call decides for the whole process: PyTorch remembers the folder.

    Raises:
        GemkitError: The folder cannot be made.
    """
    folder = compiled_folder(root)
    make_private(folder)
    os.environ[VARIABLE] = str(folder)
    os.environ.setdefault(TRITON_VARIABLE, str(folder / "triton"))
    return folder


def make_private(folder: Path) -> None:
    """Makes a folder that only its user can write: whoever writes there has their code run.

    Raises:
        GemkitError: It cannot be made.
    """
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        failed = writing_failed(folder, error.errno or 0)
        raise GemkitError(failed.what, where=str(folder), fix="train.compile_cache=FOLDER") from error


@functools.cache
def environment() -> dict[str, str]:
    """What compiled code depends on, besides what was compiled."""
    import torch

    compiler, instructions = _compiler()
    gpus = sorted({torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())})
    return {
        "torch": torch.__version__,
        "triton": _triton(),
        "python": f"{platform.python_implementation()} {'.'.join(platform.python_version_tuple()[:2])}",
        "system": " ".join([platform.system(), platform.machine(), *platform.libc_ver()]).strip(),
        "compiler": compiler,
        "instructions": instructions,
        "gpu": ", ".join(gpus) or NONE,
    }


def key_of(facts: dict[str, str]) -> str:
    """The name of an environment's folder. Shape: 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:16]


def is_key(name: str) -> bool:
    """Whether a folder has such a name; other folders are not ours."""
    return _KEY.fullmatch(name) is not None


def differences(found: dict[str, str], own: dict[str, str]) -> str:
    """In what two environments differ, for people."""
    return "; ".join(f"{name} {found[name]}, here {own[name]}" for name in own if found[name] != own[name])


def _triton() -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version("triton")
    except PackageNotFoundError:
        return NONE


def _compiler() -> tuple[str, str]:
    """The C++ compiler that PyTorch calls, and a hash of what it makes of ``-march=native`` on this processor.

    A compiler's predefined macros name its version and every set of instructions that it will use.
    """
    command = os.environ.get("CXX") or ("clang++" if platform.system() == "Darwin" else "g++")
    for native in (["-march=native"], []):  # not every compiler knows it
        question = [command, *native, "-dM", "-E", "-x", "c++", os.devnull]
        try:
            done = subprocess.run(question, capture_output=True, text=True, check=False)
        except OSError:
            return NONE, NONE
        if done.returncode == 0:
            macros = sorted(done.stdout.splitlines())
            version = next((m.partition("__VERSION__ ")[2].strip('"') for m in macros if "__VERSION__ " in m), NONE)
            return version, hashlib.sha256("\n".join(macros).encode()).hexdigest()[:16]
    return command, NONE
