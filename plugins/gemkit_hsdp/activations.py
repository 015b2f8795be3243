"""What the forward pass of the dense part keeps for its backward pass."""

from __future__ import annotations

from typing import Any

from gemkit_kernels.fp8.saved import LEAST, saved_in_fp8
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from gemkit_hsdp.memory import MemoryConfig


def saving(dense: nn.Module, config: MemoryConfig, compiled: bool, gathers: bool = False) -> nn.Module:
    """The dense part, and what `parallel.saved_activations` puts around it."""
    return SavedInFp8(dense, compiled, gathers) if config.saved_activations == "fp8" else dense


class SavedInFp8(nn.Module):
    """The dense part, whose training steps keep their large activations in FP8 (`saved_in_fp8`).

    The forward pass stays exact. Evaluation keeps no activations, and gradients that somebody takes of a model in
    evaluation mode are exact. Embedding tables are not inside: what they look up and how they update stays exact, for
    gradients that have come through rounded activations.

    Args:
        compiled: Whether parts of the dense part are compiled.
        gathers: Whether the weights of its parts are gathered before these are computed (FSDP).
    """

    def __init__(self, dense: nn.Module, compiled: bool, gathers: bool = False) -> None:
        super().__init__()
        self.dense, self.compiled, self.gathers = dense, compiled, gathers
        self._large = [
            (module, name)
            for module in dense.modules()
            for name, weight in module.named_parameters(recurse=False)
            if weight.numel() >= LEAST
        ]

    def forward(self, *inputs: Any) -> Any:
        """Shape: as the dense part."""
        # Not self.training: train() and eval() are called on the bare module, which knows nothing of this one.
        if not self.dense.training:
            return self.dense(*inputs)
        # A batch lives anyway, so it stays exact at no cost; of what is looked up for it, gradients are wanted.
        batch = [x for x in tree_leaves(inputs) if isinstance(x, Tensor) and not x.requires_grad]
        keep: Any = (lambda: [*self._gathered(), *batch]) if self.gathers else [*self.dense.parameters(), *batch]
        with saved_in_fp8(keep, same_strides=self.compiled):
            return self.dense(*inputs)

    def _gathered(self) -> list[Tensor]:
        """The large weights that are here as a whole now; a DTensor is one that has been cut."""
        from torch.distributed.tensor import DTensor

        weights = [getattr(module, name) for module, name in self._large]
        return [weight for weight in weights if not isinstance(weight, DTensor)]
