"""Ways to adapt tokens to the surface."""

from __future__ import annotations


def components() -> list[type]:
    """Component classes of this folder; imported here, so that the plugin costs nothing until it is asked."""
    from gemkit_baselines.domain.surface_embedding import SurfaceEmbedding

    return [SurfaceEmbedding]
