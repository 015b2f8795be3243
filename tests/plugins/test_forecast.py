"""TorchRec's planner on clusters that are not there."""

from __future__ import annotations

import dataclasses
import logging
import sys
from typing import Any

import gemkit_hsdp.forecast
import pytest
from gemkit_hsdp.forecast import PLANNER, plan_tables

from gemkit.plan.gpus import GPUS
from gemkit.plan.tables import EVEN, Cluster, TableLoad
from gemkit.registry import load_registry

pytest.importorskip("torchrec")

GB = 10**9
TABLES = (
    TableLoad(name="huge", num_embeddings=200_000_000, dim=32, lookups=2.0),  # 25.6 GB: more than a rank may hold
    TableLoad(name="small", num_embeddings=5000, dim=32, lookups=1.0),
    TableLoad(name="rare", num_embeddings=100, dim=32, lookups=0.0),
)
CLUSTER = Cluster(num_ranks=8, gpu=GPUS["h100-80g"], table_bytes=20 * GB, local_batch=64, table_dtype="fp32")


def test_a_plan_holds_every_parameter_and_keeps_to_the_memory(caplog: pytest.LogCaptureFixture) -> None:
    placement = plan_tables(TABLES, CLUSTER)
    warned = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert not warned, "TorchRec asks for what users of gemkit cannot give"
    assert (placement.planner, placement.refused) == (PLANNER, None)
    assert sum(placement.kinds.values()) == 3
    assert sum(placement.params) == sum(table.params for table in TABLES)
    assert sum(placement.served) == pytest.approx(32 * 3.0)
    assert max(placement.bytes_of("fp32")) <= 20 * GB
    assert placement.kinds.get("row_wise", 0) >= 1, "nothing else can hold the huge table"


def test_asking_once_for_each_size_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    once = plan_tables(TABLES, CLUSTER)
    monkeypatch.setattr(gemkit_hsdp.forecast, "_OnceForEachSize", lambda estimator: estimator)
    assert plan_tables(TABLES, CLUSTER) == once


def test_large_plans_try_one_sharding_type_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gemkit_hsdp.forecast, "SMALL", 0)
    placement = plan_tables(TABLES, CLUSTER)
    assert placement.refused is None and placement.kinds == {"row_wise": 3}


@pytest.mark.parametrize("table_bytes", [1 * GB, 0, -5])
def test_too_little_memory_is_refused(table_bytes: int) -> None:
    placement = plan_tables(TABLES, dataclasses.replace(CLUSTER, table_bytes=table_bytes))
    assert placement.refused
    assert sum(placement.params) == sum(table.params for table in TABLES)


def test_without_torchrec_rows_are_split_evenly(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torchrec", None)
    placement = plan_tables(TABLES, CLUSTER)
    assert placement.planner.startswith(EVEN) and "not installed" in placement.planner
    assert placement.kinds == {"row_wise": 3}


def test_the_registry_finds_it() -> None:
    planner: Any = load_registry().table_planner()
    assert planner is plan_tables
