"""Parallel backends: where parameters and examples live."""

from __future__ import annotations

from gemkit.hookspecs import hookimpl


@hookimpl
def gemkit_components() -> list[type]:
    from gemkit_hsdp.single import SingleProcess

    return [SingleProcess]
