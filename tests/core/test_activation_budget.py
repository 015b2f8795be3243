"""`train.activation_budget`: which blocks it chooses, that nothing changes but the memory, and what it says."""

from __future__ import annotations

import contextlib
import dataclasses
import io
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from torch import Tensor
from torch.utils._pytree import tree_leaves

from gemkit.config.compose import compose
from gemkit.cost.count import count, middle_batch
from gemkit.cost.recompute import choose, peak, recomputed, recomputed_for
from gemkit.errors import GemkitError
from gemkit.registry import load_registry
from gemkit.runs.folder import RunFolder
from gemkit.runs.progress import Progress
from gemkit.testing.runs import silent, stopped_run, tiny_run
from gemkit.train import Training, train

SIZE = ("size.num_blocks=4", "size.num_tokens=12", "train.batch_size=512", "tokenizer.dropout=0.1")


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where the data set of this file's runs lives; it is built once."""
    return tmp_path_factory.mktemp("data")


@contextlib.contextmanager
def training(data: Path, tmp_path: Path, *words: str, progress: Progress | None = None) -> Iterator[Training]:
    run = tiny_run(data, *SIZE, *words, f"runs={tmp_path / 'open'}")
    with contextlib.ExitStack() as resources:
        yield Training(run, load_registry(), None, progress or silent(), ["gemkit", "train"], resources)


def losses(folder: RunFolder) -> list[float]:
    return [row["loss"] for row in folder.rows() if row["split"] == "train"]


# --- the choice -----------------------------------------------------------------------------------------------


def every_choice(count: int) -> Iterator[tuple[int, ...]]:
    for size in range(count + 1):
        yield from itertools.combinations(range(count), size)


@pytest.mark.parametrize("tail", [0, 40, 300])
@pytest.mark.parametrize("budget", [0.0, 0.2, 0.5, 0.75, 0.9, 1.0])
def test_the_choice_is_the_cheapest_of_all_that_fit(tail: int, budget: float) -> None:
    """Against trying each subset; so few bytes are not rounded."""
    freed, flops = [50, 120, 80, 200, 10, 90, 60], [7, 30, 12, 20, 9, 5, 40]
    full, least = peak(freed, tail, ()), peak(freed, tail, range(7))
    limit = least + int(budget * (full - least))
    chosen = choose(freed, flops, tail, budget)
    assert peak(freed, tail, chosen) <= limit
    fitting = [set(c) for c in every_choice(7) if peak(freed, tail, c) <= limit]
    assert sum(flops[i] for i in chosen) == min(sum(flops[i] for i in c) for c in fitting)


def test_the_peak_is_that_of_a_step_played_through() -> None:
    freed, tail = [3, 5, 2, 4], 1
    for chosen in every_choice(4):
        there, highest = 0, 0
        for block, size in enumerate(freed):
            there += size
            highest = max(highest, there)
            there -= size if block in chosen else 0
        there += tail
        highest = max(highest, there)
        there -= tail
        for block, size in reversed(list(enumerate(freed))):
            there += size if block in chosen else 0
            highest = max(highest, there)
            there -= size
        assert there == 0 and peak(freed, tail, chosen) == highest


def test_equal_blocks_are_recomputed_from_the_front() -> None:
    freed, flops = [10**6] * 8, [5] * 8
    sizes = [len(choose(freed, flops, 1000, budget / 10)) for budget in range(11)]
    assert sizes == sorted(sizes, reverse=True) and sizes[0] == 8 and sizes[-1] == 0
    for budget in range(11):
        chosen = choose(freed, flops, 1000, budget / 10)
        assert chosen == tuple(range(len(chosen)))


def test_many_unequal_blocks_are_chosen_in_time() -> None:
    generator = torch.Generator().manual_seed(1)
    freed, flops = (torch.randint(10**6, 10**9, (256,), generator=generator).tolist() for _ in range(2))
    chosen = choose(freed, flops, 10**8, 0.5)
    full, least = peak(freed, 10**8, ()), peak(freed, 10**8, range(256))
    # Rounding 256 blocks up to a thousandth of all leaves at most about a quarter of the budget unused.
    assert 0.3 < (peak(freed, 10**8, chosen) - least) / (full - least) <= 0.51


# --- a model --------------------------------------------------------------------------------------------------


def kept_bytes(one: Training) -> int:
    """What the autograd graph of one forward pass keeps, parameters and batch apart: by looking at all its nodes."""
    batch = next(iter(one.loader.epoch(0)))
    embedded = one.model.embeddings(batch.ids)
    there = [*one.model.dense.parameters(), *(x for x in tree_leaves(batch) if isinstance(x, Tensor))]
    known = {x.untyped_storage()._cdata for x in there}
    found: dict[int, Any] = {}

    def pack(x: Tensor) -> Tensor:
        storage = x.untyped_storage()
        if storage._cdata not in known:
            found[storage._cdata] = storage
        return x

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
        one.model.forward(batch, embedded)
    return sum(storage.nbytes() for storage in found.values())


def test_what_recomputing_frees_is_what_it_is_counted_to_free(data: Path, tmp_path: Path) -> None:
    with training(data, tmp_path) as one:
        cost = count(one.run, one.model.schema, load_registry(), next(iter(one.loader.epoch(0))))
        assert len(cost.blocks) == 4 and all(b.forward_flops > 0 for b in cost.blocks)
        whole = kept_bytes(one)
        for block, own in enumerate(cost.blocks):
            one.model.dense.recomputed = (block,)
            inputs_alone = whole - kept_bytes(one) - own.freed_bytes
            # The hooks do not see what a recomputed block holds on to: its inputs, which are not counted as freed.
            assert 0 <= inputs_alone < 0.5 * own.freed_bytes
            assert own.freed_bytes > 0.1 * whole


