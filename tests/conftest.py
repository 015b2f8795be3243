"""What all tests share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

from gemkit.runs import curves

DRAWN = b"drawn"
"""What is in curves.png."""


def pytest_configure(config: pytest.Config) -> None:
    """Of what hypothesis makes up for slow tests, `make test` tries the first few."""
    settings.register_profile("all", max_examples=25)
    settings.register_profile("few", max_examples=10)
    settings.load_profile("few" if config.getoption("markexpr") == "not slow" else "all")


@pytest.fixture(scope="session", autouse=True)
def no_pictures() -> Iterator[Callable[..., None]]:
    """Drawing curves.png takes as long as all else of a tiny run: a file stands for it. Gives what really draws."""
    draw = curves.draw_curves

    def quick(rows: Sequence[Mapping[str, Any]], path: Path, title: str) -> None:
        curves._collect(rows)
        path.write_bytes(DRAWN)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(curves, "draw_curves", quick)
        yield draw


@pytest.fixture
def pictures(no_pictures: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    """Curves are drawn."""
    monkeypatch.setattr(curves, "draw_curves", no_pictures)
