"""Checkpoint files: exact round trips, and every kind of damage refused."""

from __future__ import annotations

import copy
import json
import random
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from hypothesis import given
from hypothesis import strategies as st

from gemkit.errors import GemkitError
from gemkit.runs import checkpoint
from gemkit.runs.checkpoint import load, save
from gemkit.runs.nested import flatten_state, unflatten_state
from gemkit.runs.rng import rng_state, set_rng_state

DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.int64, torch.int32, torch.uint8, torch.bool)


def same(a: Any, b: Any) -> bool:
    if isinstance(a, torch.Tensor):
        return a.dtype == b.dtype and a.shape == b.shape and torch.equal(a, b)
    if isinstance(a, dict):
        return type(b) is dict and list(a) == list(b) and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return type(a) is type(b) and len(a) == len(b) and all(same(x, y) for x, y in zip(a, b, strict=True))
    return type(a) is type(b) and a == b


@pytest.fixture
def stored(tmp_path: Path) -> Path:
    path = tmp_path / "last.safetensors"
    save(path, {"w": torch.arange(64.0).reshape(8, 8), "b": torch.ones(3)}, {"step": 7, "text": "é"})
    return path


def test_round_trip_of_every_type_and_shape(tmp_path: Path) -> None:
    tensors = {str(dtype): torch.arange(6).reshape(2, 3).to(dtype) for dtype in DTYPES}
    tensors |= {"scalar": torch.tensor(3.5), "empty": torch.zeros(0, 4), "none": torch.zeros(0)}
    state = {"step": 3, "name": "é", "nested": {"list": [1, 2.5, None, True]}}
    save(tmp_path / "c.safetensors", tensors, state)
    loaded, loaded_state = load(tmp_path / "c.safetensors")
    assert loaded.keys() == tensors.keys()
    assert all(same(tensors[name], loaded[name]) for name in tensors)
    assert loaded_state == state


def test_views_and_shared_memory_are_stored_as_they_look(tmp_path: Path) -> None:
    base = torch.arange(12.0).reshape(3, 4)
    tensors = {"base": base, "again": base, "transposed": base.t(), "slice": base[1:, ::2]}
    save(tmp_path / "c.safetensors", tensors, {})
    loaded, _ = load(tmp_path / "c.safetensors")
    assert all(same(tensors[name], loaded[name]) for name in tensors)


def test_loaded_tensors_survive_that_the_file_is_replaced(stored: Path) -> None:
    tensors, _ = load(stored)
    save(stored, {"w": torch.zeros(8, 8)}, {})
    assert torch.equal(tensors["w"], torch.arange(64.0).reshape(8, 8))
    tensors["w"].add_(1)  # and they may be written to
    assert torch.equal(load(stored)[0]["w"], torch.zeros(8, 8))


def test_every_flipped_byte_is_refused_or_harmless(stored: Path) -> None:
    whole = stored.read_bytes()
    expected = load(stored)
    refused = 0
    for position in range(len(whole)):
        damaged = bytearray(whole)
        damaged[position] ^= 1
        stored.write_bytes(damaged)
        try:
            got = load(stored)
        except GemkitError:
            refused += 1
        else:  # a space in the header's padding
            assert same(expected[0], got[0]) and expected[1] == got[1], position
    assert refused > 0.95 * len(whole)


@pytest.mark.parametrize("length", [0, 5, 40, -1, -200])
def test_truncated_is_refused(stored: Path, length: int) -> None:
    stored.write_bytes(stored.read_bytes()[:length])
    with pytest.raises(GemkitError, match="cannot be read"):
        load(stored)


def test_damage_names_the_other_checkpoint(stored: Path) -> None:
    save(stored.with_name("best.safetensors"), {}, {})
    stored.write_bytes(b"")
    with pytest.raises(GemkitError, match=r"use another one: best\.safetensors"):
        load(stored)


