"""Chunks of jagged rows: there and back, and what comes back as gradient."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from gemkit.nn.jagged import chunk_plan, from_chunks, to_chunks
from gemkit.testing.bench import noise


@pytest.mark.parametrize("align", ["newest", "oldest"])
@pytest.mark.parametrize("lengths", [[5, 0, 1, 9, 4], [0, 0, 3], [0, 0]])
def test_gradients_are_those_of_plain_indexing(lengths: list[int], align: str) -> None:
    plan = chunk_plan(np.array(lengths), 4, align)
    values = noise("values", sum(lengths), 3).double().requires_grad_()
    chunks = to_chunks(values, plan)
    for k in range(chunks.shape[0]):
        for c in range(4):
            if plan.valid[k, c]:
                assert torch.equal(chunks[k, c], values[plan.gather[k, c]])
    assert torch.equal(from_chunks(chunks, plan), values)

    if not sum(lengths):
        return  # nothing to send back

    weights, back = noise("weights", *chunks.shape).double(), noise("back", *values.shape).double()
    masked = (chunks * chunks * weights).masked_fill(~plan.valid.unsqueeze(-1), 0.0)
    (masked.sum() + (from_chunks(chunks.sin(), plan) * back).sum()).backward()
    plain = values.detach().clone().requires_grad_()
    slots = plan.position
    ((plain * plain * weights.view(-1, 3)[slots]).sum() + (plain.sin() * back).sum()).backward()
    torch.testing.assert_close(values.grad, plain.grad)
