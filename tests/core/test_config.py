"""Composition: defaults, groups, overrides, experiments, saved configs, and what is refused."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from fake_plugins import broken_plugin, fake_registry, plugin

from gemkit.component import KINDS, OPTIONAL_KINDS
from gemkit.config.compose import GROUPS, choices, compose, compose_section, config_folders, load_run_config, to_yaml
from gemkit.config.fields import to_mapping
from gemkit.config.files import read_config_file
from gemkit.config.run import OptimizerConfig, SizeConfig, TrainConfig
from gemkit.config.study import read_study, studies_in
from gemkit.errors import GemkitError
from gemkit.registry import Registry, load_registry
from gemkit.studies.plan import make_plan


@pytest.fixture(scope="module")
def registry() -> Registry:
    return fake_registry()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A user's config folder, with a blank in its name."""
    files = {
        "interaction/big.yaml": "name: wukong\nrank: 64\n",
        "interaction/nameless.yaml": "rank: 64\n",
        "interaction/open.yaml": "name: wukong\nrank: ???\n",
        "interaction/broken.yaml": "name: wukong\nrank: [1,\nx: {\n",
        "experiment/tuned.yaml": "# @package _global_\ndefaults:\n  - override /interaction: wukong\n"
        "interaction: {rank: 5}\nsize: {dim: 8}\n",
        "experiment/gone.yaml": "# @package _global_\ndefaults:\n  - override /interaction: gone\n",
        "experiment/typo.yaml": "# @package _global_\ntrian: {epochs: 2}\n",
        "experiment/hidden.yaml": '# @package _global_\ndata: {root: "\\x24{oc.env:HOME}"}\n',
    }
    root = tmp_path / "my configs"
    for name, text in files.items():
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_text(text)
    return root


def test_defaults_are_those_of_the_dataclasses(registry: Registry) -> None:
    run = compose([], registry)
    assert (run.train, run.size, run.optimizer) == (TrainConfig(), SizeConfig(), OptimizerConfig())
    assert run.interaction == registry.config("interaction", "wukong")
    assert (run.domain, run.transfer, run.seed, run.runs) == (None, None, 1, "runs")


def test_overrides_of_values_and_groups(registry: Registry) -> None:
    run = compose(
        ["interaction=dcn", "interaction.depth=3", "sequence=none", "size=large", "optimizer.lr=1e-2"], registry
    )
    assert (run.interaction.name, run.interaction.depth) == ("dcn", 3)
    assert run.sequence is None
    assert run.size.dim > SizeConfig().dim
    assert run.optimizer.lr == 0.01


def test_the_last_override_wins(registry: Registry) -> None:
    run = compose(["seed=3", "interaction=dcn", "seed=4", "interaction=wukong"], registry)
    assert (run.seed, run.interaction.name) == (4, "wukong")


@pytest.mark.parametrize(
    "override", ["train.max_steps=null", "train.clip_norm=null", "sequence=null", "experiment=null"]
)
def test_null(registry: Registry, override: str) -> None:
    compose([override], registry)


@pytest.mark.parametrize("kind", sorted(OPTIONAL_KINDS))
def test_none_for_every_optional_kind(registry: Registry, kind: str) -> None:
    assert getattr(compose([f"{kind}=none"], registry), kind) is None


def test_yaml_files_of_a_user_folder_are_choices(registry: Registry, folder: Path) -> None:
    assert "big" in choices("interaction", registry, [folder])
    assert compose(["interaction=big"], registry, [folder]).interaction.rank == 64
    assert compose(["interaction=big", "interaction.rank=7"], registry, [folder]).interaction.rank == 7


def test_a_user_folder_may_replace_the_root(registry: Registry, tmp_path: Path) -> None:
    own = config_folders(registry)[0] / "gem.yaml"
    (tmp_path / "gem.yaml").write_text(own.read_text().replace("seed: 1", "seed: 77"))
    assert compose([], registry, [tmp_path]).seed == 77


def test_yaml_files_of_a_plugin_are_choices(folder: Path) -> None:
    registry = fake_registry(more=plugin(gemkit_config_folders=lambda: [folder]))
    assert compose(["experiment=tuned"], registry).size.dim == 8


def test_an_experiment_applies_while_its_choice_stands(registry: Registry, folder: Path) -> None:
    def run(*overrides: str) -> tuple[str | None, int]:
        composed = compose(["experiment=tuned", *overrides], registry, [folder])
        return composed.interaction and composed.interaction.name, composed.size.dim

    assert compose(["experiment=tuned"], registry, [folder]).interaction.rank == 5
    assert compose(["experiment=tuned", "interaction=wukong"], registry, [folder]).interaction.rank == 5
    assert run("interaction=dcn") == ("dcn", 8)  # dcn has no rank: the experiment's was meant for wukong
    assert run("interaction=none") == (None, 8)
    assert run("size=large")[1] == compose(["size=large"], registry).size.dim
    assert (
        compose(["experiment=tuned", "interaction=dcn", "interaction.depth=9"], registry, [folder]).interaction.depth
        == 9
    )


