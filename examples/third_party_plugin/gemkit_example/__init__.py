"""A third-party plugin: what `gemkit_components` returns, a run can name."""

from __future__ import annotations

from gemkit.hookspecs import hookimpl


@hookimpl
def gemkit_plugin_api() -> int:
    return 1  # the version this plugin was written for


@hookimpl
def gemkit_components() -> list[type]:
    from gemkit_example.cross_net import CrossNet
    from gemkit_example.nextitnet import NextItNet
    from gemkit_example.similarity import SimilarityPreserving

    return [CrossNet, NextItNet, SimilarityPreserving]
