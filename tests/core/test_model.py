"""The assembled model: every combination of blocks trains."""

from __future__ import annotations

import itertools
import math
from pathlib import Path

import pytest
import torch

from gemkit.config.compose import compose
from gemkit.errors import GemkitError
from gemkit.model import GEM
from gemkit.nn.init import init_parameters
from gemkit.registry import load_registry
from gemkit.runs.folder import RunFolder
from gemkit.testing import bench
from gemkit.testing.runs import silent, tiny_run
from gemkit.train import train

COMBINATIONS = list(itertools.product(("wukong", "none"), ("pyramid", "mean_pooling", "none"), ("interformer", "none")))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("runs")


@pytest.mark.parametrize(("interaction", "sequence", "cross"), COMBINATIONS, ids=["-".join(c) for c in COMBINATIONS])
def test_every_combination_trains(folder: Path, tmp_path: Path, interaction: str, sequence: str, cross: str) -> None:
    overrides = [f"interaction={interaction}", f"sequence={sequence}", "train.max_steps=3"]
    # A cross layer that is asked for by name needs events; the default one steps back.
    if sequence != "none" or cross == "none":
        overrides.append(f"cross={cross}")
    run = tiny_run(folder, *overrides, f"runs={tmp_path}")
    metrics = train(run, load_registry(), progress=silent())
    assert metrics["train"]["steps"] == 3
    losses = [row["loss"] for row in RunFolder.open(next(tmp_path.iterdir())).rows() if row["split"] == "train"]
    assert len(losses) == 3 and all(math.isfinite(loss) for loss in losses)
    for task in ("click", "buy"):
        assert 0 < metrics["test"][task]["logloss"] < 2 and metrics["test"][task]["auc"] is not None


@pytest.mark.parametrize("flow", ["sole", "sep", "n2s", "s2n"])
def test_every_flow_trains(folder: Path, tmp_path: Path, flow: str) -> None:
    run = tiny_run(folder, f"cross.flow={flow}", "train.max_steps=2", f"runs={tmp_path}")
    assert train(run, load_registry(), progress=silent())["train"]["steps"] == 2


def test_the_surface_embedding_trains(folder: Path, tmp_path: Path) -> None:
    run = tiny_run(folder, "domain=surface_embedding", "train.max_steps=2", f"runs={tmp_path}")
    assert train(run, load_registry(), progress=silent())["train"]["steps"] == 2


def test_a_data_set_without_events_wants_no_encoder(folder: Path, tmp_path: Path) -> None:
    run = tiny_run(folder / "plain", "train.max_steps=2", with_events=False)
    with pytest.raises(GemkitError, match="needs histories") as caught:
        train(run, load_registry(), progress=silent())
    assert caught.value.fix == "sequence=none"
    run = tiny_run(folder / "plain", "train.max_steps=2", "sequence=none", with_events=False)
    assert train(run, load_registry(), progress=silent())["train"]["steps"] == 2


def test_models_that_differ_in_one_block_share_their_other_first_weights() -> None:
    states = []
    for encoder in ("pyramid", "mean_pooling"):
        states.append(fresh_model(f"sequence={encoder}").state_dict())
    common = states[0].keys() & states[1].keys()
    assert len(common) > 40 and "readout.pool.queries" in common
    assert all(torch.equal(states[0][name], states[1][name]) for name in common)


def test_every_parameter_of_the_default_model_learns() -> None:
    model = fresh_model()
    batch = bench.make_batch(model.shares_histories, model.layout)
    model.head.loss(model(batch, bench.embed(batch)).logits, batch).backward()
    idle = [name for name, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    assert not idle


def fresh_model(*overrides: str) -> GEM:
    run = compose(["data=table", f"size.dim={bench.DIM}", *overrides], load_registry())
    model = GEM(run, bench.dataset().schema, load_registry())
    init_parameters(model, 1)
    return model
