"""Few queries pool jagged histories by attention."""

from gemkit_kernels.jagged_pool.op import jagged_pool

__all__ = ["jagged_pool"]
