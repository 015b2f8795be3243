"""The cost meter: against PyTorch's own counter, against formulas by hand, and what it must leave alone."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import re
import resource
from pathlib import Path
from typing import Any

import gemkit_baselines
import gemkit_datasets
import gemkit_hsdp
import gemkit_interformer
import gemkit_pyramid
import gemkit_wukong
import pytest
import torch
from fake_plugins import FakePlugin
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn import functional as F
from torch.utils.flop_counter import FlopCounterMode, register_flop_formula

from gemkit.cli.main import main
from gemkit.component import component
from gemkit.config.compose import compose
from gemkit.config.fields import Config
from gemkit.config.run import RunConfig
from gemkit.cost import CostMeter, ModuleCost, RunCost, count, matmul_peak, model_cost
from gemkit.cost.formulas import flops_of
from gemkit.data.batch import Batch
from gemkit.data.collate import collate
from gemkit.interfaces import InteractionModule
from gemkit.model import GEM
from gemkit.nn.init import init_parameters
from gemkit.registry import INTERFACES, Registry, load_registry
from gemkit.runs.folder import RunFolder
from gemkit.session import open_dataset, reading_of
from gemkit.testing import bench
from gemkit.testing.runs import silent, tiny_run
from gemkit.train import train

ROOT = Path(__file__).resolve().parents[2]
NOT_BLOCKS = ("data", "transfer", "parallel")
aten = torch.ops.aten
RUNS = {
    "default": [],
    "no_history": ["sequence=none", "cross=none"],
    "mean_pooling": ["sequence=mean_pooling"],
    "paper": ["cross.personalise_from=all", "sequence.chunk_sizes=[4,2]", "tokenizer.dropout=0.1"],
    "all_options": [
        "interaction.projection=attentive",
        "interaction.cross_layer_attention=true",
        "cross.pffn=gdpa",
        "tokenizer.dense=periodic",
        "tokenizer.event_fusion=masknet",
        "domain=surface_embedding",
    ],
    "long": ["sequence=transformer", "data.max_history=1000"],
}
BLOCKS = [
    f"{spec.kind}={spec.name}" for kind in INTERFACES if kind not in NOT_BLOCKS for spec in load_registry().specs(kind)
]


def scores_and_mixed(query: Tensor, key: Tensor, *_: Any, **__: Any) -> int:
    """Two products of all queries with all keys."""
    return 2 * 2 * query.numel() * key.shape[-2]


def five_products(gradient: Tensor, query: Tensor, key: Tensor, *_: Any, **__: Any) -> int:
    """Backward makes the scores anew."""
    return 5 * 2 * query.numel() * key.shape[-2]


for formula in (scores_and_mixed, five_products):
    formula._get_raw = True  # type: ignore[attr-defined]  # the counter passes tensors, not shapes
FUSED = {  # on CPUs; PyTorch's counter does not know it
    aten._scaled_dot_product_flash_attention_for_cpu: scores_and_mixed,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: five_products,
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data set of this file's runs lives; it is built once."""
    return tmp_path_factory.mktemp("data")


def cost_of(run: RunConfig, registry: Registry | None = None, **options: Any) -> RunCost:
    registry = registry or load_registry()
    return model_cost(run, registry, open_dataset(run, registry, silent()), **options)


def a_batch(run: RunConfig, dense: GEM, size: int = 50) -> Batch:
    dataset = open_dataset(run, load_registry(), silent())
    return collate(dataset, dataset.split("train")[:size], reading_of(run, dense))