def test_the_shipped_experiment_and_ablations() -> None:
    registry = load_registry()
    run = compose(["experiment=movielens1m_autoint"], registry)
    assert (run.data.split, run.sequence, run.cross) == ("autoint", None, None)
    run = compose(["ablation=no_history"], registry)
    assert (run.sequence, run.cross) == (None, None)
    run = compose(["experiment=movielens1m_autoint", "ablation=no_interaction"], registry)
    assert (run.interaction, run.data.split) == (None, "autoint")


def test_every_shipped_study_composes_with_the_installed_plugins() -> None:
    installed = load_registry()
    studies = studies_in(config_folders(installed))
    assert {"movielens1m_autoint_interactions", "movielens1m_histories", "wukong_parts"} <= studies.keys()
    for name in studies:
        plan = make_plan(read_study(name, config_folders(installed)), installed)
        assert len(plan.variants) > 1


def test_saved_config_reads_back_the_same(registry: Registry, tmp_path: Path) -> None:
    run = compose(["interaction.rank=7", "sequence=none", "optimizer.eps=1e-12", "train.max_steps=5"], registry)
    (tmp_path / "config.yaml").write_text(to_yaml(run))
    assert load_run_config(tmp_path / "config.yaml", registry) == run
    assert "sequence: none" in to_yaml(run) and "_target_" not in to_yaml(run)


def test_a_broken_saved_config_names_the_file(registry: Registry, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    with pytest.raises(GemkitError, match="no saved config"):
        load_run_config(path, registry)
    path.write_text(to_yaml(compose([], registry)).replace("rank: 16", "rank: many"))
    with pytest.raises(GemkitError, match=r"interaction\.rank = 'many'") as caught:
        load_run_config(path, registry)
    assert str(path) in str(caught.value.where)
    path.write_text("seed: [1\n")
    with pytest.raises(GemkitError, match="broken YAML") as caught:
        load_run_config(path, registry)
    assert "line 2" in str(caught.value.where)
    path.write_text("seed: !!python/object/apply:os.system ['true']\n")
    with pytest.raises(GemkitError, match="broken YAML"):
        load_run_config(path, registry)


def test_a_file_is_read_as_it_is_now_and_nobody_changes_what_others_read(tmp_path: Path) -> None:
    path = tmp_path / "a.yaml"
    for text, expected in (("a: {b: [1]}", {"a": {"b": [1]}}), ("a: {b: [2]}", {"a": {"b": [2]}})):
        path.write_text(text)
        for _ in range(2):
            values = read_config_file(path).values
            assert values == expected
            values["a"]["b"].append(3)


def test_one_section_alone_needs_no_other_plugin() -> None:
    components = fake_registry().specs("data")
    only_data = Registry.from_plugins({"data": plugin(gemkit_components=lambda: [s.cls for s in components])})
    config = compose_section("data", ["data=movielens1m", "data.split=autoint"], only_data)
    assert (config.name, config.split) == ("movielens1m", "autoint")
    with pytest.raises(GemkitError, match=r"train\.epochs does not matter here"):
        compose_section("data", ["data=movielens1m", "train.epochs=1"], only_data)


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["interaction=wukogn"], ["unknown interaction 'wukogn'", "dcn, wukong, none", "'wukong'"]),
        (["interaction.rnak=4"], ["unknown key interaction.rnak", "rank, gate", "'rank'"]),
        (["interaction.rank=many"], ["interaction.rank = 'many'", "whole number"]),
        (["interaction.rank=0"], ["interaction.rank = 0", ">= 1"]),
        (["interaction.rank=1000"], ["interaction.rank = 1000", "<= 512"]),
        (["interaction.gate=sigmod"], ["interaction.gate = 'sigmod'", "sigmoid, none", "'sigmoid'"]),
        (["interaction._target_=os.system"], ["unknown key interaction._target_"]),
        (["trian.epochs=1"], ["unknown key trian.epochs", "train, size", "'train'"]),
        (["hydra.run.dir=/tmp"], ["unknown key hydra.run.dir"]),
        (["experiment.x=3"], ["unknown key experiment.x"]),
        (["interaction@x=wukong"], ["unknown key interaction@x"]),
        (["train=3"], ["train = 3 is a section", "train.epochs"]),
        (["train.epochs=0"], ["train.epochs = 0", ">= 1"]),
        (["train.epochs=1.5"], ["train.epochs = 1.5", "whole number"]),
        (["train.epochs.x=3"], ["train.epochs", "whole number"]),
        (["train.accumulate=3"], ["train.batch_size = 1024", "train.accumulate = 3"]),
        (["optimizer.lr=nan"], ["optimizer.lr = nan", "> 0"]),
        (["seed=-1"], ["seed = -1"]),
        (["runs=3"], ["runs = 3", "text"]),
        (["size=huge"], ["unknown size 'huge'", "large, medium, small"]),
        (["experiment=nope"], ["unknown experiment 'nope'", "movielens1m_autoint"]),
        (["head=none"], ["head cannot be left out", "multitask"]),
        (["data=null"], ["data cannot be left out", "movielens1m"]),
        (["interaction={rank: 3}"], ["the name of one choice", "dcn, wukong, none", "interaction.<key>"]),
        (["interaction=[wukong,dcn]"], ["the name of one choice"]),
        (["~interaction"], ["the name of one choice"]),
        (["interaction=wukong,dcn"], ["several values", "one value"]),
        (["train.epochs=range(1,3)"], ["several values"]),
        (["sequence=none", "sequence.chunk=8"], ["sequence.chunk has no meaning", "sequence is none"]),
        (["wukong"], ["cannot read the override 'wukong'", "section.key=value"]),
        (["data.root=${oc.env:HOME}"], ["interpolation is not supported"]),
        (["data.root=${runs}"], ["interpolation is not supported"]),
        (["~interaction.rank"], ["interaction.rank"]),
    ],
)
def test_refused_overrides(registry: Registry, overrides: list[str], words: list[str]) -> None:
    with pytest.raises(GemkitError) as caught:
        compose(overrides, registry)
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text
    assert os.environ["HOME"] not in text


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("interaction=broken", ["broken YAML", "interaction/broken.yaml, line 4"]),
        ("interaction=nameless", ["interaction has no name"]),
        ("interaction=open", ["interaction.rank must be given"]),
        ("experiment=gone", ["unknown interaction 'gone'", "dcn"]),
        ("experiment=typo", ["unknown key trian", "'train'"]),
        ("experiment=hidden", ["interpolation is not supported", "data.root"]),
    ],
)
def test_refused_files(registry: Registry, folder: Path, override: str, words: list[str]) -> None:
    with pytest.raises(GemkitError) as caught:
        compose([override], registry, [folder])
    text = str(caught.value)
    assert [word for word in words if word not in text] == [], text


