"""The registry: what plugins bring, what happens when they do not, configs and building."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from fake_plugins import FakePlugin, broken_plugin, fake_registry, make, plugin

from gemkit import hookspecs
from gemkit.component import KINDS, component
from gemkit.data.schema import Schema
from gemkit.errors import GemkitError
from gemkit.registry import INTERFACES, Registry, load_registry


def test_lists_and_finds_components() -> None:
    registry = fake_registry()
    assert registry.kinds == tuple(KINDS)
    assert registry.names("interaction") == ["dcn", "wukong"]
    assert [s.kind for s in registry.specs()] == sorted((s.kind for s in registry.specs()), key=list(KINDS).index)
    assert registry.get("interaction", "wukong").paper == "Nobody, 2026, eq. 1."
    assert registry.plugin_of("interaction", "wukong")[0] == "builtin"
    assert not registry.failures


def test_unknown_component_lists_choices_and_nearest() -> None:
    with pytest.raises(GemkitError) as caught:
        fake_registry().get("interaction", "wukogn")
    assert caught.value.what == "unknown interaction 'wukogn'"
    assert caught.value.allowed == "dcn, wukong, none"
    assert "'wukong'" in str(caught.value.fix)


def test_unknown_kind() -> None:
    with pytest.raises(GemkitError, match="unknown kind 'interactoin'") as caught:
        fake_registry().names("interactoin")
    assert "'interaction'" in str(caught.value.fix)


def test_a_plugin_that_fails_is_kept_aside_and_named_when_something_is_missing() -> None:
    registry = fake_registry(broken=broken_plugin())
    assert "a_module_that_is_not_installed" in registry.failures["broken"].traceback
    assert registry.failures["broken"].reason.startswith("ModuleNotFoundError")
    assert registry.names("interaction") == ["dcn", "wukong"]
    with pytest.raises(GemkitError) as caught:
        registry.get("interaction", "other")
    assert "broken" in str(caught.value.fix) and "gemkit components" in str(caught.value.fix)


def test_a_plugin_that_exits_at_import_is_kept_aside() -> None:
    def gemkit_components() -> list[type]:
        sys.exit("no licence")

    assert "no licence" in fake_registry(rude=plugin(gemkit_components=gemkit_components)).failures["rude"].traceback


def test_a_plugin_for_another_api_is_refused_with_both_versions() -> None:
    version = hookspecs.PLUGIN_API_VERSION + 1
    block = make("interaction", "new")
    other = plugin(gemkit_plugin_api=lambda: version, gemkit_components=lambda: [block])
    registry = fake_registry(future=other)
    text = registry.failures["future"].traceback
    assert f"version {version} of gemkit's plugin API" in text
    assert f"has version {hookspecs.PLUGIN_API_VERSION}" in text
    assert "new" not in registry.names("interaction")


def test_a_misspelt_hook_is_refused() -> None:
    registry = fake_registry(typo=plugin(gemkit_componets=lambda: []))
    assert "gemkit_componets" in registry.failures["typo"].traceback


def test_a_module_without_hooks_is_refused() -> None:
    assert "no gemkit hook" in fake_registry(empty=plugin()).failures["empty"].traceback


def test_an_undecorated_class_is_refused() -> None:
    registry = fake_registry(plain=plugin(gemkit_components=lambda: [dict]))
    assert "no @component" in registry.failures["plain"].traceback


def test_a_class_of_the_wrong_interface_is_refused() -> None:
    config = make("interaction", "stray").__dict__["__gemkit_component__"].config
    stray = component("interaction", config)(type("Stray", (), {}))
    registry = fake_registry(stray=FakePlugin(stray))
    assert "no subclass of gemkit.interfaces.InteractionModule" in registry.failures["stray"].traceback


def test_interfaces_are_those_of_the_kinds() -> None:
    from gemkit import interfaces

    assert set(INTERFACES) == set(KINDS)
    assert all(isinstance(getattr(interfaces, name), type) for name in INTERFACES.values())


def test_the_same_component_twice_names_both_plugins() -> None:
    with pytest.raises(GemkitError, match=r"'builtin'.*'mine'"):
        fake_registry(mine=FakePlugin(make("interaction", "wukong")))


def test_config_folders_of_plugins(tmp_path: Path) -> None:
    assert fake_registry(more=plugin(gemkit_config_folders=lambda: [tmp_path])).config_folders() == [tmp_path]


@pytest.mark.parametrize("value", [None, "none", {"name": "none"}, {"name": "none", "rank": 3}])
def test_none_leaves_out_what_may_be_left_out(value: object) -> None:
    registry = fake_registry()
    assert registry.config("interaction", value) is None
    assert registry.build("interaction", value) is None
    with pytest.raises(GemkitError, match="head cannot be left out") as caught:
        registry.config("head", value)
    assert caught.value.allowed == "multitask"


def test_config_from_name_mapping_and_config() -> None:
    registry = fake_registry()
    config = registry.config("interaction", {"name": "wukong", "rank": 4})
    assert (config.name, config.rank) == ("wukong", 4)
    assert registry.config("interaction", "wukong").rank == 16
    assert registry.config("interaction", config) is config
    with pytest.raises(GemkitError, match="unknown interaction 'multitask'"):
        registry.config("interaction", registry.config("head", "multitask"))


def test_config_errors_have_the_full_path() -> None:
    registry = fake_registry()
    with pytest.raises(GemkitError) as caught:
        registry.config("interaction", {"name": "wukong", "rank": 0}, "interaction.modules[1]")
    assert caught.value.where == "interaction.modules[1].rank"
    with pytest.raises(GemkitError, match="interaction has no name"):
        registry.config("interaction", {"rank": 0})


def test_build_passes_a_context_in_which_others_are_built() -> None:
    registry = fake_registry()
    context = registry.context(dim=8, schema=Schema(name="s"), num_tokens_in=5)
    outer = registry.build("interaction", "wukong", context)
    assert outer.context.dim == 8
    inner = outer.context.build("interaction", {"name": "dcn", "depth": 3}, num_tokens_in=7)
    assert (inner.config.depth, inner.context.num_tokens_in, inner.context.dim) == (3, 7, 8)
    innermost = inner.context.build("sequence", "pyramid", layer=2)
    assert (innermost.context.num_tokens_in, innermost.context.layer) == (7, 2)
    assert outer.context.num_tokens_in == 5


def test_data_and_parallel_are_built_without_a_context() -> None:
    registry = fake_registry()
    assert registry.build("data", "movielens1m").config.split == "time"
    assert registry.build("parallel", {"name": "single"}).context is None
    with pytest.raises(TypeError):
        registry.build("head", "multitask")


def test_installed_plugins_are_found_once() -> None:
    registry = load_registry()
    assert load_registry() is registry
    assert {"gemkit_wukong", "gemkit_datasets"} <= {*registry.modules, *registry.failures}


def test_an_empty_registry_says_so() -> None:
    with pytest.raises(GemkitError) as caught:
        Registry.from_plugins({}).get("data", "x")
    assert caught.value.allowed == "(nothing is installed)"


def test_light_modules_import_nothing_heavy() -> None:
    code = (
        "import sys, gemkit.registry, gemkit.config.compose, gemkit.config.run, gemkit.hookspecs, gemkit.component;"
        "print(*{'torch', 'numpy', 'pyarrow', 'hydra', 'omegaconf', 'rich'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == ""