# --- against PyTorch's counter --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", RUNS)
def test_a_whole_model_counts_as_pytorchs_counter_counts_it(data: Path, name: str) -> None:
    """FLOPs of forward, of backward, and of each component in forward, of a step that is really computed."""
    run = tiny_run(data, *RUNS[name])
    schema = open_dataset(run, load_registry(), silent()).schema
    dense = GEM(run, schema, load_registry())
    init_parameters(dense, 1)
    batch = a_batch(run, dense)
    embedded = {key: torch.rand(len(ids), 16, requires_grad=True) for key, ids in batch.ids.items()}
    with FlopCounterMode(display=False, custom_mapping=FUSED) as forward:
        loss = dense.head.loss(dense(batch, embedded).logits, batch)
    with FlopCounterMode(display=False, custom_mapping=FUSED) as backward:
        loss.backward()
    cost = count(run, schema, load_registry(), batch)
    assert not cost.ran and not cost.unknown
    assert cost.total.forward_flops == forward.get_total_flops() > 1e6
    assert cost.total.backward_flops == backward.get_total_flops() > 1e6
    modules = {"GEM." + path: sum(calls.values()) for path, calls in forward.get_flop_counts().items()}
    modules = {path.removeprefix("GEM.GEM."): flops for path, flops in modules.items()}
    for part, found in cost.components().items():
        path = re.sub(r"^block(\d+)", r"blocks.\1", part)
        assert found.forward_flops == modules.get(path, 0), part
    assert sum(part.flops for part in cost.components().values()) == cost.total.flops
    assert cost.dense_params == sum(p.numel() for p in dense.parameters())


@pytest.mark.parametrize("words", [*BLOCKS, *map(" ".join, RUNS.values())])
def test_fake_tensors_count_as_real_ones(data: Path, words: str) -> None:
    """Everything, bytes of activations too, whatever block a model is made of."""
    run = tiny_run(data, *words.split(), *(["size.num_blocks=1"] if words in BLOCKS else []))
    schema = open_dataset(run, load_registry(), silent()).schema
    batch = a_batch(run, GEM(run, schema, load_registry()))
    fake, real = (count(run, schema, load_registry(), batch, fake=fake) for fake in (True, False))
    assert (fake.ran, real.ran) == (False, True)
    assert fake.total.activation_bytes > 10_000
    assert dataclasses.replace(fake, ran=True) == real


# --- against formulas -----------------------------------------------------------------------------------------


def metered(module: nn.Module, call: Any, inputs: Any = ()) -> ModuleCost:
    """The cost of `call`, which returns what backward starts from."""
    with CostMeter(module, inputs) as meter:
        call().sum().backward()
    assert not meter.unknown
    return sum(meter.costs.values(), ModuleCost())


def test_an_mlp_by_hand() -> None:
    """FLOPs are 2 for each weight and row, and twice that backward; kept are the two activations, once each."""
    module = nn.Sequential(nn.Linear(5, 7), nn.ReLU(), nn.Linear(7, 3), nn.Tanh())
    x = torch.rand(11, 5, requires_grad=True)
    with CostMeter(module, [x]) as meter:
        module(x).sum().backward()
    costs = meter.costs
    assert list(costs) == ["", "0", "1", "2", "3"]
    assert costs["0"] == ModuleCost(params=42, forward_flops=770, backward_flops=1540)
    assert costs["1"] == ModuleCost(activation_bytes=4 * 77)  # which layer 2 keeps as well
    assert costs["2"] == ModuleCost(params=24, forward_flops=462, backward_flops=924)
    assert costs["3"] == ModuleCost(activation_bytes=4 * 33)
    assert costs[""] == ModuleCost()


def test_an_input_without_gradient_halves_the_first_layers_backward() -> None:
    module = nn.Sequential(nn.Linear(5, 7), nn.Linear(7, 3))
    cost = metered(module, lambda: module(torch.rand(11, 5)))
    assert cost.forward_flops == 770 + 462
    assert cost.backward_flops == 770 + 2 * 462


def wukong_macs(n: int, n_out: int, dim: int, n_fm: int, rank: int, hidden: list[int]) -> int:
    """Multiply-adds of one layer and example, from the paper's equations."""
    widths = [n * rank, *hidden, n_fm * dim]
    mlp = sum(a * b for a, b in itertools.pairwise(widths))
    residual = n_out * n * dim if n != n_out else 0
    return 2 * n * rank * dim + mlp + (n_out - n_fm) * n * dim + residual


