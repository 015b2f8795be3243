"""Wukong's optimised factorization machine, with the LayerNorm that follows it."""

from gemkit_kernels.fm_block.op import fm_block

__all__ = ["fm_block"]
