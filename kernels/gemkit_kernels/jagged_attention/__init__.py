"""Full and sliding-window attention over jagged histories."""

from gemkit_kernels.jagged_attention.op import has_kernels, jagged_attention

__all__ = ["has_kernels", "jagged_attention"]