@pytest.mark.parametrize("n", [5, 6])
def test_a_wukong_layer_by_hand(n: int) -> None:
    spec = load_registry().get("interaction", "wukong")
    config = spec.config(num_fm_tokens=4, rank=3, hidden=(9, 8))
    module = spec.cls(config, bench.context(num_tokens_in=n, num_tokens_out=6))
    x = torch.rand(7, n, bench.DIM, requires_grad=True)
    cost = metered(module, lambda: module(x, []))
    assert cost.forward_flops == 2 * 7 * wukong_macs(n, 6, bench.DIM, 4, 3, [9, 8])
    assert cost.backward_flops == 2 * cost.forward_flops


@pytest.mark.parametrize("chunk_sizes", [(16,), (8, 2)])
def test_a_pyramid_layer_by_hand(chunk_sizes: tuple[int, ...]) -> None:
    spec = load_registry().get("sequence", "pyramid")
    module = spec.cls(spec.config(chunk_sizes=chunk_sizes, num_summaries=2), bench.context()).train()
    events = bench.make_inputs(module, bench.some_rows(), num_cls=2).events
    values, cls = (t.clone().requires_grad_() for t in (events.values, events.cls))

    def call() -> Tensor:
        out = module(events._replace(values=values, cls=cls), torch.zeros(0))
        return torch.cat([out.values, out.cls.flatten(0, 1)])

    dim, macs, recomputed = bench.DIM, 0, 0
    rows = len(values)
    for level in events.layout.plan.levels:
        chunks, slots = level.slots.gather.shape
        macs += rows * (4 * dim * dim + 2 * dim * dim)  # q, k, v, out; feed-forward
        # Scores and their product with v; summaries; gate and down.
        macs += chunks * (slots * (2 * slots * dim + 2 * 2 * dim) + 2 * dim * dim)
        recomputed += chunks * slots * slots * dim
        rows = 2 * chunks
    histories, slots = events.layout.plan.top.gather.shape[0], events.layout.plan.top.gather.shape[1] + 2
    macs += histories * slots * (4 * dim * dim + 2 * slots * dim)
    recomputed += histories * slots * slots * dim
    cost = metered(module, call)
    assert cost.forward_flops == 2 * macs
    assert cost.backward_flops == 2 * cost.forward_flops + 2 * recomputed  # fused attention makes its scores anew


def test_mean_pooling_has_no_products() -> None:
    spec = load_registry().get("sequence", "mean_pooling")
    module = spec.cls(spec.config(), bench.context())
    events = bench.make_inputs(module, bench.some_rows()).events
    values = events.values.clone().requires_grad_()
    events = events._replace(values=values)
    cost = metered(module, lambda: module(events, torch.zeros(0)).values, events)
    assert cost.flops == cost.params == 0
    # Kept: the history of every event, for the sum, and each history's length, to divide by.
    histories = len(events.offsets) - 1
    assert cost.activation_bytes == 8 * len(events.values) + 4 * histories


def test_the_wukong_table_of_the_docs() -> None:
    """The page's computed column, from the component on the meta device: 720 tokens in, D = 160."""
    text = (ROOT / "docs/cost.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d) \| (\d+) \| (\d+) \| 3 x (\d+) \| ([\d.]+) \| [\d.]+ \|$", text, re.MULTILINE)
    assert [row[-1] for row in rows] == ["0.40", "0.84", "1.38", "5.0", "22.9", "58.0", "116"]
    for i, (*numbers, printed) in enumerate(rows, 1):
        num_layers, num_each, rank, width = map(int, numbers)
        run = compose([f"experiment=wukong_row{i}"], load_registry())
        assert (run.size.num_blocks, run.size.num_tokens, run.size.dim) == (num_layers, 2 * num_each, 160)
        config = run.interaction
        assert (config.num_fm_tokens, config.rank, config.hidden) == (num_each, rank, (width,) * 3)
        value = 1e-9 * flops_of_stack(config, num_layers, 2 * num_each)
        assert f"{value:.{len(printed.partition('.')[2])}f}" == printed


