"""The example graphs and cycles compose."""

from __future__ import annotations

from pathlib import Path

import pytest

from gemkit.cli.main import main

EXAMPLES = Path(__file__).parents[2] / "examples" / "transfer"
FILES = sorted(EXAMPLES.glob("*.yaml"))


@pytest.mark.parametrize("file", FILES, ids=lambda f: f.stem)
def test_an_example_composes(file: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = "cycle" if "\nstudents:" in file.read_text(encoding="utf-8") else "transfer"
    assert main([command, str(file), "--check"]) == 0
    assert (" -> " if command == "transfer" else "serve days") in capsys.readouterr().out


def test_there_are_examples_of_both() -> None:
    texts = [file.read_text(encoding="utf-8") for file in FILES]
    assert {"\nstudents:" in text for text in texts} == {True, False}
