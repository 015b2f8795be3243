"""What a run needs besides the named blocks, and the plain alternatives to them."""

from __future__ import annotations

from gemkit.hookspecs import hookimpl


@hookimpl
def gemkit_components() -> list[type]:
    from gemkit_baselines.domain import SurfaceEmbedding
    from gemkit_baselines.head import MultiTaskHead
    from gemkit_baselines.mean_pooling import MeanPooling
    from gemkit_baselines.tokenizer import PlainTokenizer

    return [PlainTokenizer, MeanPooling, SurfaceEmbedding, MultiTaskHead]
