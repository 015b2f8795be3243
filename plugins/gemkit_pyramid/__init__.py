"""Pyramid-parallel encoding of long histories."""

from __future__ import annotations

from gemkit.hookspecs import hookimpl


@hookimpl
def gemkit_components() -> list[type]:
    from gemkit_pyramid.pyramid import PyramidEncoder

    return [PyramidEncoder]