def test_other_version_and_other_files_are_refused(stored: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(checkpoint, "FORMAT_VERSION", 99)
    with pytest.raises(GemkitError, match=r"format version [0-9]+\n(.|\n)*allowed: version 99"):
        load(stored)
    safetensors.torch.save_file({"w": torch.zeros(1)}, stored)
    with pytest.raises(GemkitError, match="not a checkpoint of gemkit"):
        load(stored)
    with pytest.raises(GemkitError, match=r"no checkpoint missing\.safetensors"):
        load(stored.with_name("missing.safetensors"))


WRITER = """
import resource, sys, torch
from pathlib import Path
from gemkit.errors import GemkitError
from gemkit.runs.checkpoint import save
resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
try:
    save(Path(sys.argv[1]), {"w": torch.zeros(100_000)}, {"step": 8})
except GemkitError as error:
    print(error)
"""


def test_a_failed_write_leaves_the_old_file_and_no_other(stored: Path) -> None:
    """The system refuses to write more than 4 kB, as a full disk would."""
    before = stored.read_bytes()
    command = [sys.executable, "-c", WRITER, str(stored)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert "cannot write last.safetensors: File too large" in done.stdout, done
    assert stored.read_bytes() == before
    assert [p.name for p in stored.parent.iterdir()] == [stored.name]


def test_writing_into_a_missing_folder_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(GemkitError, match="No such file or directory"):
        save(tmp_path / "missing" / "c.safetensors", {"w": torch.zeros(2)}, {})


def test_adamw_goes_on_as_if_never_interrupted(tmp_path: Path) -> None:
    def steps(model: torch.nn.Module, optimizer: torch.optim.Optimizer, n: int) -> None:
        for _ in range(n):
            optimizer.zero_grad()
            model(torch.randn(8, 4)).square().mean().backward()
            optimizer.step()

    def build() -> tuple[torch.nn.Module, torch.optim.Optimizer]:
        model = torch.nn.Linear(4, 2)
        groups = [{"params": [model.weight], "weight_decay": 0.1}, {"params": [model.bias], "weight_decay": 0.0}]
        return model, torch.optim.AdamW(groups, lr=1e-2, betas=(0.8, 0.95))

    torch.manual_seed(0)
    model, optimizer = build()
    steps(model, optimizer, 3)
    tensors, rest = flatten_state("optimizer", optimizer.state_dict())
    rng_tensors, rng_rest = flatten_state("rng", rng_state())
    weights = {f"model.{name}": value for name, value in model.state_dict().items()}
    path = tmp_path / "last.safetensors"
    save(path, tensors | rng_tensors | weights, {"optimizer": rest, "rng": rng_rest})
    expected_state = copy.deepcopy(optimizer.state_dict())
    steps(model, optimizer, 3)

    loaded, state = load(path)
    model2, optimizer2 = build()
    model2.load_state_dict({name: loaded[f"model.{name}"] for name in ("weight", "bias")})
    unflattened = unflatten_state(loaded, state["optimizer"])
    assert same(expected_state, unflattened)
    optimizer2.load_state_dict(unflattened)
    set_rng_state(unflatten_state(loaded, state["rng"]))
    steps(model2, optimizer2, 3)
    assert same(model.state_dict()["weight"], model2.state_dict()["weight"])
    assert same(optimizer.state_dict(), optimizer2.state_dict())


def test_random_generators_come_back() -> None:
    tensors, rest = flatten_state("rng", rng_state())
    rest = json.loads(json.dumps(rest))
    first = (random.random(), np.random.rand(), torch.rand(3).tolist())
    set_rng_state(unflatten_state(tensors, rest))
    assert (random.random(), np.random.rand(), torch.rand(3).tolist()) == first


KEYS = st.one_of(st.integers(), st.text(max_size=5), st.sampled_from(["$tensor", "$dict", "$tuple"]))
LEAVES = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.floats(allow_nan=False),
    st.text(max_size=5),
    st.lists(st.floats(width=32, allow_nan=False), max_size=3).map(torch.tensor),
)
NESTED = st.recursive(
    LEAVES,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(KEYS, inner, max_size=3),
    ),
)


@given(NESTED)
def test_any_nested_state_comes_back(nested: Any) -> None:
    try:
        tensors, rest = flatten_state("s", nested)
    except TypeError as error:
        assert "would be named" in str(error)  # keys 1 and "1", say
        return
    assert same(nested, unflatten_state(tensors, json.loads(json.dumps(rest))))


def test_what_a_checkpoint_cannot_hold_is_named() -> None:
    with pytest.raises(TypeError, match=r"s\.a\.0 is a set"):
        flatten_state("s", {"a": [{1}]})
    with pytest.raises(TypeError, match="would be named"):
        flatten_state("s", {1: torch.zeros(1), "1": torch.zeros(1)})
    with pytest.raises(GemkitError, match=r"no tensor s\.a"):
        unflatten_state({}, {"$dict": [["a", {"$tensor": "s.a"}]]})
