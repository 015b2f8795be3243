"""Heads: how tasks and surfaces share what follows the readout."""

from __future__ import annotations


def components() -> list[type]:
    """Component classes of this folder; imported here, so that the plugin costs nothing until it is asked."""
    from gemkit_baselines.heads.mmoe import MMoEHead
    from gemkit_baselines.heads.multitask import MultiTaskHead
    from gemkit_baselines.heads.per_surface import PerSurfaceHead
    from gemkit_baselines.heads.ple import PLEHead
    from gemkit_baselines.heads.single_task import SingleTaskHead

    return [MultiTaskHead, SingleTaskHead, PerSurfaceHead, MMoEHead, PLEHead]
