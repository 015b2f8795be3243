"""gemkit's contract suite on this plugin's components, and the numbers that it cannot know."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
import torch
from gemkit_example.cross_net import CrossNet, CrossNetConfig
from gemkit_example.nextitnet import NextItNet, NextItNetConfig
from gemkit_example.similarity import SimilarityConfig, SimilarityPreserving
from torch.nn import functional as F

from gemkit.component import spec_of
from gemkit.testing import bench, contracts
from gemkit.testing.contracts import Check
from gemkit.testing.teaching import write_log
from gemkit.testing.tolerances import assert_close

CHECKS = [
    *contracts(CrossNet, {"rank=1": CrossNetConfig(rank=1)}),
    *contracts(NextItNet, {"two_taps": NextItNetConfig(kernel_size=2, dilation=3)}),
]


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_contract(check: Check) -> None:
    check()


def test_nextitnet_equals_convolutions_of_single_histories() -> None:
    module = bench.build(spec_of(NextItNet), NextItNetConfig(), layer=1)
    events = bench.make_inputs(module, bench.some_rows()).events
    out = module(events, torch.empty(0)).values
    for start, end in itertools.pairwise(events.offsets.unique().tolist()):  # an empty history begins where it ends
        x = events.values[start:end]
        for linear, norm, dilation in zip(module.convolutions, module.norms, (4, 8), strict=True):
            kernel = linear.weight.view(bench.DIM, 3, bench.DIM).transpose(1, 2).flip(2)  # taps were newest first
            padded = F.pad(x.t(), (2 * dilation, 0))
            x = torch.relu(norm(F.conv1d(padded, kernel, linear.bias, dilation=dilation).t()))
        assert_close(out[start:end], events.values[start:end] + x, "a history")


def test_transfer(tmp_path: Path) -> None:
    write_log(tmp_path / "log", bench.dataset())
    config = SimilarityConfig(log=str(tmp_path / "log"))
    checks = contracts(SimilarityPreserving, {"logged": config}, only_given=True)
    assert checks
    for check in checks:
        check()
