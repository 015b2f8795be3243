"""The training loop, in the order in which it runs."""

from __future__ import annotations

import contextlib
import itertools
import shlex
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gemkit.config.run import RunConfig
from gemkit.cost.mfu import utilisation
from gemkit.data.batch import Batch
from gemkit.errors import GemkitError
from gemkit.metrics.floor import floors, with_floors
from gemkit.metrics.names import is_better
from gemkit.prepare import Prepared
from gemkit.registry import Registry
from gemkit.runs.clock import Clock
from gemkit.runs.predictions import save_predictions
from gemkit.runs.progress import Bar, Progress
from gemkit.runs.startup import StartClock
from gemkit.runs.stopping import Stopped
from gemkit.runs.tables import print_run_end
from gemkit.runs.wording import key_metrics
from gemkit.schedule import schedule
from gemkit.session import evaluate_split, prefetched, to_device


def train(
    run: RunConfig,
    registry: Registry,
    resume: Path | None = None,
    progress: Progress | None = None,
    command: list[str] | None = None,
    started_s: float | None = None,
) -> dict[str, Any]:
    """Trains a model, evaluates its best checkpoint on the test split, and leaves a run folder.

    Args:
        resume: A run folder to go on with, from its last checkpoint.
        command: What reproduces the run, for command.txt.
        started_s: When the process began, on the clock of `time.perf_counter`; None: the run begins now.

    Returns:
        What metrics.json holds: ``{"test": {task: {...}}, "train": {...}}``.

    Raises:
        GemkitError: Something that the user can mend.
        Stopped: SIGINT or SIGTERM came; a checkpoint was written, from which the run can go on.
    """
    with contextlib.ExitStack() as resources:
        command = command or ["gemkit", "train"]
        start = StartClock(started_s)
        training = Training(run, registry, resume, progress or Progress(), command, resources, start)
        with training.stop:
            training.fit()
            return training.finish()


