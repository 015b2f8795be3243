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


OF_COMPONENTS = "gemkit_kernels"
"""The logger through which operations say which path they take; each message is written once a run."""


class _Once(logging.Handler):
    """Hands messages on to a run's logger, each once."""

    def __init__(self, logger: logging.Logger) -> None:
        super().__init__()
        self.logger, self.seen = logger, set[str]()

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message not in self.seen:
            self.seen.add(message)
            self.logger.info("%s", message)


@contextlib.contextmanager
def logged(run: Path, progress: Progress) -> Iterator[None]:
    """Writes what `progress` prints to log.txt too, with times, which path each operation takes, and why it ended."""
    handler = logging.handlers.RotatingFileHandler(
        run / NAME, maxBytes=MAX_BYTES, backupCount=OLDER, encoding="utf-8", delay=True
    )
    handler.setFormatter(logging.Formatter("%(asctime)s  %(message)s"))
    logger = logging.Logger(f"gemkit.run.{run.name}")  # of its own: loggers by name live as long as the process
    logger.addHandler(handler)
    before, progress.log = progress.log, logger.info
    components, once = logging.getLogger(OF_COMPONENTS), _Once(logger)
    level, propagates = components.level, components.propagate
    components.addHandler(once)
    components.setLevel(logging.INFO)
    # Libraries give the root logger a handler that prints: a line on the terminal for each operation of each step.
    components.propagate = False
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
        components.removeHandler(once)
        components.setLevel(level)
        components.propagate = propagates
        handler.close()
