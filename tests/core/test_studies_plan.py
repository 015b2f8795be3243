"""What a study runs, from its toggles and its YAML file; and what is refused before anything starts."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from fake_plugins import fake_registry

from gemkit.config.compose import choices, compose, config_folders, expand_toggle
from gemkit.config.study import StudyConfig, read_study, studies_in
from gemkit.errors import GemkitError
from gemkit.registry import Registry
from gemkit.studies.folder import StudyFolder, study_of
from gemkit.studies.plan import Plan, make_plan


@pytest.fixture(scope="module")
def registry() -> Registry:
    return fake_registry()


@pytest.fixture
def write(tmp_path: Path) -> Callable[[str, str], Path]:
    """Writes a file of configs/ablation/ and returns the folder for --config-dir."""

    def written(name: str, text: str) -> Path:
        path = tmp_path / "configs" / "ablation" / f"{name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        return tmp_path / "configs"

    return written


def plan_of(registry: Registry, *toggles: str, **options: Any) -> Plan:
    return make_plan(StudyConfig(toggles=toggles, **options), registry)


def names(plan: Plan) -> list[str]:
    return [v.name for v in plan.variants]


# --- toggles ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("toggle", "words"),
    [
        ("interaction=wukong,dcn", ["interaction=wukong", "interaction=dcn"]),
        ("interaction=dcn", ["interaction=dcn"]),
        ("interaction=glob(*)", ["interaction=dcn", "interaction=wukong", "interaction=none"]),
        ("interaction.rank=range(1,4)", ["interaction.rank=1", "interaction.rank=2", "interaction.rank=3"]),
        ("head.hidden=[64],[128,32],[]", ["head.hidden=[64]", "head.hidden=[128,32]", "head.hidden=[]"]),
        ("data.root='a b','c,d'", ["data.root='a b'", "data.root='c,d'"]),
        ("train.max_steps=null,1e3", ["train.max_steps=null", "train.max_steps=1000.0"]),
    ],
)
def test_a_toggle_is_a_word_for_each_value(registry: Registry, toggle: str, words: list[str]) -> None:
    assert expand_toggle(toggle, registry) == words


@pytest.mark.parametrize("toggle", ["interaction", "interaction=a,,b", "interaction.rank=interval(1,2)", "x" * 20_000])
def test_a_toggle_that_cannot_be_read(registry: Registry, toggle: str) -> None:
    with pytest.raises(GemkitError) as caught:
        expand_toggle(toggle, registry)
    assert caught.value.where == "--toggle"


def test_one_change_at_a_time(registry: Registry) -> None:
    plan = plan_of(registry, "interaction=none,dcn", "interaction.rank=8,4", base=("train.epochs=2",))
    assert names(plan) == ["base", "interaction=none", "interaction=dcn", "interaction.rank=8", "interaction.rank=4"]
    assert plan.variants[2].overrides == ("train.epochs=2", "interaction=dcn")
    assert plan.variants[2].words == ("interaction=dcn",)
    assert [v.run.train.epochs for v in plan.variants] == [2] * 5
    assert plan.variants[4].run.interaction.rank == 4
    assert plan.seeds == (1, 2, 3)


def test_all_combinations(registry: Registry) -> None:
    plan = plan_of(registry, "interaction=wukong,none", "sequence=pyramid,none", grid=True)
    assert names(plan) == [
        "base",
        "interaction=wukong sequence=none",
        "interaction=none sequence=pyramid",
        "interaction=none sequence=none",
    ]
    assert plan.notes == ("interaction=wukong sequence=pyramid is the base.",)


def test_the_same_run_is_run_once(registry: Registry) -> None:
    plan = plan_of(registry, "interaction=wukong,dcn", "interaction.rank=16", variants={"cross": ("interaction=dcn",)})
    assert names(plan) == ["base", "interaction=dcn"]
    assert plan.notes == (
        "interaction=wukong is the base.",
        "interaction.rank=16 is the base.",
        "cross is the same run as interaction=dcn.",
    )


def test_variants_of_several_words(registry: Registry) -> None:
    variants = {"deep cross": ("interaction=dcn", "interaction.depth=5"), "no events": ("ablation=no_history",)}
    plan = plan_of(registry, variants=variants)
    assert names(plan) == ["base", "deep cross", "no events"]
    assert [v.slug for v in plan.variants] == ["base", "deep-cross", "no-events"]
    assert plan.variants[1].run.interaction.depth == 5
    assert plan.variants[2].run.sequence is None


def test_folders_of_variants_differ(registry: Registry) -> None:
    plan = plan_of(registry, "interaction.rank=1,2", variants={"interaction.rank 1": ("interaction.rank=3",)})
    assert [v.slug for v in plan.variants] == [
        "base",
        "interaction.rank-1",
        "interaction.rank-2",
        "interaction.rank-1-2",
    ]


def test_values_meant_for_the_bases_choice_do_not_stand_in_the_way(registry: Registry) -> None:
    base = ("interaction=wukong", "interaction.rank=8", "train.epochs=2")
    plan = plan_of(registry, "interaction=dcn,none,wukong", "interaction.gate=none", base=base)
    assert [v.overrides for v in plan.variants[1:]] == [
        ("interaction=wukong", "train.epochs=2", "interaction=dcn"),
        ("interaction=wukong", "train.epochs=2", "interaction=none"),
        (*base, "interaction.gate=none"),
    ]
    assert plan.variants[3].run.interaction.rank == 8


# --- what is refused ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "what", "where"),
    [
        ({}, "nothing to compare: the study has no variants", "gemkit ablate"),
        ({"toggles": ("interaction=wukong",)}, "every variant is the base", "gemkit ablate"),
        (
            {"toggles": ("interaction=dcn,wukogn",)},
            "unknown interaction 'wukogn'",
            "interaction, in variant 'interaction=wukogn'",
        ),
        (
            {"toggles": ("interaction.rnak=1,2",)},
            "unknown key interaction.rnak",
            "interaction, in variant 'interaction.rnak=1'",
        ),
        (
            {"toggles": ("interaction.rank=1,0",)},
            "interaction.rank = 0",
            "interaction.rank, in variant 'interaction.rank=0'",
        ),
        (
            {"base": ("interaction=x",), "toggles": ("cross=none",)},
            "unknown interaction 'x'",
            "interaction, in the base run",
        ),
        ({"base": ("seed=3",), "toggles": ("cross=none",)}, "the study itself sets seed", "seed=3, in the base run"),
        ({"toggles": ("runs=a,b",)}, "the study itself sets runs", "runs=a, in variant 'runs=a'"),
        ({"variants": {"base": ("cross=none",)}}, "two variants are called base", "variants"),
        (
            {"variants": {"cross=none": ("cross=none",)}, "toggles": ("cross=none",)},
            "two variants are called",
            "variants",
        ),
        ({"variants": {"a\nb": ("cross=none",)}}, "is no name for a variant", "variants"),
        ({"variants": {"a": ("cross=none,interformer",)}}, "asks for several values", "cross, in variant 'a'"),
    ],
)
def test_errors_say_which_variant(registry: Registry, options: dict[str, Any], what: str, where: str) -> None:
    with pytest.raises(GemkitError) as caught:
        make_plan(StudyConfig(**options), registry)
    assert what in caught.value.what and caught.value.where == where


@pytest.mark.parametrize(
    ("options", "where"),
    [
        ({"seeds": (1, 1)}, "seeds"),
        ({"seeds": ()}, "seeds"),
        ({"seeds": 0}, "seeds"),
        ({"seeds": 1001}, "seeds"),
        ({"seeds": (2**32,)}, "seeds"),
        ({"seeds": "3"}, "seeds"),
        ({"metric": "accuracy"}, "metric"),
        ({"match": "size"}, "match"),
        ({"resample": "users"}, "resample"),
        ({"resamples": 10}, "resamples"),
        ({"base": "interaction=dcn"}, "base"),
        ({"variants": {"a": "interaction=dcn"}}, "variants.a"),
    ],
)
def test_options_are_checked(options: dict[str, Any], where: str) -> None:
    with pytest.raises(GemkitError) as caught:
        StudyConfig(**options)
    assert caught.value.where == where


# --- YAML files ---------------------------------------------------------------------------------------------

STUDY = """
base: [train.epochs=2]
toggles: ["interaction=none,dcn"]
variants:
  deep: [interaction=dcn, interaction.depth=5]
