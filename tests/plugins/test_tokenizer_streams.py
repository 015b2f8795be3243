"""Streams side by side, through MaskNet, against plain loops."""

from __future__ import annotations

from typing import Any

import hypothesis.strategies as st
import numpy as np
import torch
from gemkit_baselines.streams import align_streams
from hypothesis import given

from gemkit.nn.init import init_parameters
from gemkit.registry import load_registry
from gemkit.testing import bench
from gemkit.testing.contracts_any import nudge


def aligned(history: list[int], num_streams: int) -> list[list[int | None]]:
    """The places of the events that stand side by side, oldest first, from the streams of one history's events."""
    of_stream = [[i for i, s in enumerate(history) if s == stream] for stream in range(num_streams)]
    longest = max(map(len, of_stream), default=0)
    return [
        [places[len(places) - back] if back <= len(places) else None for places in of_stream]
        for back in range(longest, 0, -1)
    ]


@given(st.lists(st.lists(st.integers(0, 2), max_size=9), min_size=1, max_size=5))
def test_alignment_equals_plain_loops(histories: list[list[int]]) -> None:
    lengths = np.array([len(h) for h in histories])
    stream = np.array([s for h in histories for s in h], dtype=np.int64)
    out, alignment = align_streams(lengths, stream, 3)
    expected = [
        [None if place is None else start + place for place in row]
        for history, start in zip(histories, np.cumsum([0, *lengths[:-1]]).tolist(), strict=True)
        for row in aligned(history, 3)
    ]
    found = [
        [place if there else None for place, there in zip(places, present, strict=True)]
        for places, present in zip(alignment.gather.tolist(), alignment.present.tolist(), strict=True)
    ]
    assert found == expected
    assert out.tolist() == [len(aligned(h, 3)) for h in histories]
    assert alignment.offsets.tolist() == [0, *np.cumsum(out).tolist()]


def test_the_tokenizer_equals_plain_loops() -> None:
    spec = load_registry().get("tokenizer", "plain")
    module: Any = spec.cls(spec.config(stream_fusion="masknet"), bench.context())
    init_parameters(module, 1)
    nudge(module)
    module = module.double().eval()
    inputs = bench.make_inputs(module, bench.some_rows())
    embedded = {key: value.double() for key, value in inputs.embedded.items()}
    batch = inputs.batch._replace(
        dense=inputs.batch.dense.double(), vectors={k: v.double() for k, v in inputs.batch.vectors.items()}
    )
    history = batch.history
    assert history is not None
    events = module(batch, embedded).events
    fused = module.fuse(torch.cat([embedded[key] for key in module.event_keys], dim=1)) + module.streams(history.stream)
    rows = 0
    for u, (start, end) in enumerate(zip(history.offsets[:-1].tolist(), history.offsets[1:].tolist(), strict=True)):
        places = aligned(history.stream[start:end].tolist(), 2)
        assert events.offsets[u] == rows
        for row in places:
            side_by_side = torch.cat([torch.zeros(bench.DIM) if p is None else fused[start + p] for p in row]).double()
            expected = module.unify.compress(side_by_side * module.unify.mask(side_by_side))
            torch.testing.assert_close(events.values[rows], expected, rtol=1e-9, atol=1e-10)
            assert events.ages[rows] == min(history.ages[start + p] for p in row if p is not None)
            rows += 1
    assert rows == events.values.shape[0] < history.ages.shape[0]
