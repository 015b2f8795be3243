"""The Fabric strategy around a module that has been sharded already."""

from __future__ import annotations

from typing import Any

from torch import nn


def sharded_strategy(**options: Any) -> Any:
    """Processes and collectives as Fabric's DDP has them, without its wrapper. Lightning takes seconds to import."""
    from lightning.fabric.strategies.ddp import DDPStrategy

    class ShardedStrategy(DDPStrategy):
        def setup_module(self, module: nn.Module) -> nn.Module:  # type: ignore[override]
            return module

    return ShardedStrategy(**options)