seeds: [3, 7]
metric: auc
note: Which interaction?
"""


def test_a_study_is_a_file(registry: Registry, write: Callable[[str, str], Path]) -> None:
    folder = write("interactions", STUDY)
    study = read_study("interactions", config_folders(registry, [folder]))
    plan = make_plan(study, registry, [folder])
    assert names(plan) == ["base", "interaction=none", "interaction=dcn", "deep"]
    assert (plan.seeds, study.metric, study.note) == ((3, 7), "auc", "Which interaction?")


def test_a_study_is_no_choice_of_a_run(registry: Registry, write: Callable[[str, str], Path]) -> None:
    folder = write("interactions", STUDY)
    assert "interactions" not in choices("ablation", registry, [folder])
    assert "no_cross" in choices("ablation", registry, [folder])
    with pytest.raises(GemkitError, match="ablation=interactions is a study of several runs") as caught:
        compose(["ablation=interactions"], registry, [folder])
    assert caught.value.fix == "gemkit ablate interactions"


def test_a_change_to_a_run_is_no_study(registry: Registry, write: Callable[[str, str], Path]) -> None:
    folders = config_folders(registry, [write("interactions", STUDY)])
    with pytest.raises(GemkitError, match="no_cross is a change to one run") as caught:
        read_study("no_cross", folders)
    assert "ablation=no_cross" in str(caught.value.fix) and "interactions" in str(caught.value.allowed)
    with pytest.raises(GemkitError, match="unknown study 'interactoins'") as caught:
        read_study("interactoins", folders)
    assert caught.value.fix == "did you mean 'interactions'?"


@pytest.mark.parametrize(
    ("text", "what", "where"),
    [
        ("toggels: [a=b]\n", "unknown key toggels", "top level"),
        ("toggles: interaction=dcn\n", "toggles = 'interaction=dcn' has the wrong type", "toggles"),
        ("toggles: [interaction=dcn]\nseeds: many\n", "seeds = 'many' has the wrong type", "seeds"),
        ("toggles: [interaction=dcn]\nmetric: accuracy\n", "metric = 'accuracy' is not one of its choices", "metric"),
        ("variants: {a: [1, 2]}\n", "variants.a[0] = 1 has the wrong type", "variants.a[0]"),
        ("toggles: [\n", "broken YAML", "line 2"),
    ],
)
def test_errors_name_file_and_field(
    registry: Registry, write: Callable[[str, str], Path], text: str, what: str, where: str
) -> None:
    folder = write("wrong", text)
    with pytest.raises(GemkitError) as caught:
        read_study("wrong", config_folders(registry, [folder]))
    assert what in caught.value.what
    assert str(folder / "ablation" / "wrong.yaml") in str(caught.value.where) and where in str(caught.value.where)


def test_a_broken_file_hides_no_study(registry: Registry, write: Callable[[str, str], Path]) -> None:
    write("broken", "toggles: [\n")
    folder = write("interactions", STUDY)
    assert "interactions" in studies_in(config_folders(registry, [folder]))
    assert "broken" in choices("ablation", registry, [folder])  # so that choosing it says what is wrong
    with pytest.raises(GemkitError, match="broken YAML"):
        compose(["ablation=broken"], registry, [folder])


# --- the definition in the folder ---------------------------------------------------------------------------


def defined(folder: StudyFolder, plan: Plan) -> StudyFolder:
    folder.create()
    folder.define(plan, "gemkit ablate ...")
    return folder


def test_a_study_goes_on_from_its_folder(registry: Registry, tmp_path: Path) -> None:
    plan = plan_of(registry, "interaction=none,dcn", base=("interaction.rank=8",), metric="auc", seeds=(4, 2))
    folder = defined(StudyFolder(tmp_path), plan)
    definition = folder.definition()
    assert definition is not None and definition["command"] == "gemkit ablate ..."
    again = make_plan(study_of(definition), registry)
    assert [(v.name, v.words, v.overrides, v.run) for v in again.variants] == [
        (v.name, v.words, v.overrides, v.run) for v in plan.variants
    ]
    assert (again.seeds, again.config.metric) == ((4, 2), "auc")
    folder.define(again, "gemkit ablate ...")


def test_the_same_runs_may_be_reported_otherwise_and_get_more_seeds(registry: Registry, tmp_path: Path) -> None:
    folder = defined(StudyFolder(tmp_path), plan_of(registry, "interaction=none", seeds=2))
    defined(folder, plan_of(registry, "interaction=none", seeds=4, metric="auc", task="like", note="More."))
    assert (folder.definition() or {})["seeds"] == [1, 2, 3, 4]


@pytest.mark.parametrize(
    ("toggle", "options", "difference"),
    [
        ("interaction=none,dcn", {}, "variant interaction=dcn is only here"),
        ("interaction=dcn", {}, "variant interaction=dcn is only here; variant interaction=none is only there"),
        ("interaction=none", {"base": ("train.epochs=3",)}, "variant base.train.epochs: 3 here, 1 there"),
        ("interaction=none", {"seeds": 1}, "seeds: 2 there, not here"),
    ],
)
def test_another_study_is_refused(
    registry: Registry, tmp_path: Path, toggle: str, options: dict[str, Any], difference: str
) -> None:
    folder = defined(StudyFolder(tmp_path), plan_of(registry, "interaction=none", seeds=2))
    with pytest.raises(GemkitError, match="the folder holds another study") as caught:
        folder.define(plan_of(registry, toggle, **({"seeds": 2} | options)), "")
    assert difference in caught.value.what and caught.value.fix == "choose another folder: --out FOLDER"


def test_a_field_of_a_newer_version_is_no_other_study(registry: Registry, tmp_path: Path) -> None:
    plan = plan_of(registry, "interaction=none")
    path = tmp_path / "study.json"
    folder = defined(StudyFolder(tmp_path), plan)
    path.write_text(
        path.read_text().replace('"epochs": 1,', '"gone": 7, "epochs": 1,').replace('"tensorboard": false,', "")
    )
    folder.check(plan)


@pytest.mark.parametrize("text", ["{", "[]", '{"format_version": 1}', '{"format_version": 1, "variants": {"a": {}}}'])
def test_a_damaged_definition_is_named(tmp_path: Path, text: str) -> None:
    (tmp_path / "study.json").write_text(text)
    with pytest.raises(GemkitError, match=r"study\.json is damaged"):
        StudyFolder(tmp_path).definition()
    (tmp_path / "study.json").write_text('{"format_version": 2, "variants": {}}')
    with pytest.raises(GemkitError, match="format version 2"):
        StudyFolder(tmp_path).definition()
