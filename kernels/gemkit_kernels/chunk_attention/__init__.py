"""Attention inside the chunks of jagged histories."""

from gemkit_kernels.chunk_attention.op import chunk_attention

__all__ = ["chunk_attention"]
