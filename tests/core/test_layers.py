"""Blocks that differ from each other: the section `layers`."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gemkit.config.compose import compose, load_run_config, to_yaml
from gemkit.errors import GemkitError
from gemkit.model import GEM
from gemkit.nn.init import init_parameters
from gemkit.registry import load_registry
from gemkit.runs.wording import sentence, slug
from gemkit.testing import bench
from gemkit.testing.runs import silent, tiny_run
from gemkit.train import train

BASE = ("data=table", "size.dim=16", "size.num_tokens=6")


def model_of(*overrides: str) -> GEM:
    model = GEM(compose([*BASE, *overrides], load_registry()), bench.dataset().schema, load_registry())
    init_parameters(model, 1)
    return model.eval()


def logits_of(model: GEM, rows: tuple[int, ...] | None = None) -> torch.Tensor:
    batch = bench.make_batch(model.shares_histories, model.layout, rows)
    if not model.reads_events:
        batch = batch._replace(history=None)
    return model(batch, bench.embed(batch)).logits


def test_the_list_starts_again() -> None:
    run = compose([*BASE, "size.num_blocks=4", "layers=[{},{interaction:cross_net,sequence:none}]"], load_registry())
    assert [b.interaction.name for b in run.blocks] == ["wukong", "cross_net", "wukong", "cross_net"]
    assert [b.sequence is None for b in run.blocks] == [False, True, False, True]
    assert "interaction=wukong|cross_net sequence=pyramid|none" in sentence(run)
    assert "wukong+cross_net-pyramid+none-interformer" in slug(run)


def test_options_without_a_name_change_those_of_the_run_and_a_name_starts_from_its_defaults() -> None:
    words = ["interaction.rank=5", "interaction.hidden=[7]"]
    layers = "layers=[{interaction:{rank:3}},{interaction:{name:wukong,rank:3}}]"
    first, second = compose([*BASE, *words, layers], load_registry()).blocks
    assert (first.interaction.rank, first.interaction.hidden) == (3, (7,))
    assert (second.interaction.rank, second.interaction.hidden) == (3, (256,))


def test_a_stack_can_contract() -> None:
    words = ["size.num_blocks=3", "layers=[{num_tokens:12},{num_tokens:5},{num_tokens:2}]"]
    model = model_of(*words, "cross=none", "sequence=none")
    assert [block.interaction.num_tokens_out for block in model.blocks] == [12, 5, 2]
    assert model.readout.width == 2 * 16
    assert torch.isfinite(logits_of(model)).all()


def test_the_same_entry_everywhere_is_no_entry() -> None:
    plain, spelled = model_of(), model_of("layers=[{num_tokens:6,interaction:{name:wukong}},{sequence:{}}]")
    assert torch.equal(logits_of(plain), logits_of(spelled))


def test_each_encoder_gets_its_own_plan() -> None:
    mixed = ["size.num_blocks=3", "layers=[{sequence:{chunk_sizes:[4]}},{sequence:{chunk_sizes:[16]}},{}]"]
    model = model_of(*mixed)
    batch = bench.make_batch(model.shares_histories, model.layout)
    assert batch.history is not None and len(batch.history.layout.plan) == 2  # the default is [16] too
    # Padding of other histories must not matter: an example alone says what it says among others.
    rows = bench.some_rows()
    together = logits_of(model, rows)
    alone = torch.cat([logits_of(model, (row,)) for row in rows])
    torch.testing.assert_close(alone, together, rtol=1e-4, atol=1e-5)


def test_an_encoder_after_one_that_shortens_plans_for_what_is_left() -> None:
    model = model_of("layers=[{sequence:mean_pooling},{sequence:pyramid}]")
    batch = bench.make_batch(model.shares_histories, model.layout)
    assert batch.history is not None
    _, second = batch.history.layout.plan
    assert second.levels[0].slots.position.shape[0] == batch.history.offsets.shape[0] - 1
    assert torch.isfinite(logits_of(model)).all()


def test_a_run_may_have_an_encoder_in_a_layer_only() -> None:
    model = model_of("sequence=none", "layers=[{},{sequence:mean_pooling}]")
    assert model.reads_events and model.blocks[0].sequence is None and model.blocks[1].sequence is not None
    model = model_of("layers=[{sequence:none}]")
    assert not model.reads_events


def test_it_trains_is_saved_and_goes_on(tmp_path: Path) -> None:
    layers = "layers=[{num_tokens:8},{interaction:cross_net,sequence:mean_pooling,cross:{flow:s2n}}]"
    run = tiny_run(tmp_path, "train.max_steps=3", layers)
    assert train(run, load_registry(), progress=silent())["train"]["steps"] == 3
    folder = next((tmp_path / "runs").iterdir())
    again = load_run_config(folder / "config.yaml", load_registry())
    assert again == run and to_yaml(again) == to_yaml(run)
    assert "gemkit_example" in (folder / "environment.json").read_text()


@pytest.mark.parametrize(
    ("words", "what", "where"),
    [
        (["layers={interaction:wukong}"], "has the wrong type", "layers"),
        (["layers=[wukong]"], "has the wrong type", "layers[0]"),
        (["layers=[{},{},{}]"], "has 3 entries, and the model has 2 blocks", "layers"),
        (["layers=[{interactoin:wukong}]"], "unknown key layers[0].interactoin", "layers[0]"),
        (["layers=[{},{interaction:wukonk}]"], "unknown interaction 'wukonk'", "layers[1].interaction"),
        (["layers=[{interaction:{rnk:2}}]"], "unknown key layers[0].interaction.rnk", "layers[0].interaction"),
        (["layers=[{num_tokens:0}]"], "layers[0].num_tokens = 0 is out of range", "layers[0].num_tokens"),
        (["layers=[{},{num_tokens:1}]"], "leaves no token", "layers[1], size.num_tokens"),
        (["layers=[{sequence:{num_heads:3}}]"], "does not divide", "layers[0], sequence.num_heads"),
        (["interaction=none", "layers=[{interaction:{rank:2}}]"], "which is none", "layers[0].interaction"),
    ],
)
def test_errors_name_the_entry(words: list[str], what: str, where: str) -> None:
    with pytest.raises(GemkitError, match=r".") as caught:
        compose([*BASE, *words], load_registry())
    assert what in caught.value.what and caught.value.where == where
