"""Wukong: stacked factorization machines (arXiv 2403.02545)."""

from __future__ import annotations

from gemkit.hookspecs import hookimpl


@hookimpl
def gemkit_components() -> list[type]:
    from gemkit_wukong.wukong import Wukong

    return [Wukong]
