"""The training loop, in the order in which it runs."""

from __future__ import annotations

import contextlib
import itertools
import math
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemkit.component import KINDS
from gemkit.config.build import to_yaml
from gemkit.config.run import OptimizerConfig, RunConfig
from gemkit.data.batch import Batch
from gemkit.data.loader import Loader
from gemkit.errors import GemkitError
from gemkit.interfaces import ParallelBackend, TransferStrategy
from gemkit.metrics.collector import MetricCollector
from gemkit.metrics.names import is_better
from gemkit.nn.init import init_parameters
from gemkit.registry import Registry
from gemkit.runs.folder import RunFolder
from gemkit.runs.progress import Progress
from gemkit.runs.tables import print_run_end
from gemkit.runs.tensorboard import TensorBoardWriter
from gemkit.session import base_rates, build_model, evaluate_split, make_loader, open_dataset, to_device
from gemkit.state import TrainingState


def train(
    run: RunConfig,
    registry: Registry,
    resume: Path | None = None,
    progress: Progress | None = None,
    command: list[str] | None = None,
) -> dict[str, Any]:
    """Trains a model, evaluates its best checkpoint on the test split, and leaves a run folder.

    Args:
        resume: A run folder to go on with, from its last checkpoint.
        command: What reproduces the run, for command.txt.

    Returns:
        What metrics.json holds: ``{"test": {task: {...}}, "train": {...}}``.
    """
    training = Training(run, registry, resume, progress or Progress(), command or ["gemkit", "train"])
    training.fit()
    return training.finish()


