"""Every installed component, in every choice of its options, against every contract of its kind."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from gemkit.component import ComponentSpec
from gemkit.registry import load_registry
from gemkit.testing import bench, contracts
from gemkit.testing.contracts import CONTRACTS, Check, variants
from gemkit.testing.runs import silent, table_config, tiny_run
from gemkit.testing.teaching import write_log

MORE: dict[tuple[str, str], dict[str, dict[str, Any]]] = {
    ("interaction", "wukong"): {
        "cross_layer_attention": {"cross_layer_attention": True},
        "residual_bias": {"residual_bias": True},
        "without_fm": {"without": ("fm",)},
        "without_linear": {"without": ("linear", "residual")},
        "uneven": {"num_fm_tokens": 1, "rank": 3, "hidden": (8, 5)},
        "attentive_all": {"projection": "attentive", "cross_layer_attention": True, "fmb_activation": "relu"},
    },
    ("interaction", "autoint"): {
        "as_printed": {"num_layers": 3, "num_heads": 3, "head_dim": 5, "scaled": False},
        "no_residual": {"num_heads": 1, "residual": False},
    },
    ("interaction", "dcnv2"): {
        "full": {"rank": None, "num_layers": 3, "hidden": ()},
        "mixture": {"rank": 4, "num_experts": 3, "hidden": (8, 5), "structure": "parallel", "dropout": 0.2},
    },
    ("interaction", "dhen"): {
        "with_options": {
            "members": ({"name": "dcnv2", "rank": 4}, "autoint", {"name": "wukong", "cross_layer_attention": True}),
            "ensemble": "weighted_sum",
        },
        "nested": {"members": ({"name": "dhen", "members": ["dlrm", "fm"], "ensemble": "sum"}, "masknet")},
    },
    ("interaction", "dlrm"): {
        "self_products": {"self_products": True, "hidden": (8, 5), "dropout": 0.2},
        "linear": {"hidden": ()},
    },
    ("interaction", "finalmlp"): {
        "uneven": {"hidden": (8, 5), "hidden2": (), "num_heads": 3, "head_dim": 1, "gate_hidden": (), "dropout": 0.2},
    },
    ("interaction", "masknet"): {
        "uneven": {"blocks": (8, 5, 7), "reduction": 0.1, "dropout": 0.2},
        "parallel": {"structure": "parallel", "blocks": (8, 5), "reduction": 2.0, "hidden": (7,)},
    },
    ("sequence", "pyramid"): {
        "three_levels": {"chunk_sizes": (4, 2)},
        "odd_chunks": {"chunk_sizes": (7,), "num_summaries": 3, "align": "oldest"},
        "no_ffn_no_age": {"ffn_ratio": 0, "age_buckets": 0},
        "qk_norm": {"qk_norm": True},
        "parallel": {"chunk_sizes": (16,), "num_parallel": 2, "num_heads": 4},
    },
    ("sequence", "transformer"): {
        "causal": {"causal": True, "num_heads": 4},
        "plain": {"ffn_ratio": 0, "age_buckets": 0, "dropout": 0.2},
        "qk_norm": {"qk_norm": True},
    },
    ("sequence", "sliding_window"): {
        "narrow": {"window": 5},
        "both_sides": {"window": 16, "both_sides": True, "num_heads": 4},
        "one": {"window": 1, "ffn_ratio": 0, "age_buckets": 0},
    },
    ("sequence", "blocks"): {
        "odd": {"block_size": 7, "align": "oldest"},
        "no_qk_norm": {"qk_norm": False, "ffn_ratio": 0, "age_buckets": 0},
    },
    ("sequence", "hstu"): {
        "everyone": {"causal": False, "num_heads": 3, "expansion": 0.5},
        "no_bias": {"num_positions": 0, "time_buckets": 0, "age_buckets": 0, "dropout": 0.2},
        "one_position": {"num_positions": 1, "time_buckets": 2, "length": 150, "scale": "sqrt"},
    },
    ("sequence", "din"): {"deep": {"hidden": (8, 5)}, "linear": {"hidden": ()}, "softmax": {"softmax": True}},
    ("cross", "interformer"): {
        "gdpa_all": {"personalise_from": "all", "pffn": "gdpa"},
        "n2s_all": {"personalise_from": "all", "flow": "n2s", "gating": "gate"},
        "no_recent": {"num_recent": 0, "num_cls": 1, "num_pma": 1},
        "no_residual": {"pffn_residual": False, "pffn": "mlp"},
    },
    ("tokenizer", "plain"): {"all": {"dense": "periodic", "event_fusion": "masknet"}},
    ("domain", "surface_gated"): {"narrow": {"hidden": 3}},
    ("domain", "surface_ffn"): {"dropout": {"hidden": 5, "dropout": 0.2}},
    ("head", "multitask"): {
        "linear": {"hidden": ()},
        "towers": {"hidden": (8,), "tower_hidden": (6, 5), "dropout": 0.2},
    },
    ("head", "single_task"): {"linear": {"hidden": ()}, "dropout": {"hidden": (8,), "dropout": 0.2}},
    ("head", "per_surface"): {
        "linear": {"hidden": (8, 7), "tower_hidden": ()},
        "no_bottom": {"hidden": (), "tower_hidden": (6, 5), "dropout": 0.2},
    },
    ("head", "mmoe"): {
        "deep": {"num_experts": 3, "expert_hidden": (8, 7), "tower_hidden": (6, 5), "dropout": 0.2},
        "linear": {"num_experts": 2, "tower_hidden": ()},
    },
    ("head", "ple"): {
        "cgc": {"num_levels": 1, "tower_hidden": ()},
        "deep": {"num_levels": 3, "num_task_experts": 1, "num_shared_experts": 3, "expert_hidden": (8, 7)},
        "dropout": {"num_task_experts": 3, "num_shared_experts": 1, "expert_hidden": (8,), "dropout": 0.2},
    },
}
"""Configs beside the default and the choices, where other values build something else."""

TRANSFERS: dict[str, tuple[str, dict[str, Any]]] = {
    "distill": ("distill", {"log": "{log}"}),
    "distill_soft": ("distill", {"log": "{log}", "temperature": 2.0, "weight": 0.5, "gate": True}),
    "auxiliary_head": ("auxiliary_head", {"log": "{log}"}),
    "auxiliary_head_scaled": (
        "auxiliary_head",
        {"log": "{log}", "alpha": 0.7, "beta": 0.1, "weight": 3.0, "hidden": (), "gate": True},
    ),
    "student_adapter": ("student_adapter", {"log": "{log}"}),
    "student_adapter_serving": ("student_adapter", {"log": "{log}", "head": "serving", "gate": True}),
    "student_adapter_context": ("student_adapter", {"log": "{log}", "context": True, "adapter_hidden": (8, 7)}),
    "representation": ("representation", {"log": "{log}"}),
    "representation_newest": ("representation", {"log": "{log}", "of": "newest", "min_age_s": 3600}),
    "parameter_sharing": ("parameter_sharing", {"teacher": "{run}"}),
    "parameter_sharing_frozen": (
        "parameter_sharing",
        {"teacher": "{run}", "share": ("tables.user_id", "dense.tokenizer.*"), "tuning": "frozen"},
    ),
    "parameter_sharing_low_rank": (
        "parameter_sharing",
        {"teacher": "{run}", "share": ("tables.user_id", "dense.tokenizer.*"), "tuning": "low_rank", "rank": 2},
    ),
    "several": (
        "several",
        {"log": "{log}", "parts": {"distill": {}, "student_adapter": {}, "second": {"name": "representation"}}},
    ),
}
"""Transfer strategies with a log or a run folder of the contracts' own data."""