@pytest.mark.parametrize("text", ["root: ${oc.env:HOME}", "root: ${runs}", "defaults:\n  - x: ${oc.env:HOME}"])
def test_files_with_interpolation_are_refused(registry: Registry, folder: Path, text: str) -> None:
    (folder / "data").mkdir()
    (folder / "data" / "env.yaml").write_text(f"# not this: ${{x}}\nname: movielens1m\n{text}\n")
    with pytest.raises(GemkitError, match="interpolation is not supported") as caught:
        compose(["data=env"], registry, [folder])
    assert f"env.yaml, line {3 + text.count(chr(10))}" in str(caught.value.where)


def test_a_missing_config_dir_is_named(registry: Registry, tmp_path: Path) -> None:
    with pytest.raises(GemkitError, match="not a folder"):
        compose([], registry, [tmp_path / "nowhere"])


def test_a_run_without_a_default_component_says_which_plugins_failed() -> None:
    with pytest.raises(GemkitError) as caught:
        compose([], Registry.from_plugins({"broken": broken_plugin()}))
    assert "broken" in str(caught.value.fix)


def test_composing_leaves_nothing_behind(registry: Registry) -> None:
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra

    compose([], registry)
    assert not {"interaction", "_root.yaml"} & set(ConfigStore.instance().repo)
    assert not GlobalHydra.instance().is_initialized()


def test_nothing_of_omegaconf_is_left() -> None:
    def plain(value: object) -> bool:
        if isinstance(value, dict):
            return all(plain(v) for v in value.values())
        if isinstance(value, list):
            return all(plain(v) for v in value)
        return type(value) in (str, int, float, bool, type(None))

    assert plain(to_mapping(compose(["experiment=movielens1m_autoint"], load_registry())))


def test_every_kind_is_a_group() -> None:
    assert set(KINDS) <= set(GROUPS)


def test_composing_is_fast(registry: Registry) -> None:
    compose([], registry)
    start = time.perf_counter()
    compose([], registry)
    assert time.perf_counter() - start < 1.5
