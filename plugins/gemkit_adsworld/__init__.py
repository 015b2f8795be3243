"""A synthetic ads world with a known truth: `data=adsworld`."""

from __future__ import annotations

from gemkit.hookspecs import hookimpl


@hookimpl
def gemkit_components() -> list[type]:
    """The plugin's data recipe."""
    from gemkit_adsworld.recipe import AdsWorld

    return [AdsWorld]
