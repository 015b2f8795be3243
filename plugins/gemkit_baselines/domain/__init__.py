"""Ways to adapt tokens to the surface."""

from __future__ import annotations


def components() -> list[type]:
    """Component classes of this folder; imported here, so that the plugin costs nothing until it is asked."""
    from gemkit_baselines.domain.surface_embedding import SurfaceEmbedding
    from gemkit_baselines.domain.surface_ffn import SurfaceFFN
    from gemkit_baselines.domain.surface_gated import SurfaceGated

    return [SurfaceEmbedding, SurfaceGated, SurfaceFFN]
