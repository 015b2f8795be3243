"""One of two processes, of which the first meets an error while the other one waits for it."""

from __future__ import annotations

import signal
import sys

import torch
import torch.distributed as dist

import gemkit.cli.config
from gemkit.cli.main import main
from gemkit.errors import GemkitError


def run(_: object) -> int:
    """In place of a subcommand's."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)  # as in training, where it is a wish
    dist.init_process_group("gloo")
    dist.barrier()
    if dist.get_rank() == 0:
        raise GemkitError("a bad row", where="clicks.csv, row 17")
    dist.all_reduce(torch.ones(1))
    return 0


if __name__ == "__main__":
    gemkit.cli.config.run = run  # type: ignore[assignment]
    sys.exit(main(["config"]))
