"""Compiles a model block by block: equal blocks share one graph, and so do batches of all sizes."""

from __future__ import annotations

from pathlib import Path

from torch import nn

from gemkit.compilation.place import keep_compiled_code

GRAPHS_OF_A_BLOCK = 8
"""PyTorch's own limit of graphs of a function, which it makes for one block: with and without gradients, and again
where a batch has more than 4,096 events, from where on it adds up more exactly."""


def compile_blocks(blocks: nn.ModuleList, cache: str | None) -> None:
    """torch.compile each block, with sizes as variables of the graph.

    Args:
        cache: Folder in which compiled code is kept; None: the user's.
    """
    keep_compiled_code(None if cache is None else Path(cache))
    import torch._dynamo.config
    import torch._functorch.config

    # Without it the graphs of all blocks that use `gemkit.nn.jagged` would be traced again in each run: PyTorch takes
    # no graph with an autograd.Function of others from its cache unless told to. Their code is in the graph, and so in
    # the key. (Older versions of PyTorch have no such switch.)
    if hasattr(torch._functorch.config, "autograd_cache_allow_custom_autograd_functions"):
        torch._functorch.config.autograd_cache_allow_custom_autograd_functions = True
    # Numbers with a point are options of blocks. As variables they would be found out to be constants once the graph
    # has been differentiated, and tracing would start again: twice the time, and each time past the cache.
    torch._dynamo.config.specialize_float = True
    # All blocks are the same function to PyTorch, which past the limit would run them uncompiled.
    limit = max(torch._dynamo.config.recompile_limit, GRAPHS_OF_A_BLOCK * len(blocks))
    torch._dynamo.config.recompile_limit = limit
    for block in blocks:
        block.compile(dynamic=True)
