"""Attention with an activation in place of softmax, to few keys."""

from gemkit_kernels.gdpa.op import gdpa

__all__ = ["gdpa"]
