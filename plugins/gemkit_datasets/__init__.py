"""Data sets: MovieLens-1M, and the user's own tables."""

from __future__ import annotations

from gemkit.hookspecs import hookimpl


@hookimpl
def gemkit_components() -> list[type]:
    """The plugin's data recipes."""
    from gemkit_datasets.movielens import MovieLens1M
    from gemkit_datasets.table import TableRecipe

    return [MovieLens1M, TableRecipe]
