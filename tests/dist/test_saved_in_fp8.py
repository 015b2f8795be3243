"""Activations saved in FP8 by several processes: of what FSDP gathers, weights are told from activations."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from fp8_worker import EXAMPLES, LAYOUTS
from launch import HERE, torchrun

pytestmark = pytest.mark.xdist_group("processes")
"""One after the other: four processes are enough for a machine."""


def test_activations_alone_are_cast_and_training_goes_on_nearly_alike(tmp_path: Path) -> None:
    done = torchrun(2, str(HERE / "fp8_worker.py"), str(tmp_path))
    assert done.returncode == 0, done.stdout[-4000:]
    rows = {row["layout"]: row for row in (json.loads(s) for s in done.stdout.splitlines() if s.startswith("{"))}
    assert list(rows) == list(LAYOUTS)
    for layout, row in rows.items():
        assert not row["cast_in_exact"] and len(row["sizes"]) > 8, layout
        assert not [n for n in row["sizes"] if n % EXAMPLES], f"{layout}: a weight was cast"
        if "accumulated" not in layout:  # tables have learned from the first micro-batch when the second one comes
            assert row["fp8"][0] == row["exact"][0], "the forward pass is exact"
        assert row["fp8"][1:] != row["exact"][1:]
        assert row["fp8"] == pytest.approx(row["exact"], rel=1e-3)
    assert rows["hsdp"]["fp8"] == pytest.approx(rows["ddp"]["fp8"], rel=1e-5)
