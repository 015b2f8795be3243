"""CLS tokens that see a whole history: chunk by chunk on CPUs, by `jagged_pool` on GPUs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from gemkit_baselines.sequence.local import cls_attention, cls_attention_jagged, local_plan
from torch import Tensor

from gemkit.nn.jagged import to_chunks

LENGTHS = np.array([3, 0, 40, 17, 1])
DIM, HEADS = 8, 2


@pytest.mark.parametrize("num_cls", [0, 1, 3])
def test_gpus_and_cpus_compute_the_same(num_cls: int) -> None:
    generator = torch.Generator().manual_seed(num_cls)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, dtype=torch.float64, generator=generator)

    cls, qkv = draw(len(LENGTHS), num_cls, 3 * DIM).requires_grad_(), draw(LENGTHS.sum(), 3 * DIM).requires_grad_()
    plan = local_plan(LENGTHS, 16)
    offsets = torch.from_numpy(np.concatenate(([0], np.cumsum(LENGTHS))))
    expected = cls_attention(cls, to_chunks(qkv, plan), plan, HEADS)
    found = cls_attention_jagged(cls, qkv, offsets, HEADS)
    torch.testing.assert_close(found, expected)
    if num_cls:
        weights = draw(*expected.shape)
        pairs = zip(*(torch.autograd.grad((out * weights).sum(), (cls, qkv)) for out in (found, expected)), strict=True)
        for pair in pairs:
            torch.testing.assert_close(*pair)
            assert pair[0].any()
