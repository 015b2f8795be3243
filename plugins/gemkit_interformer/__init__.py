"""InterFormer: tokens and events inform each other, layer by layer (arXiv 2411.09852)."""

from __future__ import annotations

from gemkit.hookspecs import hookimpl


@hookimpl
def gemkit_components() -> list[type]:
    from gemkit_interformer.interformer import InterFormer

    return [InterFormer]
