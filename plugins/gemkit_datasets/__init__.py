"""Data sets: MovieLens-1M, public ads sets from the files that a user has, and the user's own tables."""

from __future__ import annotations

from gemkit.hookspecs import hookimpl


@hookimpl
def gemkit_components() -> list[type]:
    """The plugin's data recipes."""
    from gemkit_datasets.amazonelectronics import AmazonElectronicsX1
    from gemkit_datasets.avazu import AvazuX1
    from gemkit_datasets.criteo import CriteoX1
    from gemkit_datasets.kuairand import KuaiRandPure
    from gemkit_datasets.kuaivideo import KuaiVideoX1
    from gemkit_datasets.movielens import MovieLens1M
    from gemkit_datasets.table import TableRecipe
    from gemkit_datasets.taobaoad import TaobaoAdX1

    return [MovieLens1M, CriteoX1, AvazuX1, TaobaoAdX1, KuaiVideoX1, AmazonElectronicsX1, KuaiRandPure, TableRecipe]
