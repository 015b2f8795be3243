"""log.txt: what a run printed, and the tracebacks of what went wrong; rotated, so that it never fills a disk."""

from __future__ import annotations

import contextlib
import logging
import logging.handlers
from collections.abc import Iterator
from pathlib import Path

from gemkit.errors import GemkitError
from gemkit.runs.progress import Progress
from gemkit.runs.stopping import Stopped

NAME = "log.txt"
MAX_BYTES = 5_000_000
OLDER = 3
"""Older files that are kept: log.txt.1 to log.txt.3."""


@contextlib.contextmanager
def logged(run: Path, progress: Progress) -> Iterator[None]:
    """Writes what `progress` prints to log.txt too, with times, and the reason of an end that is none."""
    handler = logging.handlers.RotatingFileHandler(
        run / NAME, maxBytes=MAX_BYTES, backupCount=OLDER, encoding="utf-8", delay=True
    )
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
    logger = logging.Logger(f"gemkit.run.{run.name}")  # of its own: loggers by name live as long as the process
    logger.addHandler(handler)
    before, progress.log = progress.log, logger.info
    try:
        yield
    except (GemkitError, Stopped) as ending:
        logger.info("%s", ending)
        raise
    except BaseException:
        logger.exception("ended by an exception")
        raise
    finally:
        progress.log = before
        handler.close()