BUDGETS = ("1", "0.4", "0")


def test_losses_and_weights_are_the_same_bit_for_bit(data: Path, tmp_path: Path) -> None:
    found = {}
    for budget in BUDGETS:
        run = tiny_run(
            data,
            *SIZE,
            f"train.activation_budget={budget}",
            "train.max_steps=2",
            f"runs={tmp_path / budget}",
        )
        metrics = train(run, load_registry(), progress=silent())
        (path,) = (tmp_path / budget).iterdir()
        found[budget] = losses(RunFolder.open(path)), metrics["test"]
    assert len(found["1"][0]) == 2
    for budget in BUDGETS[1:]:
        assert found[budget] == found["1"]


def test_smaller_budgets_recompute_more(data: Path, tmp_path: Path) -> None:
    chosen, at_most = [], []
    for budget in BUDGETS:
        with training(data, tmp_path, f"train.activation_budget={budget}") as one:
            chosen.append(one.model.dense.recomputed)
            choice = recomputed_for(one.model, load_registry(), one.dataset, 1)
            limit = choice.least_bytes + float(budget) * (choice.full_bytes - choice.least_bytes)
            assert choice.peak_bytes <= limit * 1.001
            assert budget == "1" or choice.blocks == one.model.dense.recomputed
            at_most.append(choice.peak_bytes)
    assert chosen[0] == () and [len(c) for c in chosen] == sorted(len(c) for c in chosen)
    assert at_most == sorted(at_most, reverse=True) and at_most[0] > 1.5 * at_most[-1]


def test_blocks_run_again_only_if_they_are_chosen(data: Path, tmp_path: Path) -> None:
    with training(data, tmp_path, "train.activation_budget=0.5") as one:
        calls = [0] * 4
        for block, module in enumerate(one.model.dense.blocks):
            module.register_forward_hook(lambda *_, block=block: calls.__setitem__(block, calls[block] + 1))
            # A recomputed block stops early, once all that backward needs is there: count where it begins.
            module.register_forward_pre_hook(lambda *_, block=block: calls.__setitem__(block, calls[block] + 1000))
        one.model(next(iter(one.loader.epoch(0)))).logits.sum().backward()
        again = tuple(block for block, number in enumerate(calls) if number >= 2000)
        assert again == one.model.dense.recomputed and 0 < len(again) < 4
        one.model.dense.eval()
        calls[:] = [0] * 4
        one.model(next(iter(one.loader.epoch(0)))).logits.sum().backward()
        assert max(calls) < 2000, "evaluation keeps what somebody wants gradients of"


def test_the_choice_is_the_same_in_every_process(data: Path, tmp_path: Path) -> None:
    """It is made on the same batch of a share's size, not on the process's own share."""
    with training(data, tmp_path, "train.activation_budget=0.5", "train.accumulate=2") as one:
        whole, half = (recomputed_for(one.model, load_registry(), one.dataset, world) for world in (1, 2))
        assert half.full_bytes < 0.8 * whole.full_bytes


def test_a_run_says_what_it_recomputes(data: Path, tmp_path: Path) -> None:
    heard = io.StringIO()
    progress = Progress(quiet=False, console=Console(file=heard, width=300))
    with training(data, tmp_path, "train.activation_budget=0.5", progress=progress) as one:
        blocks = ", ".join(map(str, one.model.dense.recomputed))
    assert f"note: train.activation_budget=0.5: blocks {blocks} of 4 are recomputed in backward" in heard.getvalue()
    with training(data, tmp_path, progress=progress):
        assert heard.getvalue().count("recomputed") == 2  # "all recomputed" in the same note


def test_a_resumed_run_may_have_another_budget(data: Path, tmp_path: Path) -> None:
    """A run that found no room goes on with less, and ends where it would have ended."""
    words = [*SIZE, "train.epochs=2"]
    train(tiny_run(data, *words, f"runs={tmp_path / 'whole'}"), load_registry(), progress=silent())
    run = tiny_run(data, *words, f"runs={tmp_path / 'stopped'}")
    folder = stopped_run(run)
    smaller = dataclasses.replace(run, train=dataclasses.replace(run.train, activation_budget=0.3))
    train(smaller, load_registry(), folder.path, progress=silent())
    (path,) = (tmp_path / "whole").iterdir()
    assert losses(folder) == losses(RunFolder.open(path))


def test_what_is_refused() -> None:
    for word, where in (("-0.1", "train.activation_budget"), ("1.5", "train.activation_budget")):
        with pytest.raises(GemkitError) as caught:
            compose([f"train.activation_budget={word}"], load_registry())
        assert caught.value.where == where
    with pytest.raises(GemkitError, match="keeps none"):
        compose(["train.activation_budget=0.5", "train.checkpoint_activations=true"], load_registry())
    with pytest.raises(GemkitError, match="reckons with activations"):
        compose(["train.activation_budget=0.5", "parallel.saved_activations=fp8"], load_registry())


def test_the_cost_report_says_what_a_budget_would_mean(data: Path, tmp_path: Path) -> None:
    with training(data, tmp_path) as one:
        cost = count(one.run, one.model.schema, load_registry(), middle_batch(one.loader))
        least, half = (
            recomputed(
                dataclasses.replace(one.run, train=dataclasses.replace(one.run.train, activation_budget=b)), cost
            )
            for b in (0.0, 0.5)
        )
        assert least.peak_bytes == least.least_bytes and half.flops_share < least.flops_share <= 1
