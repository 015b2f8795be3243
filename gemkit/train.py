"""The training loop, in the order in which it runs."""

from __future__ import annotations

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
from gemkit.errors import GemkitError
from gemkit.interfaces import TransferStrategy
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
        What metrics.json holds: ``{"test": {task: {...}}, "valid": ..., "train": {...}}``.
    """
    progress = progress or Progress()
    if run.train.num_threads:
        torch.set_num_threads(run.train.num_threads)
    torch.manual_seed(run.seed)
    if torch.cuda.is_available():
        torch.use_deterministic_algorithms(True, warn_only=True)
        torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    backend = registry.build("parallel", run.parallel)
    backend.launch(run)

    dataset = open_dataset(run, registry, progress)
    context = registry.context(dim=run.size.dim, schema=dataset.schema)
    transfer: TransferStrategy | None = registry.build("transfer", run.transfer, context)
    schema = transfer.extra_features(dataset.schema) if transfer else dataset.schema
    model = build_model(run, schema, registry, backend)
    if transfer:
        init_parameters(transfer, run.seed)
        transfer.to(backend.fabric.device)
        transfer.prepare(model.dense, model.embeddings)
    if run.train.compile:
        for block in model.dense.blocks:
            block.compile(dynamic=True)
    model.forward, optimizer = backend.place(model.dense, run.optimizer)
    others = list(transfer.optimizers()) if transfer else []
    micro_batch_size = run.train.batch_size // run.train.accumulate
    loader = make_loader(run, dataset, model, backend, "train", micro_batch_size)
    valid = make_loader(run, dataset, model, backend, "valid", run.train.eval_batch_size)
    steps_per_epoch = math.ceil(len(loader) / run.train.accumulate)
    total_steps = min(run.train.epochs * steps_per_epoch, run.train.max_steps or 10**12)
    collector = MetricCollector(schema, base_rates(dataset))
    task = schema.task_names[0]

    if resume is None:
        plugins = {plugin: version for plugin, _, version in _plugins_of(run, registry)}
        folder = RunFolder.create(Path(run.runs), _slug(run), to_yaml(run), command or ["gemkit", "train"], plugins)
    else:
        folder = RunFolder.open(resume)
    state = TrainingState(run, schema, dataset.fingerprint, model, optimizer, transfer, others)
    if resume is not None:
        state.load(folder.checkpoints / "last.safetensors")
        folder.rewind(state.step)
    tensorboard = TensorBoardWriter(folder.path / "tensorboard") if run.train.tensorboard else None

    def record(split: str, values: dict[str, Any]) -> None:
        folder.append(state.step, split, values)
        if tensorboard:
            tensorboard.append(state.step, split, values)

    progress.print(f"{_sentence(run)}\n{model.num_parameters:,} parameters, run folder {folder.path}")
    for note in _notes(run, backend.fabric.device.type):
        progress.print(note)
    examples_per_epoch = len(dataset.split("train"))
    total = min(run.train.epochs * examples_per_epoch, total_steps * run.train.batch_size)
    model.dense.train()
    with progress, progress.task("train", total=total, done=state.examples) as bar:
        started_s, examples_before = time.perf_counter() - state.train_s, state.examples
        logged_s, logged_examples, losses = time.perf_counter(), state.examples, []
        stop = state.finished(total_steps)
        while not stop:
            batches = to_device(loader.epoch(state.epoch, start=state.batch), backend)
            for micro_batches in _groups(batches, run.train.accumulate):
                lr_factor = schedule(run.optimizer, state.step, total_steps)
                for group in optimizer.param_groups:
                    group["lr"] = run.optimizer.lr * lr_factor
                model.embeddings.set_lr(run.optimizer.embedding_lr * lr_factor)

                for batch in micro_batches:
                    outputs = model(batch, transfer.taps if transfer else ())
                    loss: Tensor = model.dense.head.loss(outputs.logits, batch)
                    if transfer:
                        loss = loss + transfer.loss(outputs, transfer.answer(batch), batch)
                    _check_finite(loss, batch, state.step)
                    # The tables update inside backward, so a loss that is not finite must not get there.
                    backend.fabric.backward(loss / len(micro_batches))
                    losses.append(loss.detach())
                    state.examples += batch.size
                norm = backend.clip(model.forward, optimizer, run.train.clip_norm) if run.train.clip_norm else None
                optimizer.step()
                optimizer.zero_grad()
                for other in others:
                    other.step()
                    other.zero_grad()
                state.step += 1
                state.batch += len(micro_batches)
                bar.update(state.examples, loss=losses[-1])

                if state.step % run.train.log_every == 0:
                    now_s = time.perf_counter()
                    rate = (state.examples - logged_examples) / (now_s - logged_s)
                    mean = float(torch.stack(losses).mean())
                    row = {"loss": mean, "lr": run.optimizer.lr * lr_factor, "examples_per_s": rate}
                    record("train", row | ({"grad_norm": float(norm)} if norm is not None else {}))
                    logged_s, logged_examples, losses = now_s, state.examples, []

                epoch_ends = state.batch >= len(loader)
                stop = state.step >= total_steps
                if stop or (epoch_ends if run.train.eval_every is None else state.step % run.train.eval_every == 0):
                    before_s = time.perf_counter()
                    with progress.task("validate", total=len(dataset.split("valid"))) as inner:
                        metrics = evaluate_split(model, valid, backend, collector, inner.advance)
                    record("valid", metrics)
                    value = metrics[task][run.train.monitor]
                    progress.print(f"step {state.step:,}: valid {task} {_short(metrics[task])}")
                    if epoch_ends:
                        state.epoch, state.batch = state.epoch + 1, 0
                    if is_better(run.train.monitor, value, state.best):
                        state.best, state.best_step, state.waited = value, state.step, 0
                        state.save_best(folder.checkpoints / "best.safetensors")
                    else:
                        state.waited += 1
                        stop = stop or (run.train.patience is not None and state.waited >= run.train.patience)
                    state.stopped = stop
                    pause_s = time.perf_counter() - before_s
                    started_s, logged_s = started_s + pause_s, logged_s + pause_s
                    state.train_s = time.perf_counter() - started_s
                    state.save(folder.checkpoints / "last.safetensors")
                elif epoch_ends:
                    state.epoch, state.batch = state.epoch + 1, 0
                if stop or epoch_ends:
                    break
        train_s = state.train_s
        examples_per_s = (state.examples - examples_before) / max(time.perf_counter() - started_s, 1e-9)

    state.load_best(folder.checkpoints / "best.safetensors")
    test = make_loader(run, dataset, model, backend, "test", run.train.eval_batch_size)
    with progress, progress.task("test", total=len(dataset.split("test"))) as bar:
        final = evaluate_split(model, test, backend, collector, bar.advance)
    metrics = {
        "test": final,
        "train": {
            "examples_per_s": examples_per_s,
            "wall_s": train_s,
            "params": model.num_parameters,
            "steps": state.step,
            "best_step": state.best_step,
        },
    }
    folder.write_metrics(metrics)
    folder.draw_curves()
    if tensorboard:
        tensorboard.close()
    print_run_end(metrics, folder.path, progress.console)
    return metrics


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
            f"the loss is {float(loss)} at step {step}",
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
