"""A figure as an SVG file: the same figure makes the same bytes."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from gemkit.errors import GemkitError
from gemkit.runs.files import write_text


@contextlib.contextmanager
def svg_figure(path: Path, width: float, height: float) -> Iterator[Any]:
    """A matplotlib figure of `width` by `height` inches, written to `path` when the block ends.

    Raises:
        GemkitError: matplotlib is missing, or the file cannot be written.
    """
    try:
        import matplotlib
        from matplotlib.backends.backend_svg import FigureCanvasSVG
        from matplotlib.figure import Figure
    except ImportError as error:
        raise GemkitError("the plot needs matplotlib", where=str(path), fix="pip install matplotlib") from error
    with matplotlib.rc_context({"svg.hashsalt": "gemkit", "font.size": 10, "text.parse_math": False}):
        # Figure and canvas without pyplot: no global state, no display.
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        yield figure
        file = io.StringIO()
        figure.savefig(file, format="svg", metadata={"Date": None, "Creator": "gemkit"})
    write_text(path, file.getvalue())
