"""Contracts of what a run needs around the model: data recipes, transfer strategies, parallel backends."""

from __future__ import annotations

import dataclasses
import functools
import json
import tempfile
from pathlib import Path
from typing import Any
from unittest import SkipTest

import torch
from torch import Tensor

from gemkit.config.compose import compose
from gemkit.config.run import RunConfig
from gemkit.data import prepare as data_prepare
from gemkit.data.batch import Batch
from gemkit.data.dataset import Dataset
from gemkit.data.schema import Schema
from gemkit.data.source import SPLITS
from gemkit.errors import GemkitError
from gemkit.interfaces import ParallelBackend, TransferStrategy
from gemkit.registry import load_registry
from gemkit.session import Model, build_model
from gemkit.testing import bench
from gemkit.testing.contracts_any import nudge
from gemkit.testing.subject import Contract, Subject
from gemkit.testing.tolerances import assert_close

# --- transfer -----------------------------------------------------------------------------------------------


def lives_through_its_life_cycle(subject: Subject) -> None:
    """Prepares, answers, adds a finite loss, trains what it brings along, and exports a model that predicts."""
    strategy, student, batch = _with_student(subject)
    before = [p.detach().clone() for p in strategy.parameters()]
    optimizers = list(strategy.optimizers())
    for _ in range(2):  # what begins at zero passes no gradient on before it has moved
        outputs, teacher = student(batch, strategy.taps), strategy.answer(batch)
        assert set(outputs.taps) == set(strategy.taps), f"taps are named block<i>.x: {strategy.taps}"
        loss = strategy.loss(outputs, teacher, batch)
        assert loss.shape == (), f"the loss has shape {tuple(loss.shape)}, not ()"
        assert torch.isfinite(loss), "the loss is not finite"
        label_loss: Tensor = student.dense.head.loss(outputs.logits, batch)
        (label_loss + loss).backward()
        for optimizer in optimizers:
            optimizer.step()
            optimizer.zero_grad()
    trained = {id(p) for o in optimizers for group in o.param_groups for p in group["params"]}
    for (name, parameter), old in zip(strategy.named_parameters(), before, strict=True):
        if id(parameter) in trained:
            assert not torch.equal(parameter, old), f"{name} has an optimiser but no gradient"
    exported = strategy.export(student.dense)
    logits = exported(strategy.with_features(batch), student.embeddings(batch.ids), ()).logits
    assert torch.isfinite(logits).all(), "the exported model does not predict finite logits"
    assert all(isinstance(v, float) for v in strategy.report().values()), "a report holds numbers"


def the_teacher_gets_no_gradient(subject: Subject) -> None:
    """Nothing of an answer leads back to the teacher."""
    strategy, _, batch = _with_student(subject)
    teacher = strategy.answer(batch)
    if teacher is not None:
        assert not any(t.requires_grad for t in teacher), "the teacher's answer requires a gradient"
        assert teacher.logits.shape == batch.labels.shape == teacher.known.shape, "the teacher answers other tasks"


def the_loss_does_not_depend_on_order(subject: Subject) -> None:
    """The same examples in another order have the same loss."""
    strategy, student, _ = _with_student(subject)
    student.dense.eval()
    strategy.fresh = False  # nothing is learned about these examples in between
    losses = []
    for rows in (bench.some_rows(), bench.some_rows()[::-1]):
        batch = _batch(rows, student)
        losses.append(strategy.loss(student(batch, strategy.taps), strategy.answer(batch), batch))
    assert_close(losses[1], losses[0], "loss in another order")


def extra_features_keep_the_rest(subject: Subject) -> None:
    """The student's schema has all that the data set's has."""
    schema = bench.dataset().schema
    extended: Schema = subject.build().extra_features(schema)
    assert extended.tasks == schema.tasks and extended.event_fields == schema.event_fields, "tasks or events changed"
    assert set(schema.feature_tables) <= set(extended.feature_tables), "features are missing"


def _with_student(subject: Subject) -> tuple[TransferStrategy, Model, Batch]:
    strategy: TransferStrategy = subject.build().train()
    run = _run()
    backend: ParallelBackend = load_registry().build("parallel", run.parallel)
    backend.launch(run)
    schema = strategy.extra_features(bench.dataset().schema)
    student = build_model(run, schema, load_registry(), backend)
    strategy.prepare(student.dense, student.embeddings)
    student.features = strategy.with_features
    return strategy, student, _batch(bench.some_rows(), student)


