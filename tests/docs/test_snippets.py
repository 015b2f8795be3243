"""Every snippet of every page is run, or checked as far as that goes without a network or a long training."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from pages import PAGES, ROOT, Block, blocks, name_of
from script import Script

from gemkit.registry import load_registry

AT_LEAST = {
    "README.md": {"file": 2, "trained": 5, "error": 1, "pip install": 1, "make": 2, "gemkit config": 1},
    "CONTRIBUTING.md": {"make": 4, "tests": 1},
    "docs/ablation.md": {"file": 4, "study": 1, "planned": 5, "gemkit ablate": 8},
    "docs/configuration.md": {"file": 2, "choice": 2, "gemkit config": 6, "error": 2},
    "docs/cost.md": {"counted": 3, "python": 1},
    "docs/install.md": {"make": 3, "trained": 1, "gemkit doctor": 1},
    "docs/metrics.md": {"json": 1},
    "docs/plan.md": {"gemkit plan": 5, "program": 1},
    "docs/results.md": {"shipped": 4, "program": 6},
    "docs/reproduce.md": {"program": 2, "trained": 3, "gemkit train": 4, "gemkit predict": 1, "gemkit data": 1},
    "docs/write-a-plugin.md": {"file": 5, "choice": 1, "pip install": 1, "pytest": 1, "trained": 2},
    "docs/transfer.md": {"taught": 1, "trained": 2, "gemkit config": 1, "file": 3, "study": 1, "planned": 4},
    "docs/datasets.md": {"gemkit data": 1, "trained": 8},
    "docs/scaling.md": {"file": 1, "ladder": 1, "planned": 4, "gemkit scale": 6},
    "docs/your-own-data.md": {"file": 11, "choice": 3, "gemkit data": 9, "gemkit train": 4, "error": 2, "python": 1},
}
"""Page -> what must have been found there, so that a page whose snippets are not seen is no page without faults."""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A working folder with the examples alone; plugins that a page installs are forgotten afterwards."""
    here = tmp_path / "page"
    here.mkdir()
    (here / "examples").symlink_to(ROOT / "examples")
    monkeypatch.chdir(here)
    monkeypatch.setattr(sys, "path", [*sys.path])
    modules = set(sys.modules)
    yield here
    for name in set(sys.modules) - modules:
        if str(getattr(sys.modules[name], "__file__", None) or "").startswith(str(here)):
            del sys.modules[name]
    load_registry.cache_clear()


@pytest.fixture
def script(folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Script:
    return Script(folder, tmp_path / "data", capsys)


@pytest.mark.parametrize("page", [p for p in PAGES if blocks(p)], ids=name_of)
def test_a_page_is_a_script(page: Path, script: Script) -> None:
    for block in blocks(page):
        try:
            script.run(block)
        except (Exception, SystemExit) as error:
            raise AssertionError(f"{name_of(page)}, line {block.line}: {error}") from error
    script.finish()
    for what, count in AT_LEAST.get(name_of(page), {}).items():
        assert script.done[what] >= count, f"{what}: {script.done}"


def test_every_page_that_is_counted_on_is_there() -> None:
    assert [name for name in AT_LEAST if not (ROOT / name).is_file()] == []
    assert len(PAGES) >= 12


def test_a_plugin_takes_20_lines() -> None:
    source = next(b.text for b in blocks(ROOT / "README.md") if b.title.endswith(".py"))
    lines = [line for line in source.splitlines() if line.strip()]
    assert len([line for line in lines if not line.startswith(("import ", "from "))]) <= 20


@pytest.mark.parametrize(
    "faults",
    [
        [Block("bash", "", "gemkit config interaction.rnak=1\n", 1)],
        [Block("bash", "", "gemkit train interaction=wukogn\n", 1), Block("text", "error", "error: other\n", 1)],
        [Block("bash", "", "gemkit trian\n", 1)],
        [Block("bash", "", "gemkit data fetch movielens1m data.splt=time\n", 1)],
        [Block("bash", "", "gemkit evaluate runs/x --best\n", 1)],
        [Block("bash", "", "make triain\n", 1)],
        [Block("bash", "", "rm -rf x\n", 1)],
        [Block("bash", "", "python benchmarks/movielens.py no_such_suite\n", 1)],
        [Block("python", "", "1 / 0\n", 1)],
        [Block("json", "", "{\n", 1)],
        [Block("yaml", "my/cross/x.yaml", "name: interformr\n", 1)],
        [Block("yaml", "my/cross/x.yaml", "name: {\n", 1)],
        [Block("ruby", "", "puts 1\n", 1)],
    ],
    ids=lambda faults: faults[0].text.strip(),
)
def test_a_faulty_snippet_is_seen(faults: list[Block], script: Script) -> None:
    with pytest.raises(Exception):  # noqa: B017 - whatever it is, it must not pass
        for block in faults:
            script.run(block)
        script.finish()