def flops_of_stack(config: Any, num_layers: int, num_tokens: int) -> float:
    """Forward and backward of one example."""
    with torch.device("meta"):
        wukong = load_registry().get("interaction", "wukong").cls
        sizes = [720] + [num_tokens] * (num_layers - 1)
        contexts = [bench.context(i, dim=160, num_tokens_in=n, num_tokens_out=num_tokens) for i, n in enumerate(sizes)]
        layers = nn.ModuleList(wukong(config, context) for context in contexts)
        x = torch.empty(3, 720, 160, requires_grad=True)

    def call() -> Tensor:
        out = x
        for layer in layers:
            out = layer(out, [])
        return out

    return metered(layers, call).flops / 3


# --- who pays -------------------------------------------------------------------------------------------------


class Times(nn.Module):
    """A product and nothing before it: its first node is the one that costs."""

    def __init__(self, num_in: int, num_out: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.rand(num_in, num_out))

    def forward(self, x: Tensor) -> Tensor:
        return x.mm(self.weight)


class Fork(nn.Module):
    """Two branches whose nodes alternate in the graph, one layer used twice, a product of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.left, self.right, self.twice = Times(4, 4), nn.Linear(4, 8), Times(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        left, right = x, self.right(x)
        for _ in range(3):
            left, right = self.left(left), self.twice(right)
        return torch.bmm(left.unsqueeze(1), right.view(-1, 4, 2))


def test_backward_belongs_to_the_module_that_made_the_node() -> None:
    module = Fork()
    x = torch.rand(10, 4, requires_grad=True)
    with CostMeter(module) as meter:
        module(x).sum().backward()
    found = {path: (cost.forward_flops, cost.backward_flops) for path, cost in meter.costs.items()}
    assert found == {
        "": (160, 320),
        "left": (3 * 320, 6 * 320),
        "right": (640, 1280),
        "twice": (3 * 1280, 6 * 1280),
    }


class Product(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, a: Tensor, b: Tensor) -> Tensor:
        ctx.save_for_backward(a, b)
        return a @ b

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor]:
        a, b = ctx.saved_tensors
        return gradients[0] @ b.t(), a.t() @ gradients[0]


class Parts(nn.Module):
    """Products in every form that blocks use."""

    def __init__(self, form: str) -> None:
        super().__init__()
        self.form = form
        self.weight = nn.Parameter(torch.rand(3, 6))

    def forward(self, x: Tensor) -> Tensor:
        """Shape: (2, 6, 5) -> (...)."""
        match self.form:
            case "function":
                return Product.apply(self.weight, x[0])  # type: ignore[no-any-return]
            case "expanded":
                return torch.bmm(self.weight.expand(2, -1, -1), x)
            case "einsum":
                return torch.einsum("kn,bnd->bkd", self.weight, x)
            case "vector":
                return x.transpose(1, 2) @ self.weight[0]
            case "attention":
                heads = x.transpose(1, 2).contiguous().unsqueeze(1)
                return F.scaled_dot_product_attention(heads, heads * self.weight[0], heads)
        raise AssertionError(self.form)


@pytest.mark.parametrize("fake", [False, True])
@pytest.mark.parametrize(
    ("form", "forward", "backward"),
    [
        ("function", 2 * 90, 4 * 90),
        ("expanded", 2 * 180, 4 * 180),
        ("einsum", 2 * 180, 4 * 180),
        ("vector", 2 * 60, 2 * 60),  # the outer product of its backward is no sum of products
        # 5 x 5 scores of 6 in 2 sequences; backward computes the scores again.
        ("attention", 2 * 2 * 300, 5 * 2 * 300),
    ],
)
def test_every_form_of_a_product(form: str, forward: int, backward: int, fake: bool) -> None:
    with FakeTensorMode() if fake else torch.device("cpu"):
        module, x = Parts(form), torch.rand(2, 6, 5, requires_grad=True)
        cost = metered(module, lambda: module(x))
    assert (cost.forward_flops, cost.backward_flops) == (forward, backward)


def test_shared_parameters_and_storages_count_once() -> None:
    module = nn.ModuleDict({"a": nn.Linear(6, 6), "b": nn.Linear(6, 6)})
    module["b"].weight = module["a"].weight
    x = torch.rand(4, 6, requires_grad=True)

    def call() -> Tensor:
        hidden = torch.sigmoid(x)
        return module["a"](hidden) * module["b"](hidden.view(2, 2, 6)).view(4, 6) + hidden[:2].repeat(2, 1).sigmoid()

    cost = metered(module, call, x)
    assert cost.params == 36 + 6 + 6
    assert cost.activation_bytes == 4 * 24 * 4  # hidden, both factors of the product, the last sigmoid


def test_an_operator_without_a_formula_is_named() -> None:
    @torch.library.custom_op("gemkit_test::product", mutates_args=())
    def product(a: Tensor, b: Tensor) -> Tensor:
        return a @ b

    operator = torch.ops.gemkit_test.product
    a = torch.rand(2, 3)
    with CostMeter(nn.Identity()) as meter:
        product(a, a.t())
    assert meter.unknown == {"gemkit_test.product.default"}

    @register_flop_formula(operator)
    def formula(a_shape: Any, b_shape: Any, *_: Any, **__: Any) -> int:
        return int(2 * a_shape[0] * a_shape[1] * b_shape[1])

    with CostMeter(nn.Identity()) as meter:
        product(a, a.t())
    assert not meter.unknown and meter.costs[""].forward_flops == 24


@pytest.mark.parametrize(
    ("name", "args", "flops"),
    [
        ("mv", [torch.rand(3, 4), torch.rand(4)], 24),
        ("addmv", [torch.rand(3), torch.rand(3, 4), torch.rand(4)], 24),
        ("dot", [torch.rand(4), torch.rand(4)], 8),
        ("vdot", [torch.rand(4), torch.rand(4)], 8),
        ("addr", [torch.rand(3, 4), torch.rand(3), torch.rand(4)], 24),
        ("add", [torch.rand(4), torch.rand(4)], 0),
    ],
)
def test_products_that_pytorch_does_not_count(name: str, args: list[Tensor], flops: int) -> None:
    operator = getattr(torch.ops.aten, name)
    operator = operator.Tensor if name == "add" else operator.default
    assert flops_of(operator, tuple(args), {}, operator(*args)) == flops


def test_the_meter_leaves_nothing_behind() -> None:
    module = Fork()
    with pytest.raises(RuntimeError), CostMeter(module):
        module(torch.rand(2, 3))
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in module.modules())
    with CostMeter(module) as meter:
        pass
    module(torch.rand(10, 4)).sum().backward()
    assert sum(meter.costs.values(), ModuleCost()).flops == 0


# --- of a run -------------------------------------------------------------------------------------------------


def test_rows_name_components_and_what_is_inside(data: Path) -> None:
    cost = cost_of(tiny_run(data))
    parts = [f"block{i}.{side}" for i in (0, 1) for side in ("cross", "interaction", "sequence")]
    assert list(cost.components()) == ["tokenizer", *parts, "readout", "head", "between"]
    deep = cost.components(1)
    assert {name: deep[name] for name in cost.components()} == cost.components()
    inside = [part for name, part in deep.items() if name.startswith("block0.interaction.")]
    whole = cost.components()["block0.interaction"]
    assert len(inside) > 2 and sum(part.forward_flops for part in inside) == whole.forward_flops
    assert cost.components()["between"] == ModuleCost(activation_bytes=8 * 3)  # which tokens are the target's
    assert any(name.count(".") == 3 for name in cost.components(2))
    assert cost.params == cost.dense_params + sum(t.params for t in cost.tables.values())


def test_tables_are_rows_and_traffic(data: Path) -> None:
    run = tiny_run(data)
    dataset = open_dataset(run, load_registry(), silent())
    schema = dataset.schema
    batch = a_batch(run, GEM(run, schema, load_registry()))
    cost = count(run, schema, load_registry(), batch)
    rows = {table.name: table.num_embeddings for table in schema.tables}
    assert {name: (t.num_embeddings, t.params) for name, t in cost.tables.items()} == {
        name: (n, 16 * n) for name, n in rows.items()
    }
    items = torch.cat([batch.ids["item_id"], batch.ids["events.item_id"]]).tolist()
    table = cost.tables["item_id"]
    assert (table.lookups, table.distinct) == (len(items), len(set(items)))
    assert (table.read_bytes, table.written_bytes) == (64 * len(items), 64 * len(set(items)))
    assert (cost.num_examples, cost.num_events) == (50, len(items) - 50)
    without = cost_of(tiny_run(data, "sequence=none", "cross=none"))
    assert without.num_events == without.num_histories == 0 and without.tables["item_id"].lookups == 128


def test_examples_that_share_a_history_cost_less(data: Path) -> None:
    shared, apart = (
        cost_of(tiny_run(data, f"cross.personalise_from={who}"), num_examples=100) for who in ("user", "all")
    )
    assert shared.num_examples == apart.num_examples == apart.num_histories == 100 > shared.num_histories
    sequence = [cost.components()["block0.sequence"].flops for cost in (shared, apart)]
    assert sequence[0] < 0.9 * sequence[1]


def test_what_is_recomputed_is_not_counted(data: Path) -> None:
    assert cost_of(tiny_run(data, "train.checkpoint_activations=true")) == cost_of(tiny_run(data))


def test_bf16_keeps_less_and_computes_the_same(data: Path) -> None:
    words = ["sequence=none", "cross=none"]
    full, half = (cost_of(tiny_run(data, f"train.precision={p}", *words), num_examples=500) for p in ("fp32", "bf16"))
    assert half.total.flops == full.total.flops
    assert half.total.activation_bytes < 0.85 * full.total.activation_bytes


def test_twenty_billion_parameters_take_no_memory(data: Path) -> None:
    words = ["size.dim=2048", "size.num_tokens=64", "interaction.hidden=[32768]", "interaction.rank=128"]
    run = tiny_run(data, *words, "size.num_blocks=2")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cost = cost_of(run)
    assert cost.params > 5e9 and not cost.ran
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 500_000  # kB


def test_counting_leaves_random_streams_alone(data: Path) -> None:
    run = tiny_run(data, "tokenizer.dropout=0.5")
    schema = open_dataset(run, load_registry(), silent()).schema
    batch = a_batch(run, GEM(run, schema, load_registry()))
    before = torch.get_rng_state(), random.getstate()
    for fake in (True, False):
        count(run, schema, load_registry(), batch, fake=fake)
    matmul_peak("cpu", torch.float64, -1)
    assert torch.equal(torch.get_rng_state(), before[0]) and random.getstate() == before[1]


@dataclasses.dataclass(frozen=True, kw_only=True)
class LookingConfig(Config):
    """No options."""

    name: str = "looking"


@component("interaction", LookingConfig)
class Looking(InteractionModule):
    """Decides by what it sees."""

    fails = False

    def __init__(self, config: LookingConfig, context: Any) -> None:
        super().__init__()
        self.num_tokens_out = context.num_tokens_in
        self.map = nn.Linear(context.dim, context.dim)

    def forward(self, x: Tensor, earlier: Any) -> Tensor:
        if self.fails:
            raise RuntimeError("needs another machine")
        return self.map(x) if bool(x.detach().isfinite().all()) else x


def with_looking() -> Registry:
    plugins = [gemkit_baselines, gemkit_datasets, gemkit_hsdp, gemkit_interformer, gemkit_pyramid, gemkit_wukong]
    return Registry.from_plugins([*plugins, FakePlugin(Looking)])


def test_a_component_that_looks_at_its_numbers_is_run(data: Path) -> None:
    registry = with_looking()
    cost = cost_of(tiny_run(data, "interaction=looking", registry=registry), registry)
    assert cost.ran
    parts = cost.components()
    tokens = parts["block0.interaction"].forward_flops // (2 * 128 * 16 * 16)
    assert tokens > 4 and parts["block0.interaction"].backward_flops == 2 * parts["block0.interaction"].forward_flops


# --- in a run's metrics ---------------------------------------------------------------------------------------


def test_a_run_says_its_mfu(data: Path, tmp_path: Path) -> None:
    run = tiny_run(data, "train.max_steps=2", f"runs={tmp_path}")
    found = train(run, load_registry(), progress=silent())["train"]
    cost = cost_of(run)
    assert found["flops_per_example"] == cost.flops_per_example
    assert (found["params"], found["dense_params"]) == (cost.params, cost.dense_params)
    assert found["matmul_peak_flops_per_s"] == matmul_peak("cpu", torch.float32, torch.get_num_threads()) > 1e8
    expected = found["examples_per_s"] * found["flops_per_example"] / found["matmul_peak_flops_per_s"]
    assert found["mfu"] == pytest.approx(expected) and 0 < expected < 1


def test_a_step_that_cannot_be_counted_costs_a_run_its_mfu_only(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    registry = with_looking()
    run = tiny_run(data, "interaction=looking", "train.max_steps=1", f"runs={tmp_path}", registry=registry)

    def failing(*arguments: Any) -> Any:
        monkeypatch.setattr(Looking, "fails", True)
        return count(*arguments)

    monkeypatch.setattr("gemkit.cost.mfu.count", failing)
    metrics = train(run, registry, progress=silent())
    assert metrics["train"]["mfu"] is None and metrics["train"]["flops_per_example"] is None
    (path,) = tmp_path.iterdir()
    assert RunFolder.open(path).metrics()["test"]["click"]["auc"] == metrics["test"]["click"]["auc"]
    assert "no MFU, because a step could not be counted: RuntimeError: needs another" in (path / "log.txt").read_text()


# --- the command ----------------------------------------------------------------------------------------------


def write_config(run: RunConfig, folder: Path) -> list[str]:
    """A folder of configs in which ``data=here`` is the run's data, and the words that use it."""
    import yaml

    from gemkit.config.fields import to_mapping

    (folder / "data").mkdir(parents=True)
    (folder / "data" / "here.yaml").write_text(yaml.safe_dump(to_mapping(run.data)), encoding="utf-8")
    return ["--config-dir", str(folder), "data=here", "size=small", "train.batch_size=64"]