@functools.cache
def _run() -> RunConfig:
    return compose(["data=table", f"size.dim={bench.DIM}", "parallel.accelerator=cpu"], load_registry())


def _batch(rows: tuple[int, ...], student: Model) -> Batch:
    return bench.make_batch(student.dense.shares_histories, student.dense.layout, rows)


# --- parallel -----------------------------------------------------------------------------------------------


def tables_are_views(subject: Subject) -> None:
    """Writing to what `tables()` returns changes what lookups return; row counts are the schema's."""
    tables = _tables(subject)
    weights, schema = tables.tables(), bench.dataset().schema
    wanted = {t.name: (t.num_embeddings, bench.DIM) for t in schema.tables}
    assert {name: tuple(w.shape) for name, w in weights.items()} == wanted
    assert {name: tuple(s.shape) for name, s in tables.optimizer_state().items()} == {
        name: shape[:1] for name, shape in wanted.items()
    }
    for name, weight in weights.items():
        weight.copy_(bench.noise(f"written/{name}", *weight.shape))
    ids = _ids()
    for key, rows in tables(ids).items():
        table = schema.feature_tables[key]
        expected = bench.noise(f"written/{table}", *wanted[table])[ids[key]].to(weights[table].dtype)
        assert_close(rows.cpu(), expected, f"lookup of {key} after writing to tables()")


def lookups_of_some_features(subject: Subject) -> None:
    """A batch without histories looks up the other features alone."""
    tables, ids = _tables(subject), _ids()
    some = {key: value for key, value in ids.items() if not key.startswith("events.")}
    whole, part = tables(ids), tables(some)
    assert set(part) == set(some)
    for key, rows in part.items():
        assert_close(rows, whole[key], f"lookup of {key}")


def tables_start_from_seed_and_name(subject: Subject) -> None:
    """Same seed, same tables; another seed, others."""
    first, again, other = (_tables(subject, seed).tables() for seed in (1, 1, 2))
    for name, weight in first.items():
        assert torch.equal(weight, again[name]), f"table {name} is not initialised from (seed, name)"
        assert not torch.equal(weight, other[name]), f"table {name} does not depend on the seed"


def tables_follow_rowwise_adagrad(subject: Subject) -> None:
    """Three steps equal a plain double-precision derivation: one sum of squares a row, gradients summed first."""
    tables, ids, schema = _tables(subject), _ids(), bench.dataset().schema
    run = _run()
    eps = run.optimizer.embedding_eps
    weights = {name: w.double().cpu() for name, w in tables.tables().items()}
    squares = {name: torch.zeros(w.shape[0], dtype=torch.float64) for name, w in weights.items()}
    for step, lr in enumerate((0.05, 0.02, 0.1)):
        tables.set_lr(lr)
        factors = {key: bench.noise(f"gradient{step}/{key}", len(i), bench.DIM) for key, i in ids.items()}
        looked_up = tables(ids)
        torch.stack([(looked_up[key] * factor).sum() for key, factor in factors.items()]).sum().backward()
        for name, weight in weights.items():
            gradient = torch.zeros_like(weight)
            for key, table in schema.feature_tables.items():
                if table == name:
                    gradient.index_add_(0, ids[key], factors[key].double())
            squares[name] += gradient.square().mean(1)
            weight -= lr * gradient / (squares[name].sqrt() + eps).unsqueeze(1)
    for name in weights:
        assert_close(tables.tables()[name].cpu(), weights[name], f"table {name} after three steps")
        assert_close(tables.optimizer_state()[name].cpu(), squares[name], f"sums of squares of table {name}")


def shares_of_the_data_add_up(subject: Subject) -> None:
    """`rank` is one of `world_size`, and gathering returns every rank's rows."""
    backend = _backend(subject)
    assert 0 <= backend.rank < backend.world_size
    values = torch.arange(6.0, device=backend.fabric.device).view(3, 2)
    assert backend.all_gather(values).shape[0] == 3 * backend.world_size


