"""The shards of a TorchRec table that this process holds."""

from __future__ import annotations

from typing import Any

from torch import Tensor


def local_shards(held: Any) -> list[tuple[tuple[int, ...], Tensor]]:
    """First index and numbers of each shard that is here, as views.

    Args:
        held: A ShardedTensor; or a DTensor, as TorchRec has it in groups of processes.
    """
    from torch.distributed.tensor import DTensor

    if not isinstance(held, DTensor):
        return [(tuple(s.metadata.shard_offsets), s.tensor.detach()) for s in held.local_shards()]
    local: Any = held._local_tensor  # a LocalShardsWrapper; to_local() would copy it for autograd
    values = [values.detach() for values in local.local_shards()]
    # A process without shards has one offset all the same.
    return list(zip(map(tuple, local.local_offsets()[: len(values)]), values, strict=True))
