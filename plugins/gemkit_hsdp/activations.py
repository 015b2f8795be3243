"""What the forward pass of the dense part keeps for its backward pass."""

from __future__ import annotations

from typing import Any

from gemkit_kernels.fp8 import saved_in_fp8
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves


class SavedInFp8(nn.Module):
    """The dense part, whose training steps keep their large activations in FP8 (`saved_in_fp8`).

    The forward pass stays exact. Evaluation keeps no activations, and gradients that somebody takes of a model in
    evaluation mode are exact. Embedding tables are not inside: what they look up and how they update stays exact, for
    gradients that have come through rounded activations.

    Args:
        compiled: Whether parts of the dense part are compiled.
    """

    def __init__(self, dense: nn.Module, compiled: bool) -> None:
        super().__init__()
        self.dense, self.compiled = dense, compiled

    def forward(self, *inputs: Any) -> Any:
        """Shape: as the dense part."""
        # Not self.training: train() and eval() are called on the bare module, which knows nothing of this one.
        if not self.dense.training:
            return self.dense(*inputs)
        # A batch lives anyway, so it stays exact at no cost; of what is looked up for it, gradients are wanted.
        batch = [x for x in tree_leaves(inputs) if isinstance(x, Tensor) and not x.requires_grad]
        with saved_in_fp8(keep=[*self.dense.parameters(), *batch], same_strides=self.compiled):
            return self.dense(*inputs)
