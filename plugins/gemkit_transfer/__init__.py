"""Knowledge transfer from a teacher to a student."""

from __future__ import annotations

from gemkit.hookspecs import hookimpl


@hookimpl
def gemkit_components() -> list[type]:
    from gemkit_transfer.distill import Distill

    return [Distill]
