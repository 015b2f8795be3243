"""Heads: how tasks and surfaces share what follows the readout."""

from __future__ import annotations


def components() -> list[type]:
    """Component classes of this folder; imported here, so that the plugin costs nothing until it is asked."""
    from gemkit_baselines.heads.multitask import MultiTaskHead

    return [MultiTaskHead]
