"""What a resumed run may have changed on the command line, and what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from gemkit.cli.main import main
from gemkit.config.build import load_run_config, to_yaml
from gemkit.config.resume import MAY_CHANGE, resumed_config
from gemkit.config.run import RunConfig
from gemkit.errors import GemkitError
from gemkit.registry import load_registry
from gemkit.runs import checkpoint, keeping
from gemkit.runs.folder import RunFolder
from gemkit.testing.runs import silent, stopped_run, tiny_run
from gemkit.train import train

STEPS = ("train.max_steps=6", "train.checkpoint_every=3", "tokenizer.dropout=0.1")


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    """The config of some run, in a folder of its own."""
    path = tmp_path / "run" / "config.yaml"
    path.parent.mkdir()
    options = ["parallel=hsdp", "parallel.dp_shard=2", "parallel.sharding=row_wise", "train.max_steps=3"]
    path.write_text(to_yaml(tiny_run(tmp_path, *options)), encoding="utf-8")
    return path


def resumed(path: Path, *words: str) -> RunConfig:
    return resumed_config(path, words, load_registry())


def test_values_are_set_and_all_else_stays(saved: Path) -> None:
    before = load_run_config(saved, load_registry())
    assert resumed(saved) == before
    after = resumed(saved, "train.num_threads=3", "loader.workers=2", "parallel.dp_shard=null", "runs=elsewhere")
    assert (after.train.num_threads, after.loader.workers, after.runs) == (3, 2, "elsewhere")
    assert (after.parallel.dp_shard, after.parallel.sharding) == (None, "row_wise")
    assert (after.size, after.optimizer, after.data, after.interaction) == (
        *(before.size, before.optimizer, before.data, before.interaction),
    )


def test_another_backend_begins_with_its_defaults(saved: Path) -> None:
    after = resumed(saved, "parallel.sparse_groups=2", "parallel=hsdp")
    assert (after.parallel.sparse_groups, after.parallel.dp_shard, after.parallel.sharding) == (2, None, "auto")
    assert resumed(saved, "parallel=single").parallel.name == "single"


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["seed=2"], ["seed cannot be changed", "parallel, runs, train.num_threads"]),
        (["train.epochs=9"], ["train.epochs cannot be changed"]),
        (["size=large"], ["size cannot be changed"]),
        (["data.max_history=3"], ["data.max_history cannot be changed"]),
        (["parallel=singel"], ["'singel'", "did you mean 'single'"]),
        (["parallel.dp_shrad=1"], ["dp_shrad", "did you mean 'dp_shard'"]),
        (["parallel.dp_shard=0"], ["parallel.dp_shard = 0", ">= 1"]),
        (["~train.num_threads"], ["~train.num_threads has no value"]),
        (["nonsense"], ["nonsense"]),
        (["parallel.tables[0]=1"], ["cannot read the override"]),
        (["parallel.tables.sharding=auto"], ["parallel.tables.sharding is a part of a value"]),
    ],
)
def test_what_is_trained_stays(saved: Path, words: list[str], told: list[str]) -> None:
    with pytest.raises(GemkitError) as caught:
        resumed(saved, *words)
    text = str(caught.value)
    assert [word for word in told if word not in text] == [], text


def test_every_value_that_may_change_exists(saved: Path) -> None:
    run = load_run_config(saved, load_registry())
    for key in MAY_CHANGE:
        value: object = run
        for name in key.split("."):
            assert hasattr(value, name), key
            value = getattr(value, name)


def test_a_run_goes_on_with_the_new_values_and_the_same_bits(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    registry = load_registry()
    train(tiny_run(tmp_path, *STEPS, f"runs={tmp_path / 'whole'}"), registry, progress=silent())
    run = tiny_run(tmp_path, *STEPS, f"runs={tmp_path / 'stopped'}")
    folder = stopped_run(run)
    assert main(["train", "--resume", str(folder.path), "train.epochs=9"]) == 2
    assert "train.epochs cannot be changed" in capsys.readouterr().err
    words = ["train.activation_budget=0.5", "loader.workers=2", "parallel.embeddings=torch"]
    assert main(["train", "--resume", str(folder.path), *words]) == 0
    kept = load_run_config(folder.path / "config.yaml", registry)
    assert (kept.train.activation_budget, kept.loader.workers, kept.parallel.embeddings) == (0.5, 2, "torch")
    (path,) = (tmp_path / "whole").iterdir()
    first, second = (checkpoint.load(f.checkpoints / keeping.LAST)[0] for f in (RunFolder.open(path), folder))
    assert first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def test_a_checkpoint_of_other_precision_is_refused_and_the_config_stays(tmp_path: Path) -> None:
    registry = load_registry()
    train(tiny_run(tmp_path, *STEPS, f"runs={tmp_path / 'runs'}"), registry, progress=silent())
    (path,) = (tmp_path / "runs").iterdir()
    before = (path / "config.yaml").read_text(encoding="utf-8")
    run = resumed_config(path / "config.yaml", ["parallel.embedding_precision=fp16"], registry)
    with pytest.raises(GemkitError, match="embedding_precision: fp16 here, fp32 in the checkpoint"):
        train(run, registry, path, progress=silent())
    assert (path / "config.yaml").read_text(encoding="utf-8") == before
