"""`gemkit plan`: formulas by hand, what must grow with what, what does not fit, and the command."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from gemkit.cli.main import main
from gemkit.config.compose import compose
from gemkit.errors import GemkitError
from gemkit.plan.assumptions import Assumptions
from gemkit.plan.communication import Group, consecutive, exchange_s, gather_s, gathered_bytes, reduce_s, strided
from gemkit.plan.gpus import GPUS, Gpu, find_gpu, this_cpu
from gemkit.plan.hypothetical import table_rows
from gemkit.plan.measured import Measured, compare, fixed_and_rate, local_mfu
from gemkit.plan.plan import Plan, make_plan, mesh_of, remembering
from gemkit.plan.tables import Cluster, Placement, TableLoad, even_rows
from gemkit.plan.workload import Workload
from gemkit.registry import load_registry

GPU = Gpu(
    name="toy",
    flop_per_s={"fp32": 1000.0, "bf16": 1000.0},
    memory_bytes=100_000.0,
    memory_bytes_per_s=1e9,
    per_node=4,
    intra_bytes_per_s=100.0,
    inter_bytes_per_s=10.0,
)
TABLES = (
    TableLoad(name="a", num_embeddings=64, dim=4, lookups=1.0),
    TableLoad(name="b", num_embeddings=10, dim=4, lookups=3.0),
)
WORK = Workload(
    precision="fp32",
    flops=50.0,
    recomputed_flops=0.0,
    activation_bytes=20.0,
    cast_bytes=7.0,
    units={"blocks.0": 80, "blocks.1": 160, "rest": 17},
    tables=TABLES,
)
ALL = Assumptions(local_mfu=0.5, reserve=0.0, local_batch=2)


def plan_of(world_size: int = 8, assumptions: Assumptions = ALL, work: Workload = WORK, **gpu: Any) -> Plan:
    batch = assumptions.local_batch or 2
    toy = dataclasses.replace(GPU, **gpu)
    return make_plan(work, toy, world_size, assumptions, even_rows, local_batch=batch)


def assume(**changes: Any) -> Assumptions:
    return dataclasses.replace(ALL, **changes)


# --- formulas by hand -----------------------------------------------------------------------------------------


def test_gathering_is_bound_by_the_slower_link() -> None:
    """4 ranks of one node: 3/4 of the bytes at 100/s. 8 in two nodes: half of them, over 4 ports of 10/s each."""
    assert gather_s(1000, consecutive(4, GPU), GPU) == pytest.approx(750 / 100)
    assert gather_s(1000, consecutive(8, GPU), GPU) == pytest.approx(max(750 / 100, 500 / 40))
    assert gathered_bytes(1000, Group(size=8, per_node=4)) == 875
    assert reduce_s(1000, strided(2, 4, GPU), GPU) == pytest.approx(2 * 500 / 10)
    assert gather_s(1000, consecutive(1, GPU), GPU) == 0


def test_an_all_to_all_leaves_the_node() -> None:
    """Of 8 ranks 3 are neighbours and 4 are elsewhere."""
    assert exchange_s(800, consecutive(8, GPU), GPU) == pytest.approx(400 / 10)
    assert exchange_s(800, consecutive(4, GPU), GPU) == pytest.approx(600 / 100)
    assert exchange_s(800, consecutive(1, GPU), GPU) == 0


@pytest.mark.parametrize(("size", "stride", "per_node"), [(2, 4, 1), (4, 2, 2), (2, 1, 2), (16, 8, 1)])
def test_strided_groups_meet_in_nodes(size: int, stride: int, per_node: int) -> None:
    assert strided(size, stride, GPU) == Group(size=size, per_node=per_node)


def test_rows_are_split_evenly() -> None:
    """Blocks of ceil(64 / 8) = 8 and ceil(10 / 8) = 2 rows; the second table is used up after five ranks."""
    placement = even_rows(TABLES, Cluster(num_ranks=8, gpu=GPU, table_bytes=1, local_batch=1, table_dtype="fp32"))
    assert placement.rows == (10,) * 5 + (8,) * 3
    assert placement.params == (40,) * 5 + (32,) * 3
    assert sum(placement.served) == pytest.approx(4 * 1 + 4 * 3)
    assert placement.served[0] == pytest.approx(4 / 8 + 12 * 2 / 10)
    assert placement.imbalance == pytest.approx((0.5 + 2.4) * 8 / 16)
    assert placement.bytes_of("fp32")[0] == 4 * 40 + 4 * 10
    assert placement.bytes_of("fp16")[0] == 2 * 40 + 4 * 10


def test_the_run_decides_in_what_is_gathered_held_and_sent() -> None:
    def dtypes(assumptions: Assumptions, *words: str) -> list[str]:
        decided = assumptions.for_run(compose(words, load_registry()))
        return [decided.gather_dtype, decided.table_dtype, decided.exchange_dtype]

    half = ["parallel=hsdp", "parallel.embedding_precision=fp16", "parallel.exchange_precision=half"]
    assert dtypes(assume()) == dtypes(assume(), "parallel=hsdp") == ["fp32", "fp32", "fp32"]
    assert dtypes(assume(), *half, "train.precision=bf16") == ["bf16", "fp16", "fp16"]
    assert dtypes(assume(gather_dtype="fp32", table_dtype="fp32", exchange_dtype="bf16"), *half) == [
        *("fp32", "fp32", "bf16"),
    ]
    assert dtypes(assume(), "parallel.embedding_precision=fp16") == ["fp32", "fp16", "fp32"]
    assert assume().gather_bytes == 4


def test_the_run_decides_who_shards_and_averages_what() -> None:
    registry = load_registry()
    words = ["parallel=hsdp", "parallel.dp_shard=2", "parallel.sparse_groups=2", "parallel.sparse_average_every=7"]
    words.append("parallel.sparse_neighbours=replicas")
    decided = assume().for_run(compose(words, registry))
    assert (decided.steps_between_syncs, decided.table_neighbours, decided.sparse_prefetch) == (7, "replicas", "none")
    mesh = mesh_of(8, GPU, decided)
    assert (mesh.dp_shard, mesh.table_group, mesh.table_groups) == (2, 4, 2)
    said = assume(dp_shard=4, table_group=8, sync_every=3, table_neighbours="group", sparse_prefetch="vectors")
    assert said.for_run(compose(words, registry)) == dataclasses.replace(
        said, table_dtype="fp32", exchange_dtype="fp32", gather_dtype="fp32"
    )
    for plain in ([], ["parallel=hsdp", "parallel.prefetch_ids=true"]):
        decided = assume().for_run(compose(plain, registry))
        assert (decided.steps_between_syncs, decided.table_neighbours, decided.sparse_prefetch) == (10, "group", "ids")
        assert mesh_of(1024, GPUS["h100-80g"], decided).table_group == 256
    with pytest.raises(GemkitError, match="cannot be divided into 3 groups"):
        mesh_of(8, GPU, assume(table_groups=3))


def test_memory_by_hand() -> None:
    """Shards of ceil(80/4), ceil(160/4), ceil(17/4) parameters; the two largest units whole, twice, in fp32."""
    memory = plan_of().memory
    assert memory.parameters == memory.gradients == 4 * (20 + 40 + 5)
    assert memory.optimizer == 2 * memory.parameters
    assert memory.gathered == 2 * 4 * (160 + 80)
    assert memory.casts == 7
    assert memory.activations == 2 * 20
    assert memory.tables == 200
    imbalance = 2.9 * 8 / 16
    assert memory.vectors == pytest.approx(16 * 2 * (4 + 4 * imbalance))
    assert memory.total == pytest.approx(4 * 260 + 1920 + 7 + 40 + 200 + memory.vectors)
    halved = plan_of(assumptions=assume(gather_dtype="bf16", units_ahead=0)).memory
    assert (halved.gathered, halved.casts) == (2 * 2 * 160, 0)
    assert plan_of(world_size=1).memory.gathered == 0


def test_a_step_by_hand() -> None:
    plan = plan_of()
    sent, seconds, step = plan.sent, plan.seconds, plan.step
    params, imbalance = 257, 2.9 * 8 / 16
    assert sent.all_gather == pytest.approx(2 * 4 * params * 3 / 4)
    assert sent.reduce_scatter == pytest.approx(4 * params * 3 / 4)
    assert sent.all_reduce == pytest.approx(2 * 4 * params / 4 / 2)
    assert sent.table_sync == 0
    assert sent.ids == pytest.approx(8 * 4 * 2 * imbalance * 7 / 8)
    assert sent.vectors == sent.vector_gradients == pytest.approx(4 * 16 * 2 * imbalance * 7 / 8)
    assert seconds.all_reduce == pytest.approx(2 * 4 * params / 4 / 2 / 10)
    assert seconds.vectors == pytest.approx(4 * 16 * 2 * imbalance * 4 / 8 / 10)
    assert step.products == pytest.approx(50 * 2 / (1000 * 0.5))
    assert step.optimizer == pytest.approx(28 * params / 4 / 1e9)
    assert step.lookups == pytest.approx(5 * 4 * 16 * 2 * imbalance / 1e9)
    hidden = seconds.dense + seconds.ids
    assert step.total == pytest.approx(max(step.compute, hidden) + 2 * seconds.vectors)
    assert step.mfu == pytest.approx(50 * 2 / 1000 / step.total)
    local = 50 * 2 / 1000 / step.compute
    assert step.mfu == pytest.approx(local * step.scaling)  # E2E MFU = local MFU x scaling ratio


def test_latency_and_fixed_cost_by_hand() -> None:
    """Three units, gathered twice and reduced once; ids take three messages; tables of one group are not averaged."""
    plain, plan = plan_of(), plan_of(assumptions=assume(latency_us=1e6, fixed_ms=7e3))
    waited = {name: getattr(plan.seconds, name) - value for name, value in dataclasses.asdict(plain.seconds).items()}
    expected = {"all_gather": 6, "reduce_scatter": 3, "all_reduce": 3, "table_sync": 0}
    expected |= {"ids": 3, "vectors": 1, "vector_gradients": 1}
    assert waited == pytest.approx(expected)
    assert plan.step.compute == pytest.approx(plain.step.compute + 7)
    assert plan.step.serial == pytest.approx(plain.step.serial + 2 + 2)  # vectors and gradients; two agreements
    groups = plan_of(assumptions=assume(latency_us=1e6, table_group=4, sync_every=5)).seconds.table_sync
    assert groups - plan_of(assumptions=assume(table_group=4, sync_every=5)).seconds.table_sync == pytest.approx(2 / 5)
    assert plan_of(1, assume(dp_shard=1, latency_us=1e6)).step.exposed == 0


def test_a_step_is_split_by_two_batches() -> None:
    """3 s and 2 ms an example; a step that grows faster than its batch has no fixed part."""
    assert fixed_and_rate((100, 3.2), (400, 3.8)) == pytest.approx((3.0, 500.0))
    assert fixed_and_rate((100, 0.1), (400, 0.8)) == pytest.approx((0.0, 500.0))
    with pytest.raises(ValueError, match="no rate follows"):
        fixed_and_rate((100, 3.2), (400, 3.2))


def test_groups_of_tables_are_averaged_now_and_then() -> None:
    plan = plan_of(assumptions=assume(table_group=4, sync_every=5))
    assert (plan.mesh.table_group, plan.mesh.table_groups) == (4, 2)
    assert plan.sent.table_sync == pytest.approx(2 * plan.memory.tables / 5 / 2)


def test_replicas_side_by_side_average_inside_a_node() -> None:
    """Two groups of four in nodes of four: each node holds two pairs of replicas, and half of each group."""
    apart, beside = (
        plan_of(assumptions=assume(table_group=4, sync_every=5, table_neighbours=who)) for who in ("run", "replicas")
    )
    held = beside.memory.tables / 5
    assert beside.sent == apart.sent
    assert apart.seconds.table_sync == pytest.approx(2 * held / 2 / GPU.inter_bytes_per_s)
    assert beside.seconds.table_sync == pytest.approx(2 * held / 2 / GPU.intra_bytes_per_s)
    vectors = 4 * 16 * 2 * beside.placement.imbalance
    assert apart.seconds.vectors == pytest.approx(vectors * 3 / 4 / GPU.intra_bytes_per_s)
    assert beside.seconds.vectors == pytest.approx(vectors * 2 / 4 / GPU.inter_bytes_per_s)


@pytest.mark.parametrize(
    ("changes", "total"),
    [
        ({"overlap": 0.0}, "compute + everything but the ids"),
        ({"overlap": 0.0, "sparse_prefetch": "none"}, "compute + everything"),
        ({"overlap": 1.0, "sparse_prefetch": "vectors"}, "the larger"),
    ],
)
def test_what_computing_hides(changes: dict[str, Any], total: str) -> None:
    plan = plan_of(assumptions=assume(**changes), intra_bytes_per_s=1e6, inter_bytes_per_s=1e6)
    seconds, compute = plan.seconds, plan.step.compute
    expected = {
        "compute + everything but the ids": max(compute, seconds.ids) + seconds.dense + 2 * seconds.vectors,
        "compute + everything": compute + seconds.dense + seconds.embedding,
        "the larger": max(compute, seconds.dense + seconds.embedding),
    }
    assert plan.step.total == pytest.approx(expected[total])


# --- what grows with what ---------------------------------------------------------------------------------------


def test_more_gpus_hold_less_and_scale_no_better() -> None:
    assumptions = assume(table_group=None, dp_shard=4)
    plans = [plan_of(size, assumptions) for size in (4, 8, 16, 32)]
    assert [p.memory.tables for p in plans] == sorted((p.memory.tables for p in plans), reverse=True)
    assert plans[0].memory.tables > plans[-1].memory.tables
    assert [p.step.scaling for p in plans] == sorted((p.step.scaling for p in plans), reverse=True)
    assert plan_of(1, assume(dp_shard=1)).step.scaling == 1


def test_a_faster_network_never_slows_a_step() -> None:
    totals = [plan_of(inter_bytes_per_s=speed).step.total for speed in (1.0, 10.0, 100.0, 1e6)]
    assert totals == sorted(totals, reverse=True) and totals[0] > totals[-1]


# --- what does not fit ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("memory", "what", "fix"),
    [
        (900, "parameters, gradients and optimiser", "--dp-shard 8"),
        (1500, "whole blocks", "--gather-dtype bf16"),
        (2963, "copies of the weights", "--gather-dtype bf16"),
        (3100, "embedding tables", "at least 16"),
        (3400, "activations", "--local-batch 1"),
    ],
)
def test_the_first_that_does_not_fit_is_named(memory: float, what: str, fix: str) -> None:
    misfit = plan_of(memory_bytes=memory).misfit
    assert misfit is not None and misfit.missing_bytes > 0
    assert what in misfit.what and fix in misfit.fix, misfit


def test_what_fits_is_not_complained_about() -> None:
    total = plan_of().memory.total
    assert plan_of(memory_bytes=total).misfit is None
    assert plan_of(memory_bytes=total - 1).misfit is not None
    assert plan_of(memory_bytes=total, assumptions=assume(reserve=0.01)).misfit is not None


def test_a_planner_that_refuses_is_quoted() -> None:
    def refuses(tables: Any, cluster: Cluster) -> Placement:
        return even_rows(tables, cluster, refused="no plan today")

    misfit = make_plan(WORK, GPU, 8, ALL, refuses, local_batch=2).misfit
    assert misfit is not None and misfit.what == "no plan today"


def test_the_planner_is_told_what_is_left_and_asked_once() -> None:
    asked: list[Cluster] = []

    def planner(tables: Any, cluster: Cluster) -> Placement:
        asked.append(cluster)
        return even_rows(tables, cluster)

    remembered = remembering(planner)
    plans = [make_plan(WORK, GPU, n, assume(table_group=8), remembered, local_batch=2) for n in (8, 16, 32)]
    assert len(asked) == 1
    first = plans[0].memory
    assert asked[0].table_bytes == int(GPU.memory_bytes - first.total + first.tables + first.vectors)


# --- GPUs, meshes, tables ---------------------------------------------------------------------------------------


def test_an_unknown_gpu_names_the_nearest() -> None:
    with pytest.raises(GemkitError, match="did you mean 'h100-80g'") as caught:
        find_gpu("h100-80")
    assert all(name in str(caught.value) for name in GPUS)


def test_facts_can_be_overridden() -> None:
    gpu = Assumptions(peak_tflop_per_s=700, inter_gb_per_s=25, gpus_per_node=4).on(find_gpu("h100-80g"), "bf16")
    assert (gpu.flop_per_s["bf16"], gpu.inter_bytes_per_s, gpu.per_node) == (700e12, 25e9, 4)
    assert gpu.intra_bytes_per_s == 450e9


def test_a_cpu_needs_its_bandwidths() -> None:
    with pytest.raises(GemkitError, match="--memory-gb-per-s"):
        Assumptions().on(this_cpu(1e10, 1e9), "fp32")
    gpu = Assumptions(memory_gb_per_s=10, intra_gb_per_s=2).on(this_cpu(1e10, 1e9), "fp32")
    assert gpu.inter_bytes_per_s == gpu.intra_bytes_per_s == 2e9


@pytest.mark.parametrize(("world_size", "changes"), [(8, {"dp_shard": 3}), (12, {"table_group": 6}), (6, {})])
def test_ranks_must_divide(world_size: int, changes: dict[str, int]) -> None:
    with pytest.raises(GemkitError, match="cannot be divided"):
        mesh_of(world_size, GPU, assume(**changes))


def test_rows_of_hypothetical_tables() -> None:
    assert table_rows(6000, 3, 0.0, 10) == [200, 200, 200]
    assert table_rows(11_000, 3, 1.0, 10) == [600, 300, 200]
    assert table_rows(10, 3, 4.0, 10)[-1] == 1


# --- beside measured runs ---------------------------------------------------------------------------------------


def test_plans_beside_measured_runs() -> None:
    plans = [plan_of(size) for size in (1, 4)]
    times = [plan.step.total for plan in plans]
    runs = [Measured(world_size=4, step_s=2 * times[1]), Measured(world_size=1, step_s=times[0])]
    one, four = compare([*runs, Measured(world_size=2, step_s=1.0)], plans)
    assert (one.world_size, four.world_size) == (1, 4)
    assert one.error == pytest.approx(0) and four.error == pytest.approx(-0.5)
    assert four.planned_scaling == pytest.approx(times[0] / times[1])
    assert four.measured_scaling == pytest.approx(four.planned_scaling / 2)
    assert local_mfu(examples_per_s=20, flops_per_example=50, peak_flop_per_s=4000) == 0.25


# --- the command ------------------------------------------------------------------------------------------------

SMALL = [
    "size.dim=16",
    "size.num_blocks=2",
    "size.num_tokens=6",
    "--embedding-params",
    "1e6",
    "--embedding-tables",
    "5",
]


@pytest.fixture
def even(monkeypatch: pytest.MonkeyPatch) -> None:
    """No planner of a plugin: TorchRec takes seconds to import."""
    monkeypatch.setattr(type(load_registry()), "table_planner", lambda self: None)


@pytest.mark.usefixtures("even")
@pytest.mark.parametrize("histories", [[], ["sequence=none", "cross=none"]])
def test_the_command_needs_no_data(histories: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "--gpu", "a100-40g", "--world-size", "16,8", "--json", str(tmp_path / "plan.json")]
    assert main([*words, *SMALL, *histories, "data.max_history=30", f"data.root={tmp_path}"]) == 0
    shown = capsys.readouterr().out
    facts = json.loads((tmp_path / "plan.json").read_text())
    assert [plan["world_size"] for plan in facts["plans"]] == [8, 16]
    assert facts["model"]["table_params"] == pytest.approx(1e6, rel=1e-3)
    assert facts["model"]["flops_per_example"] > 1e4
    assert facts["model"]["lookups_per_example"] == 5 + (0 if histories else 2 * 30)
    assert facts["plans"][0]["local_batch"] == 128
    assert "everything fits" in shown and "even split of the rows" in shown
    for field in dataclasses.fields(Assumptions):
        assert field.name.replace("_", "-") in shown
        assert field.name in facts["assumptions"]
    assert list(tmp_path.iterdir()) == [tmp_path / "plan.json"]


@pytest.mark.usefixtures("even")
def test_checkpointing_trades_activations_for_products(tmp_path: Path) -> None:
    facts = []
    for word in ("false", "true"):
        words = ["plan", "--gpu", "h100-80g", "--world-size", "8", "--json", str(tmp_path / "p.json"), *SMALL]
        assert main([*words, "sequence=none", "cross=none", f"train.checkpoint_activations={word}"]) == 0
        facts.append(json.loads((tmp_path / "p.json").read_text())["model"])
    plain, checkpointed = facts
    assert plain["recomputed_flops_per_example"] == 0
    assert 0.2 < checkpointed["recomputed_flops_per_example"] / plain["flops_per_example"] < 0.4
    assert checkpointed["activation_bytes_per_example"] < plain["activation_bytes_per_example"]


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--gpu", "h100"], "did you mean 'h100-80g'"),
        (["--gpu", "h100-80g", "--local-mfu", "2"], "local_mfu"),
        (["--gpu", "h100-80g", "--local-mfu", "half"], "--local-mfu"),
        (["--gpu", "h100-80g", "--dp-shard", "3"], "--dp-shard"),
        (["--gpu", "h100-80g", "--overlpa", "1"], "did you mean '--overlap'"),
        (["--gpu", "h100-80g", "train.batch_size=9"], "--local-batch"),
        (["--gpu", "cpu"], "--memory-gb-per-s"),
        (["--gpu", "h100-80g", "--embedding-params", "1e15", "--embedding-tables", "2"], "more --embedding-tables"),
    ],
)
def test_what_the_user_can_mend(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--world-size", "8", *words]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize("sizes", ["0", "eight", "8,,16", "-8"])
def test_world_sizes_are_numbers(sizes: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "--gpu", "h100-80g", f"--world-size={sizes}"]) == 2
    assert "--world-size" in capsys.readouterr().err
