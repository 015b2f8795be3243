"""Losses of tiny runs, step by step, against those that were written down.

They change when the model, the data's order, the first weights or the optimisers change. If that is meant:

    python tests/golden/test_golden.py

writes them anew; the difference of losses.json then belongs in the commit, with its reason.
"""

from __future__ import annotations

import json
import sys
import tempfile
from pathlib import Path

import pytest
import torch

from gemkit.registry import load_registry
from gemkit.runs.folder import RunFolder
from gemkit.testing.runs import silent, tiny_run
from gemkit.testing.tolerances import TOLERANCES
from gemkit.train import train

FILE = Path(__file__).with_name("losses.json")

RUNS = {
    "default": [],
    "no_history": ["sequence=none", "cross=none"],
    "no_interaction": ["interaction=none"],
    "all_options": [
        "interaction.projection=attentive",
        "interaction.cross_layer_attention=true",
        "sequence.chunk_sizes=[4,2]",
        "cross.pffn=gdpa",
        "cross.personalise_from=all",
        "tokenizer.dense=periodic",
        "tokenizer.event_fusion=masknet",
        "domain=surface_embedding",
    ],
}
STEPS = 6


def losses(folder: Path, overrides: list[str]) -> list[float]:
    run = tiny_run(folder, f"train.max_steps={STEPS}", *overrides)
    before = set(Path(run.runs).glob("*"))
    train(run, load_registry(), progress=silent())
    (new,) = set(Path(run.runs).glob("*")) - before
    return [row["loss"] for row in RunFolder.open(new).rows() if row["split"] == "train"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("golden")


@pytest.mark.parametrize("name", RUNS)
def test_losses_are_those_written_down(folder: Path, name: str) -> None:
    relative, absolute = TOLERANCES[torch.float32]
    expected = json.loads(FILE.read_text(encoding="utf-8"))[name]
    assert len(expected) == STEPS
    assert losses(folder, RUNS[name]) == pytest.approx(expected, rel=relative, abs=absolute)


def test_every_run_is_written_down() -> None:
    assert list(json.loads(FILE.read_text(encoding="utf-8"))) == list(RUNS)


if __name__ == "__main__":
    with tempfile.TemporaryDirectory() as temporary:
        found = {name: [round(x, 7) for x in losses(Path(temporary), words)] for name, words in RUNS.items()}
    FILE.write_text(json.dumps(found, indent=2) + "\n", encoding="utf-8")
    sys.stdout.write(f"wrote {FILE}\n")