class Training(Prepared):
    """One training run, of what `Prepared` has made; the methods stand in the order in which they run."""

    def fit(self) -> None:
        """Trains to the last step, or until validations have stopped getting better."""
        state, size = self.state, self.run.train
        epoch_size = len(self.dataset.split("train"))
        total = min(size.epochs * epoch_size, self.total_steps * size.batch_size)
        self.model.dense.train()
        with self.progress, self.progress.task("train", total=total, done=state.examples) as bar:
            self.clock = Clock(state.train_s, state.examples, state.wait_s)
            self.validate_if_due()  # a run may have been stopped between a step and its validation
            self.start.ends("load")
            while not self.ended:
                batches = to_device(self.loader.epoch(state.epoch, start=state.batch), self.backend)
                batches = prefetched(batches, self.model.embeddings)
                for micro_batches in _groups(self.clock.waits(batches), size.accumulate):
                    with self.start.step():
                        loss = self.step(micro_batches)
                    bar.update(state.examples, loss=loss)
                    if state.batch >= len(self.loader):
                        state.epoch, state.batch = state.epoch + 1, 0
                    self.validate_if_due()
                    if size.checkpoint_every and state.step % size.checkpoint_every == 0 and not state.is_saved:
                        self.save()
                    self.stop_if_asked()
                    if self.ended or state.batch == 0:
                        break

    @property
    def ended(self) -> bool:
        """Whether there is nothing left to train."""
        return self.state.stopped or self.state.step >= self.total_steps

    def step(self, micro_batches: list[Batch]) -> Tensor:
        """One step of all optimisers; returns the last micro-batch's loss."""
        state, factor = self.state, schedule(self.run.optimizer, self.state.step, self.total_steps)
        for group in self.optimizer.param_groups:
            group["lr"] = self.run.optimizer.lr * factor
        for optimizer, lrs in zip(self.other_optimizers, self.other_lrs, strict=True):
            for group, lr in zip(optimizer.param_groups, lrs, strict=True):
                group["lr"] = lr * factor
        self.model.embeddings.set_lr(self.run.optimizer.embedding_lr * factor)
        if self.transfer:
            self.transfer.fresh = state.epoch == 0

        for i, batch in enumerate(micro_batches):
            with self.backend.accumulating(self.model.forward, more=i + 1 < len(micro_batches)):
                outputs = self.model(batch, self.transfer.taps if self.transfer else ())
                loss: Tensor = self.model.dense.head.loss(outputs.scores, batch)
                if self.transfer:
                    loss = loss + self.transfer.loss(outputs, self.transfer.answer(batch), batch)
                # The tables update inside backward, so a loss that is not finite must not get there; on a GPU this
                # waits for the device once a micro-batch.
                self._check_finite(loss, batch)
                self.backend.fabric.backward(loss / len(micro_batches))
            state.losses.append(loss.detach())
            state.examples += self.loader.num_examples(state.batch + i)
        if self.transfer:
            self.backend.average_gradients(self.transfer.parameters())
        clip_norm = self.run.train.clip_norm
        norm = self.backend.clip(self.model.forward, self.optimizer, clip_norm) if clip_norm else None
        # The student's comes last: a strategy that takes a parameter's gradient for itself keeps it from moving that.
        for optimizer in (*self.other_optimizers, self.optimizer):
            optimizer.step()
            optimizer.zero_grad()
        state.step += 1
        state.batch += len(micro_batches)
        self.backend.after_step(state.step, self.model.embeddings)
        self.balance.count(micro_batches)

        if state.step % self.run.train.log_every == 0:
            row = {"loss": float(self.backend.mean(torch.stack(state.losses)).mean())}
            row |= self.clock.lap(state.examples) | self.balance.lap(self.progress.print)
            row |= {"lr": self.run.optimizer.lr * factor} | ({} if norm is None else {"grad_norm": float(norm)})
            row |= self.transfer.report() if self.transfer else {}
            self.record("train", row)
            state.losses = []
        return loss.detach()

    def _check_finite(self, loss: Tensor, batch: Batch) -> None:
        bad = not torch.isfinite(loss)
        if not self.backend.agree(bad):
            return
        if not bad:  # waits for the process that ends, which says why: this call fails then
            self.backend.agree(False)
        ids = ", ".join(str(i) for i in batch.example_id[:10].tolist())
        raise GemkitError(
            f"the loss is {loss.item()} at step {self.state.step}",
            where=f"batch of {batch.size} examples; example ids {ids}{', ...' if batch.size > 10 else ''}",
            fix="lower optimizer.lr or optimizer.embedding_lr, or look at those examples; checkpoints are untouched",
        )

    def validate_if_due(self) -> None:
        """Validates after each `eval_every` steps or each epoch, and at the end; once at any step."""
        state, every = self.state, self.run.train.eval_every
        due = state.batch == 0 if every is None else state.step % every == 0
        if state.step > state.validated and (due or self.ended):
            self.validate()

    def validate(self) -> None:
        """Metrics of the validation split; keeps the best checkpoint and writes the last."""
        state, monitor = self.state, self.run.train.monitor
        self.model.embeddings.average()
        with self.clock.paused(), self.progress.task("validate", total=len(self.dataset.split("valid"))) as bar:
            metrics = evaluate_split(self.model, self.valid, self.backend, self.collector, self.advance(bar))
            self.record("valid", {"examples": state.examples} | metrics)
            first = self.model.schema.task_names[0]
            self.progress.print(f"step {state.step:,}: valid {first} {key_metrics(metrics[first])}")
            state.validated = state.step
            if metrics[first][monitor] is None and monitor != "logloss":
                if state.best_step == 0:
                    self.progress.print(
                        f"note: the valid split has no {monitor} for {first} (all its labels are alike, perhaps); "
                        "logloss picks the best checkpoint"
                    )
                monitor = "logloss"
            # The first is kept whatever it is: without any label in valid there is nothing to go by.
            if state.best_step == 0 or is_better(monitor, metrics[first][monitor], state.best):
                state.best, state.best_step, state.waited = metrics[first][monitor], state.step, 0
                state.save_best(self.folder.checkpoints)
            else:
                state.waited += 1
                state.stopped = self.run.train.patience is not None and state.waited >= self.run.train.patience
            self.save()

    def save(self) -> None:
        """Writes the last checkpoint.

        Raises:
            GemkitError: It cannot be written; says from where the run can go on.
        """
        self.state.train_s, self.state.wait_s = self.clock.seconds(), self.clock.wait_s
        try:
            self.state.save(self.folder.checkpoints)
        except GemkitError as error:
            fix = f"{error.fix or 'see to it'}; then: {self.resume_line} (earlier checkpoints are as they were)"
            raise GemkitError(error.what, where=error.where, allowed=error.allowed, fix=fix) from error

    def stop_if_asked(self) -> None:
        """Writes a checkpoint and ends the run, if SIGINT or SIGTERM came.

        Raises:
            Stopped: It did.
        """
        if self.backend.agree(self.stop.signal_number is not None):
            if not self.state.is_saved:  # after the last step it is, and the weights are those of the best
                self.save()
            self.state.saver.wait()
            step = f"step {self.state.step:,} of {self.total_steps:,}"
            message = f"stopped at {step}; a checkpoint is written\n  go on:   {self.resume_line}"
            raise Stopped(message, self.stop.signal_number or signal.SIGTERM)

    def advance(self, bar: Bar) -> Callable[[int], None]:
        """Counts examples of an evaluation, which can be stopped too: it is done again when the run goes on."""

        def count(examples: int) -> None:
            bar.advance(examples)
            self.stop_if_asked()

        return count

    @property
    def resume_line(self) -> str:
        """The command that goes on with this run."""
        return f"gemkit train --resume {shlex.quote(str(self.folder.path))}"

    def finish(self) -> dict[str, Any]:
        """Evaluates the best checkpoint on the test split and completes the run folder."""
        state = self.state
        state.load_best(self.folder.checkpoints)
        test = self.make_loader("test", self.run.train.eval_batch_size)
        with self.progress, self.progress.task("test", total=len(self.dataset.split("test"))) as bar:
            final = evaluate_split(self.model, test, self.backend, self.collector, self.advance(bar))
        wanted = self.run.train.save_predictions
        rows = self.collector.rows(self.backend.all_gather if self.backend.world_size > 1 else None) if wanted else {}
        if not self.first:
            return {}
        if wanted:
            save_predictions(self.folder.path, self.model.schema.task_names, {n: v.numpy() for n, v in rows.items()})
        device, examples_per_s = self.backend.fabric.device.type, state.examples / max(state.train_s, 1e-9)
        rate = examples_per_s / self.backend.world_size
        used = utilisation(self.model, self.registry, self.loader, device, rate, self.progress.print)
        metrics: dict[str, Any] = {
            "test": with_floors(final, floors(self.dataset, "test", self.collector.base_rates)),
            "train": {
                "examples_per_s": examples_per_s,
                "wall_s": state.train_s,
                "data_wait": state.wait_s / max(state.train_s, 1e-9),
                "params": self.model.num_parameters,
                "dense_params": self.model.num_dense_parameters,
                "steps": state.step,
                "best_step": state.best_step,
                "busy_s": self.balance.busy_s,
                "checkpoint_wait_s": state.saver.stall_s,
                "checkpoints": state.saver.saves,
                **used,
                **self.start.report(),
            },
        }
        self.folder.write_metrics(metrics)
        self.folder.draw_curves()
        if self.tensorboard:
            self.tensorboard.close()
        print_run_end(metrics, self.folder.path, self.progress.console)
        return metrics


def _groups(batches: Iterator[Batch], size: int) -> Iterator[list[Batch]]:
    while group := list(itertools.islice(batches, size)):
        yield group
