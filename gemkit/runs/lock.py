"""One process at a time in a run folder."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import filelock

from gemkit.errors import GemkitError
from gemkit.runs.files import write_text, writing_failed

LOCK, OWNER = ".lock", ".owner.json"


@contextlib.contextmanager
def locked(run: Path) -> Iterator[None]:
    """Holds the run folder's lock. The operating system frees the lock of a process that dies.

    Raises:
        GemkitError: Another process holds it, or the folder cannot be written.
    """
    lock = filelock.FileLock(run / LOCK, timeout=0)
    try:
        lock.acquire()
    except filelock.Timeout as error:
        raise GemkitError(
            f"{run} is in use by {describe_owner(run)}",
            where=str(run),
            fix="wait until it has ended, or end it; two runs never write into one folder",
        ) from error
    except OSError as error:
        raise writing_failed(run / LOCK, error.errno or 0) from error
    try:
        now = datetime.datetime.now().astimezone().isoformat(timespec="seconds")
        owner = {"pid": os.getpid(), "host": socket.gethostname(), "since": now}
        write_text(run / OWNER, json.dumps(owner) + "\n")
        yield
    finally:
        (run / OWNER).unlink(missing_ok=True)
        lock.release()


def is_locked(run: Path) -> bool:
    """Whether a process works in the run folder now. Does not write into a folder that nobody has locked before."""
    if not (run / LOCK).exists():
        return False
    try:
        with filelock.FileLock(run / LOCK, timeout=0):
            return False
    except filelock.Timeout:
        return True
    except OSError:  # read-only: nobody can work in it
        return False


def describe_owner(run: Path) -> str:
    """Who holds the lock, for people."""
    try:
        owner = json.loads((run / OWNER).read_text(encoding="utf-8"))
        return f"process {owner['pid']} on {owner['host']} since {owner['since']}"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"
