"""Alternatives to Wukong, each a published block."""

from __future__ import annotations


def components() -> list[type]:
    """Component classes of this folder; imported here, so that the plugin costs nothing until it is asked."""
    from gemkit_baselines.interaction.autoint import AutoInt
    from gemkit_baselines.interaction.dcnv2 import DCNv2
    from gemkit_baselines.interaction.dhen import DHEN
    from gemkit_baselines.interaction.dlrm import DLRM
    from gemkit_baselines.interaction.finalmlp import FinalMLP
    from gemkit_baselines.interaction.fm import FM
    from gemkit_baselines.interaction.masknet import MaskNet

    return [AutoInt, DCNv2, DHEN, DLRM, FinalMLP, FM, MaskNet]
