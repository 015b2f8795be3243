"""Alternatives to the pyramid, each a published block."""

from __future__ import annotations


def components() -> list[type]:
    """Component classes of this folder; imported here, so that the plugin costs nothing until it is asked."""
    from gemkit_baselines.sequence.blocks import Blocks
    from gemkit_baselines.sequence.din import DIN
    from gemkit_baselines.sequence.hstu import HSTU
    from gemkit_baselines.sequence.mean_pooling import MeanPooling
    from gemkit_baselines.sequence.sliding_window import SlidingWindow
    from gemkit_baselines.sequence.transformer import Transformer

    return [MeanPooling, DIN, Transformer, SlidingWindow, Blocks, HSTU]