WITHOUT_DEFAULT = {("transfer", name) for name, _ in TRANSFERS.values()}
"""Components whose default config cannot be built, for it names no teacher."""


def own_specs() -> list[ComponentSpec]:
    """Components of gemkit itself; other installed plugins bring their own tests."""
    registry = load_registry()
    return [s for s in registry.specs() if registry.plugin_of(s.kind, s.name)[1] == "gemkit"]


def all_checks(slow: bool = False) -> list[Check]:
    checks = []
    for spec in own_specs():
        key = (spec.kind, spec.name)
        if key not in WITHOUT_DEFAULT:
            more = {name: spec.config(**values) for name, values in MORE.get(key, {}).items()}
            checks += contracts(spec.cls, more, slow=slow)
    return checks


@pytest.mark.parametrize("check", all_checks(), ids=str)
def test_contract(check: Check) -> None:
    check()


@pytest.mark.slow
@pytest.mark.parametrize("check", all_checks(slow=True), ids=str)
def test_slow_contract(check: Check) -> None:
    check()


@pytest.fixture(scope="module")
def teacher() -> Iterator[dict[str, str]]:
    """A teacher log, and the run folder of a model, both of the contracts' own data."""
    from gemkit.train import train

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_log(folder / "log", bench.dataset())
        run = tiny_run(folder, "train.max_steps=3", **bench.DATA)
        train(run, load_registry(), progress=silent())
        yield {"{log}": str(folder / "log"), "{run}": str(next((folder / "runs").iterdir()))}


@pytest.mark.parametrize("label", TRANSFERS)
def test_transfer(teacher: dict[str, str], label: str) -> None:
    name, values = TRANSFERS[label]
    spec = load_registry().get("transfer", name)
    values = {key: teacher.get(value, value) if isinstance(value, str) else value for key, value in values.items()}
    checks = contracts(spec.cls, {label: spec.config(**values)}, only_given=True)
    assert len(checks) > 5
    for check in checks:
        check()


def test_table(tmp_path: Path) -> None:
    spec = load_registry().get("data", "table")
    config = load_registry().config("data", table_config(tmp_path))
    checks = contracts(spec.cls, {"synthetic": config}, only_given=True)
    assert "data-table-synthetic-builds_a_data_set" in map(str, checks)
    for check in checks:
        check()


def test_the_matrix_is_complete() -> None:
    assert not load_registry().failures
    specs = {(s.kind, s.name) for s in own_specs()}
    assert specs >= MORE.keys() | WITHOUT_DEFAULT
    tried = {(c.subject.spec.kind, c.subject.spec.name) for c in all_checks()}
    assert tried | WITHOUT_DEFAULT == specs
    assert len(tried) >= 10
    names = [c.name for c in CONTRACTS]
    assert len(names) == len(set(names))


def test_every_choice_is_a_variant() -> None:
    config = load_registry().get("cross", "interformer").config
    labels = ["default", "flow=sole", "flow=sep", "flow=n2s", "flow=s2n", "gating=gate", "pffn=mlp", "pffn=gdpa"]
    assert list(variants(config)) == [*labels, "personalise_from=all"]
