"""Makes batches ahead of their use, in threads or in processes. Their order, and their bits, are those of no workers.

Threads share the opened data set, cost nothing to start, and hand a batch over for nothing. NumPy gives up the
interpreter's lock while it copies, but not in its many small steps. A process shares no lock, and pays for that: every
tensor of a batch goes through a file of shared memory, some ten milliseconds a batch. So one thread comes first, then
several, and processes where making a batch takes much longer than handing it over.

Worker processes come from a *fork server*: a process that has imported gemkit and done nothing else. A fork of the
training process itself would start faster, but would inherit its OpenMP and FBGEMM threads' locks without the threads
(a hang, now and then), the lock on the run folder, and the pages of the embedding tables, which then exist twice as
soon as training writes to them. So a worker opens the data set itself; the model is never sent to it.
"""

from __future__ import annotations

import collections
import itertools
import signal
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol, TypeVar

from gemkit.config.run import LoaderConfig
from gemkit.errors import GemkitError

THREADS = "gemkit-loader"
"""Threads have names that begin so."""

T = TypeVar("T")


def start_workers(config: LoaderConfig) -> None:
    """Starts the fork server, if worker processes will be wanted: it imports while the model is built and compiled."""
    if config.workers and config.worker_kind == "process":
        import multiprocessing.forkserver

        _context()
        multiprocessing.forkserver.ensure_running()


class Maker(Protocol):
    """Makes what has a number; sent to worker processes by pickling."""

    def __getitem__(self, number: int) -> Any: ...


def in_threads(make: Callable[[int], T], numbers: Sequence[int], workers: int, ahead: int) -> Iterator[T]:
    """``make(number)`` for each number, in this order; up to `ahead` are made before they are asked for.

    What `make` raises is raised here. Closing the iterator waits for the calls that are running, and ends all threads.
    """
    pool = ThreadPoolExecutor(workers, thread_name_prefix=THREADS)
    running: collections.deque[Future[T]] = collections.deque()
    rest = iter(numbers)
    try:
        running.extend(pool.submit(make, number) for number in itertools.islice(rest, max(workers, ahead) + 1))
        while running:
            made = running.popleft().result()
            running.extend(pool.submit(make, number) for number in itertools.islice(rest, 1))
            yield made
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def in_processes(maker: Maker, finish: Callable[[Any], T], numbers: range, workers: int, ahead: int) -> Iterator[T]:
    """``finish(maker[number])`` for each number, in this order: made in processes, finished in a thread of this one.

    Closing the iterator ends all processes.

    Raises:
        GemkitError: A worker was killed. What `maker` or `finish` raise is raised here too.
    """
    import torch
    from torch.utils.data import DataLoader

    loader: DataLoader[Any] = DataLoader(
        _Caught(maker),  # type: ignore[arg-type]  # of a Dataset only __getitem__ is used
        batch_size=None,
        sampler=numbers,
        num_workers=workers,
        prefetch_factor=-(-ahead // workers),
        collate_fn=_as_it_is,
        worker_init_fn=_ignore_signals,
        multiprocessing_context=_context(),
        generator=torch.Generator(),  # else it would draw from the stream that dropout draws from
    )
    batches: Any = iter(loader)

    failed = False

    def finished(_: int) -> T:
        nonlocal failed
        if failed:  # PyTorch would wait for the batches of a dead worker for ever
            raise RuntimeError("the loader has failed at an earlier batch")
        try:
            made = next(batches)
        except Exception as error:
            failed = True
            if "exited unexpectedly" not in str(error):
                raise
            raise GemkitError(
                "a worker process of the loader was killed",
                where="loader.workers",
                fix="see whether memory or /dev/shm has run out; fewer workers, a smaller loader.prefetch, or "
                "loader.worker_kind=thread need less",
            ) from error
        if isinstance(made, GemkitError):
            raise made
        return finish(made)

    try:
        yield from in_threads(finished, numbers, 1, ahead)
    finally:
        # PyTorch does this when the iterator is gone; the frames of an error would keep it.
        batches._shutdown_workers()


def _context() -> Any:
    """Worker processes come from a fork server that has imported what they need."""
    import torch

    context = torch.multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["gemkit.data.loader"])
    return context


class _Caught:
    """Sends a `GemkitError` home as it is; anything else, a defect, comes with the worker's traceback."""

    def __init__(self, maker: Maker) -> None:
        self.maker = maker

    def __getitem__(self, number: int) -> Any:
        try:
            return self.maker[number]
        except GemkitError as error:
            return error


def _as_it_is(value: Any) -> Any:
    return value


def _ignore_signals(_: int) -> None:
    # Ctrl-C and a scheduler's SIGTERM reach the whole group of processes. Training answers them with a checkpoint, for
    # which it may still want a batch; workers end when it closes them, or when it is gone.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
