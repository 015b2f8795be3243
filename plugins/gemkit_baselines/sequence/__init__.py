"""Alternatives to the pyramid, each a published block."""

from __future__ import annotations


def components() -> list[type]:
    """Component classes of this folder; imported here, so that the plugin costs nothing until it is asked."""
    from gemkit_baselines.sequence.mean_pooling import MeanPooling

    return [MeanPooling]