class Training:
    """One training run; the methods stand in the order in which they run."""

    def __init__(
        self, run: RunConfig, registry: Registry, resume: Path | None, progress: Progress, command: list[str]
    ) -> None:
        """Sets everything up: backend, data, model, optimisers, run folder; goes back to a checkpoint if asked."""
        self.run, self.progress = run, progress
        if run.train.num_threads:
            torch.set_num_threads(run.train.num_threads)
        torch.manual_seed(run.seed)
        if torch.cuda.is_available():
            torch.use_deterministic_algorithms(True, warn_only=True)
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
        self.backend: ParallelBackend = registry.build("parallel", run.parallel)
        self.backend.launch(run)

        self.dataset = open_dataset(run, registry, progress)
        context = registry.context(dim=run.size.dim, schema=self.dataset.schema)
        self.transfer: TransferStrategy | None = registry.build("transfer", run.transfer, context)
        schema = self.transfer.extra_features(self.dataset.schema) if self.transfer else self.dataset.schema
        self.model = build_model(run, schema, registry, self.backend)
        if self.transfer:
            init_parameters(self.transfer, run.seed)
            self.transfer.to(self.backend.fabric.device)
            self.transfer.prepare(self.model.dense, self.model.embeddings)
        if run.train.compile:
            for block in self.model.dense.blocks:
                block.compile(dynamic=True)
        self.model.forward, self.optimizer = self.backend.place(self.model.dense, run.optimizer)
        self.other_optimizers = list(self.transfer.optimizers()) if self.transfer else []

        self.loader = self._loader("train", run.train.batch_size // run.train.accumulate)
        self.valid = self._loader("valid", run.train.eval_batch_size)
        steps_per_epoch = math.ceil(len(self.loader) / run.train.accumulate)
        self.total_steps = run.train.epochs * steps_per_epoch
        if run.train.max_steps is not None:
            self.total_steps = min(self.total_steps, run.train.max_steps)
        self.collector = MetricCollector(schema, base_rates(self.dataset))

        if resume is None:
            plugins = {plugin: version for plugin, _, version in _plugins_of(run, registry)}
            self.folder = RunFolder.create(Path(run.runs), _slug(run), to_yaml(run), command, plugins)
        else:
            self.folder = RunFolder.open(resume)
        self.state = TrainingState(
            schema, self.dataset.fingerprint, self.model, [self.optimizer, *self.other_optimizers], self.transfer
        )
        if resume is not None:
            self.state.load(self.folder.checkpoints / "last.safetensors")
            self.folder.rewind(self.state.step)
        self.tensorboard = TensorBoardWriter(self.folder.path / "tensorboard") if run.train.tensorboard else None
        progress.print(f"{_sentence(run)}\n{self.model.num_parameters:,} parameters, run folder {self.folder.path}")
        for note in _notes(run, self.backend.fabric.device.type):
            progress.print(note)

    def fit(self) -> None:
        """Trains to the last step, or until validations have stopped getting better."""
        state, size = self.state, self.run.train
        epoch_size = len(self.dataset.split("train"))
        total = min(size.epochs * epoch_size, self.total_steps * size.batch_size)
        self.model.dense.train()
        with self.progress, self.progress.task("train", total=total, done=state.examples) as bar:
            self.clock = Clock(state.train_s, state.examples)
            while not (state.stopped or state.step >= self.total_steps):
                batches = to_device(self.loader.epoch(state.epoch, start=state.batch), self.backend)
                for micro_batches in _groups(batches, size.accumulate):
                    loss = self.step(micro_batches)
                    bar.update(state.examples, loss=loss)
                    ended = state.batch >= len(self.loader)
                    if ended:
                        state.epoch, state.batch = state.epoch + 1, 0
                    last = state.step >= self.total_steps
                    due = ended if size.eval_every is None else state.step % size.eval_every == 0
                    if last or due:
                        self.validate()
                    if last or ended or state.stopped:
                        break

    def step(self, micro_batches: list[Batch]) -> Tensor:
        """One step of all optimisers; returns the last micro-batch's loss."""
        state, factor = self.state, schedule(self.run.optimizer, self.state.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.run.optimizer.lr * factor
        self.model.embeddings.set_lr(self.run.optimizer.embedding_lr * factor)

        for batch in micro_batches:
            outputs = self.model(batch, self.transfer.taps if self.transfer else ())
            loss: Tensor = self.model.dense.head.loss(outputs.logits, batch)
            if self.transfer:
                loss = loss + self.transfer.loss(outputs, self.transfer.answer(batch), batch)
            # The tables update inside backward, so a loss that is not finite must not get there; on a GPU this
            # waits for the device once a micro-batch.
            _check_finite(loss, batch, state.step)
            self.backend.fabric.backward(loss / len(micro_batches))
            self.clock.losses.append(loss.detach())
            state.examples += batch.size
        clip_norm = self.run.train.clip_norm
        norm = self.backend.clip(self.model.forward, self.optimizer, clip_norm) if clip_norm else None
        for optimizer in (self.optimizer, *self.other_optimizers):
            optimizer.step()
            optimizer.zero_grad()
        state.step += 1
        state.batch += len(micro_batches)

        if state.step % self.run.train.log_every == 0:
            row = self.clock.lap(state.examples) | {"lr": self.run.optimizer.lr * factor}
            self.record("train", row | ({} if norm is None else {"grad_norm": float(norm)}))
        return loss.detach()

    def validate(self) -> None:
        """Metrics of the validation split; keeps the best checkpoint and writes the last."""
        state, monitor = self.state, self.run.train.monitor
        state.train_s = self.clock.seconds()
        with self.clock.paused(), self.progress.task("validate", total=len(self.dataset.split("valid"))) as bar:
            metrics = evaluate_split(self.model, self.valid, self.backend, self.collector, bar.advance)
            self.record("valid", metrics)
            first = self.model.schema.task_names[0]
            self.progress.print(f"step {state.step:,}: valid {first} {_short(metrics[first])}")
            # The first is kept whatever it is: where the metric is undefined there is nothing better to go by.
            if state.best_step == 0 or is_better(monitor, metrics[first][monitor], state.best):
                state.best, state.best_step, state.waited = metrics[first][monitor], state.step, 0
                state.save_best(self.folder.checkpoints / "best.safetensors")
            else:
                state.waited += 1
                state.stopped = self.run.train.patience is not None and state.waited >= self.run.train.patience
            state.save(self.folder.checkpoints / "last.safetensors")

    def finish(self) -> dict[str, Any]:
        """Evaluates the best checkpoint on the test split and completes the run folder."""
        state = self.state
        state.load_best(self.folder.checkpoints / "best.safetensors")
        test = self._loader("test", self.run.train.eval_batch_size)
        with self.progress, self.progress.task("test", total=len(self.dataset.split("test"))) as bar:
            final = evaluate_split(self.model, test, self.backend, self.collector, bar.advance)
        metrics: dict[str, Any] = {
            "test": final,
            "train": {
                "examples_per_s": state.examples / max(state.train_s, 1e-9),
                "wall_s": state.train_s,
                "params": self.model.num_parameters,
                "steps": state.step,
                "best_step": state.best_step,
            },
        }
        self.folder.write_metrics(metrics)
        self.folder.draw_curves()
        if self.tensorboard:
            self.tensorboard.close()
        print_run_end(metrics, self.folder.path, self.progress.console)
        return metrics

    def record(self, split: str, values: dict[str, Any]) -> None:
        """A row of metrics.jsonl, and of TensorBoard if it is on."""
        self.folder.append(self.state.step, split, values)
        if self.tensorboard:
            self.tensorboard.append(self.state.step, split, values)

    def _loader(self, split: str, batch_size: int) -> Loader:
        return make_loader(self.run, self.dataset, self.model, self.backend, split, batch_size)


class Clock:
    """Seconds of training without the pauses, and the means between two rows of the log."""

    def __init__(self, before_s: float, examples: int) -> None:
        self._started_s = time.perf_counter() - before_s
        self._lap_s, self._lap_examples = time.perf_counter(), examples
        self.losses: list[Tensor] = []

    def seconds(self) -> float:
        """Since the start, what was trained before a resume included."""
        return time.perf_counter() - self._started_s

    def lap(self, examples: int) -> dict[str, float]:
        """Mean loss and examples/s since the last lap."""
        now_s = time.perf_counter()
        rate = (examples - self._lap_examples) / (now_s - self._lap_s)
        row = {"loss": float(torch.stack(self.losses).mean()), "examples_per_s": rate}
        self._lap_s, self._lap_examples, self.losses = now_s, examples, []
        return row

    @contextlib.contextmanager
    def paused(self) -> Iterator[None]:
        """Leaves out what happens inside."""
        before_s, started_s = time.perf_counter(), self._started_s
        try:
            yield
        finally:
            pause_s = time.perf_counter() - before_s
            self._started_s, self._lap_s = started_s + pause_s, self._lap_s + pause_s


def schedule(optimizer: OptimizerConfig, step: int, total_steps: int) -> float:
    """The learning rate of step `step` (from 0) as a fraction of its peak: linear warm-up, then the schedule."""
    if step < optimizer.warmup_steps:
        return (step + 1) / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return 1.0
    done = (step - optimizer.warmup_steps) / max(1, total_steps - optimizer.warmup_steps)
    left = 1.0 - done if optimizer.schedule == "linear" else 0.5 * (1.0 + math.cos(math.pi * done))
    return optimizer.final_lr_fraction + (1.0 - optimizer.final_lr_fraction) * left


def _groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while group := list(itertools.islice(batches, size)):
        yield group


def _check_finite(loss: Tensor, batch: Batch, step: int) -> None:
    if not torch.isfinite(loss):
        ids = ", ".join(str(i) for i in batch.example_id[:10].tolist())
        raise GemkitError(
            f"the loss is {loss.item()} at step {step}",
            where=f"batch of {batch.size} examples; example ids {ids}{', ...' if batch.size > 10 else ''}",
            fix="lower optimizer.lr or optimizer.embedding_lr, or look at those examples; checkpoints are untouched",
        )


def _sentence(run: RunConfig) -> str:
    words = [f"{kind}={config.name if (config := getattr(run, kind)) else 'none'}" for kind in KINDS]
    return " ".join(words)


def _slug(run: RunConfig) -> str:
    names = [getattr(run, kind).name for kind in ("interaction", "sequence", "cross") if getattr(run, kind)]
    return "-".join([run.data.folder_name, *(names or ["plain"])]) + f"_s{run.seed}"


def _notes(run: RunConfig, device: str) -> list[str]:
    notes = []
    if device == "cpu" and run.train.precision == "bf16":
        notes.append("note: bf16 on a CPU without AMX or AVX512 is many times slower than fp32")
    if run.cross is not None and run.sequence is None:
        notes.append(f"note: cross={run.cross.name} does nothing here, because sequence=none gives it no events")
    return notes


def _plugins_of(run: RunConfig, registry: Registry) -> list[tuple[str, str, str]]:
    named = [(kind, getattr(run, kind)) for kind in KINDS]
    return [registry.plugin_of(kind, config.name) for kind, config in named if config is not None]


def _short(metrics: dict[str, Any]) -> str:
    shown = ("auc", "logloss", "ne")
    return ", ".join(f"{name} {metrics[name]:.4f}" for name in shown if metrics.get(name) is not None)
