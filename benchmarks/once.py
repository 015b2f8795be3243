"""Runs of the command line that are not run again."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def trained(words: Sequence[str], folder: Path) -> Path:
    """The folder of a run of `gemkit train` with these words, in one thread; it is trained unless it is in `folder`."""
    if not (done := sorted(folder.glob("*/metrics.json"))):
        command = [str(Path(sys.executable).with_name("gemkit")), "train", *words, f"runs={folder}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        subprocess.run(command, cwd=ROOT, env=environment, check=True, stdout=subprocess.DEVNULL)
        done = sorted(folder.glob("*/metrics.json"))
    return done[-1].parent