def test_the_command_prints_and_writes_the_same(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = write_config(tiny_run(data), tmp_path / "configs")
    file = tmp_path / "cost.json"
    assert main(["cost", *words, "--depth", "1", "--json", str(file)]) == 0
    text = capsys.readouterr().out
    facts = json.loads(file.read_text())
    assert facts["batch"]["examples"] == 64 and "counted on a training batch: 64 examples of " in text
    for name, part in facts["components"].items():
        (line,) = re.findall(rf"^  {re.escape(name)} .*$", text, re.MULTILINE)
        assert f"{part['params']:,}" in line and f"{part['forward_flops'] / 1e6:,.3f}" in line, name
    whole = facts["components"]["all"]
    assert whole["forward_flops"] + whole["backward_flops"] == pytest.approx(facts["flops_per_example"])
    assert {"block0.interaction.fm", "all", "head"} <= facts["components"].keys()
    assert set(facts["tables"]) >= {"user_id", "item_id"} and facts["notes"] == []


def test_the_command_says_what_it_leaves_out(data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = write_config(tiny_run(data), tmp_path / "configs")
    extra = ["transfer=distill", "transfer.log=nowhere", "train.checkpoint_activations=true", "sequence=none"]
    assert main(["cost", *words, *extra, "cross=none"]) == 0
    text = capsys.readouterr().out
    assert "transfer=distill is not counted" in text
    assert "counted as without train.checkpoint_activations" in text
    assert "histories" not in text


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--depth", "-1"], "--depth is -1"),
        (["--depth", "x"], "invalid int value"),
        (["interaction=wukogn"], "did you mean 'wukong'"),
        (["size.num_tokens=1"], "leaves no token"),
        (["--jsn", "x"], "did you mean '--json'"),
    ],
)
def test_the_command_refuses(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["cost", *words]) == 2
    assert message in capsys.readouterr().err


def test_a_file_that_cannot_be_written_is_an_error(
    data: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = write_config(tiny_run(data), tmp_path / "configs")
    assert main(["cost", *words, "--json", str(tmp_path / "missing" / "cost.json")]) == 2
    assert "make the folder first" in capsys.readouterr().err
