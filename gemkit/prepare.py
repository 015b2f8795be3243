"""What a training run needs before its first step, in the order in which it is made."""

from __future__ import annotations

import contextlib
import math
from pathlib import Path
from typing import Any

import torch

from gemkit.compilation.blocks import compile_blocks
from gemkit.config.build import load_run_config, to_yaml
from gemkit.config.run import RunConfig
from gemkit.cost.recompute import recomputed_for
from gemkit.data.loader import Loader
from gemkit.data.workers import start_workers
from gemkit.interfaces import ParallelBackend, TransferStrategy
from gemkit.metrics.collector import MetricCollector
from gemkit.nn.init import init_parameters
from gemkit.registry import Registry
from gemkit.runs.balance import LoadBalance
from gemkit.runs.files import write_text
from gemkit.runs.folder import CONFIG
from gemkit.runs.freed_memory import keep_freed_memory
from gemkit.runs.opening import open_folder
from gemkit.runs.progress import Progress
from gemkit.runs.rng import seed_rng
from gemkit.runs.startup import StartClock
from gemkit.runs.stopping import StopRequest
from gemkit.runs.tensorboard import TensorBoardWriter
from gemkit.runs.wording import notes, sentence
from gemkit.session import base_rates, build_model, make_loader, newest_trained, open_dataset
from gemkit.starting import start_from
from gemkit.state import TrainingState, check_room


class Prepared:
    """Backend, data, model, optimisers, loaders and run folder; back at a checkpoint if that was asked.

    Args:
        resume: A run folder to go on with, from its last checkpoint.
        command: What reproduces the run, for command.txt.
        resources: Closes the run folder's lock and log when the run is over.
        start: Says where the time until the first step went.

    Raises:
        GemkitError: Something that the user can mend.
    """

    def __init__(
        self,
        run: RunConfig,
        registry: Registry,
        resume: Path | None,
        progress: Progress,
        command: list[str],
        resources: contextlib.ExitStack,
        start: StartClock | None = None,
    ) -> None:
        self.run, self.registry, self.progress = run, registry, progress
        self.start = start or StartClock()
        self.start.ends("import")
        self._launch()
        self.start.ends("build")
        self.dataset = open_dataset(run, registry, progress, self.backend)
        self.start.ends("data")
        self._build(resources)
        self.start.ends("build")
        self._read()
        self.start.ends("data")
        self._open(resume, command, resources)
        self._choose_recomputed()

    def _launch(self) -> None:
        """This process, and the others if there are several."""
        run = self.run
        start_workers(run.loader)
        if run.train.num_threads:
            torch.set_num_threads(run.train.num_threads)
        if torch.cuda.is_available():
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self.backend: ParallelBackend = self.registry.build("parallel", run.parallel)
        self.backend.launch(run)
        keep_freed_memory(self.backend.fabric.device)
        self.first = self.backend.rank == 0
        self.progress.quiet |= not self.first
        seed_rng(run.seed + self.backend.rank)

    def _build(self, resources: contextlib.ExitStack) -> None:
        """The model, what teaches it, and their optimisers."""
        run, registry, schema = self.run, self.registry, self.dataset.schema
        context = registry.context(dim=run.size.dim, schema=schema)
        self.transfer: TransferStrategy | None = registry.build("transfer", run.transfer, context)
        if self.transfer:
            schema = self.transfer.extra_features(schema)
        self.model = build_model(run, schema, registry, self.backend)
        if self.transfer:
            self.transfer.prepare(self.model.dense, self.model.embeddings)
            init_parameters(self.transfer, run.seed)
            self.transfer.to(self.backend.fabric.device)
            self.transfer.processes = self.backend
            self.model.dense.check_taps(self.transfer.taps)
            self.model.features = self.transfer.with_features
        if run.train.compile:
            compile_blocks(self.model.dense.blocks, run.train.compile_cache)
            resources.enter_context(self.start.counting_compilation())
        self.model.forward, self.optimizer = self.backend.place(self.model.dense, run.optimizer)
        self.other_optimizers = list(self.transfer.optimizers()) if self.transfer else []
        self.other_lrs = [[group["lr"] for group in o.param_groups] for o in self.other_optimizers]

    def _read(self) -> None:
        """Loaders, and how many steps they make."""
        size = self.run.train
        self.loader = self.make_loader("train", size.batch_size // size.accumulate)
        self.valid = self.make_loader("valid", size.eval_batch_size)
        self.total_steps = size.epochs * math.ceil(len(self.loader) / size.accumulate)
        if size.max_steps is not None:
            self.total_steps = min(self.total_steps, size.max_steps)
        self.collector = MetricCollector(self.model.schema, base_rates(self.dataset))

    def _open(self, resume: Path | None, command: list[str], resources: contextlib.ExitStack) -> None:
        """The run folder, and the state that it holds or that another run begins with."""
        run, progress = self.run, self.progress
        self.folder, resumed = open_folder(run, self.registry, self.backend, resume, command, progress, resources)
        self.state = TrainingState(
            self.model.schema,
            self.dataset.fingerprint,
            self.model,
            [self.optimizer, *self.other_optimizers],
            self.transfer,
            self.backend,
            newest_trained(self.dataset),
        )
        check_room(self.state, self.folder.checkpoints, run.train)
        self.start.ends("build")
        loaded = resumed and self.state.load(self.folder.checkpoints, progress.print)
        if run.train.start_from is not None and not loaded:
            start_from(self.state, Path(run.train.start_from), progress.print)
        if resumed and self.first:
            self.folder.rewind(self.state.step)
            if load_run_config(self.folder.path / CONFIG, self.registry) != run:
                write_text(self.folder.path / CONFIG, to_yaml(run))
                progress.print("config.yaml holds the new values")
        self.balance = LoadBalance(self.backend)
        wanted = run.train.tensorboard and self.first
        self.tensorboard = TensorBoardWriter(self.folder.path / "tensorboard") if wanted else None
        self.stop = StopRequest()
        progress.print(f"{sentence(run)}\n{self.model.num_parameters:,} parameters, run folder {self.folder.path}")
        for note in notes(run, self.backend.fabric.device.type):
            progress.print(note)

    def _choose_recomputed(self) -> None:
        """Which blocks are recomputed, if there is a budget for what they keep."""
        budget = self.run.train.activation_budget
        if budget == 1:
            return
        blocks: tuple[int, ...] = ()
        if self.first:  # counting takes a while, so one process does it for all
            choice = recomputed_for(self.model, self.registry, self.dataset, self.backend.world_size)
            self.progress.print(choice.note(budget))
            blocks = choice.blocks
        self.model.dense.recomputed = self.backend.broadcast(blocks)

    def make_loader(self, split: str, batch_size: int) -> Loader:
        """Reads a split for this run's model, this process's share of it."""
        return make_loader(self.run, self.dataset, self.model, self.backend, split, batch_size)

    def record(self, split: str, values: dict[str, Any]) -> None:
        """A row of metrics.jsonl, and of TensorBoard if it is on; by the first process."""
        if not self.first:
            return
        self.folder.append(self.state.step, split, values)
        if self.tensorboard:
            self.tensorboard.append(self.state.step, split, values)
