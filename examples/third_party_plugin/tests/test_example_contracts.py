"""gemkit's contract suite on this plugin's components."""

from __future__ import annotations

from pathlib import Path

import pytest
from gemkit_example.cross_net import CrossNet, CrossNetConfig
from gemkit_example.nextitnet import NextItNet, NextItNetConfig
from gemkit_example.similarity import SimilarityConfig, SimilarityPreserving

from gemkit.registry import load_registry
from gemkit.testing import contracts
from gemkit.testing.contracts import Check
from gemkit.testing.runs import silent, tiny_run
from gemkit.train import train

CHECKS = [
    *contracts(CrossNet, {"rank=1": CrossNetConfig(rank=1)}),
    *contracts(NextItNet, {"two_taps": NextItNetConfig(kernel_size=2, dilation=3)}),
]


@pytest.mark.parametrize("check", CHECKS, ids=str)
def test_contract(check: Check) -> None:
    check()


def test_transfer(tmp_path: Path) -> None:
    run = tiny_run(tmp_path, "train.max_steps=3", num_users=20, num_examples=800, num_events=3600)
    train(run, load_registry(), progress=silent())
    config = SimilarityConfig(teacher=str(next((tmp_path / "runs").iterdir())))
    checks = contracts(SimilarityPreserving, {"online": config}, only_given=True)
    assert checks
    for check in checks:
        check()