def placing_gives_an_optimiser_that_clips(subject: Subject) -> None:
    """The placed model computes the same, its optimiser moves it, and clipping returns the norm from before."""
    backend = _backend(subject)
    bare = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.Tanh(), torch.nn.Linear(3, 1))
    nudge(bare)
    x = bench.noise("placed", 8, 4)
    expected = bare(x).detach()
    expected_norm = _gradient_norm(bare, x)
    model, optimizer = backend.place(bare.to(backend.fabric.device), _run().optimizer)
    x = x.to(backend.fabric.device)
    assert_close(model(x).detach().cpu(), expected, "output of the placed model")
    backend.fabric.backward(model(x).square().sum())
    assert_close(backend.clip(model, optimizer, 1e-3).cpu(), expected_norm, "norm before clipping")
    clipped = torch.stack([p.grad.norm() for p in model.parameters() if p.grad is not None]).norm()
    assert float(clipped) < 1.001e-3, f"the gradient's norm is {float(clipped)} after clipping to 1e-3"
    before = [p.detach().clone() for p in model.parameters()]
    optimizer.step()
    assert all(not torch.equal(a, b) for a, b in zip(before, model.parameters(), strict=True)), "a parameter stayed"


def _gradient_norm(model: torch.nn.Module, x: Tensor) -> Tensor:
    gradients = torch.autograd.grad(model(x).square().sum(), list(model.parameters()))
    norm: Tensor = torch.cat([g.flatten() for g in gradients]).norm()
    return norm


def _backend(subject: Subject) -> ParallelBackend:
    backend: ParallelBackend = subject.spec.cls(subject.config)
    try:
        backend.launch(dataclasses.replace(_run(), parallel=subject.config))
    except GemkitError as error:
        raise SkipTest(f"this machine cannot: {error.what}") from error
    return backend


def _tables(subject: Subject, seed: int = bench.SEED) -> Any:
    backend = _backend(subject)
    try:
        return backend.build_embeddings(bench.dataset().schema, bench.DIM, _run().optimizer, seed)
    except GemkitError as error:
        raise SkipTest(f"this machine cannot: {error.what}") from error


def _ids() -> dict[str, Tensor]:
    return bench.make_inputs(torch.nn.Identity(), bench.some_rows()).batch.ids


# --- data ---------------------------------------------------------------------------------------------------


def build_options_survive_json(subject: Subject) -> None:
    """The manifest keeps them, and a data set is built again when they differ: a tuple would always differ."""
    options = subject.config.build_options
    assert json.loads(json.dumps(options)) == options, f"build_options changed on their way through JSON: {options}"
    elsewhere = dataclasses.replace(subject.config, root="elsewhere", max_history=7)
    assert elsewhere.build_options == options, "build_options depend on `root` or `max_history`, which build nothing"


def folder_is_one_name(subject: Subject) -> None:
    """The data set lives in a folder of its own inside `root`."""
    name = subject.config.folder_name
    assert name and Path(name).name == name and name != "raw", f"folder_name is {name!r}"


def builds_a_data_set(subject: Subject) -> None:
    """Fetches, builds, opens; a second time does nothing; every split has labels of every task."""
    with tempfile.TemporaryDirectory() as folder:
        config = dataclasses.replace(subject.config, root=folder)
        dataset = data_prepare.prepare(subject.spec, config, lambda *_: None, lambda *_: None, lambda _: None)
        assert data_prepare.is_current(config), "the data set that was just built counts as outdated"
        again: Dataset = data_prepare.prepare(subject.spec, config, lambda *_: None, lambda *_: None, lambda _: None)
        assert again.fingerprint == dataset.fingerprint
        assert dataset.schema.tasks, "there is no task"
        for split in SPLITS:
            rows = dataset.split(split)
            assert len(rows), f"the {split} split is empty"
            for task in dataset.schema.task_names:
                assert (dataset.columns[task][rows] >= 0).any(), f"task {task} has no label in the {split} split"


CONTRACTS = (
    Contract(lives_through_its_life_cycle, ("transfer",)),
    Contract(the_teacher_gets_no_gradient, ("transfer",)),
    Contract(the_loss_does_not_depend_on_order, ("transfer",)),
    Contract(extra_features_keep_the_rest, ("transfer",)),
    Contract(tables_are_views, ("parallel",)),
    Contract(lookups_of_some_features, ("parallel",)),
    Contract(tables_start_from_seed_and_name, ("parallel",)),
    Contract(tables_follow_rowwise_adagrad, ("parallel",)),
    Contract(shares_of_the_data_add_up, ("parallel",)),
    Contract(placing_gives_an_optimiser_that_clips, ("parallel",)),
    Contract(build_options_survive_json, ("data",)),
    Contract(folder_is_one_name, ("data",)),
    Contract(builds_a_data_set, ("data",), given=True),
)
