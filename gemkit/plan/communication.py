"""Bytes and seconds of collectives over ranks that sit in nodes. Bandwidth only: no contention.

A group of n ranks has k members in each node that it touches, so m = n / k nodes. The members of a node share the work
of its network ports, one each: a hierarchical collective, as NCCL's rings over all ports amount to.
"""

from __future__ import annotations

import dataclasses

from gemkit.plan.gpus import Gpu


@dataclasses.dataclass(frozen=True, kw_only=True)
class Group:
    """Ranks that communicate.

    Attributes:
        size: n.
        per_node: k.
    """

    size: int
    per_node: int

    @property
    def nodes(self) -> float:
        return self.size / self.per_node


def consecutive(size: int, gpu: Gpu) -> Group:
    """Ranks in a row, node by node."""
    return Group(size=size, per_node=min(size, gpu.per_node))


def strided(size: int, stride: int, gpu: Gpu) -> Group:
    """Every `stride`-th rank."""
    return Group(size=size, per_node=min(size, max(1, gpu.per_node // stride)))


def gathered_bytes(whole: float, group: Group) -> float:
    """What a rank receives in an all-gather of `whole` bytes, or sends in a reduce-scatter: `(n - 1) / n`."""
    return whole * (group.size - 1) / group.size


def gather_s(whole: float, group: Group, gpu: Gpu) -> float:
    """All-gather or reduce-scatter: the slower of the links in the nodes and of those between them."""
    k, m = group.per_node, group.nodes
    return max(
        whole * (k - 1) / k / gpu.intra_bytes_per_s,
        whole * (m - 1) / m / (k * gpu.inter_bytes_per_s),
    )


def reduced_bytes(whole: float, group: Group) -> float:
    """What a rank sends in an all-reduce: a reduce-scatter and an all-gather."""
    return 2 * gathered_bytes(whole, group)


def reduce_s(whole: float, group: Group, gpu: Gpu) -> float:
    """All-reduce."""
    return 2 * gather_s(whole, group, gpu)


def exchanged_bytes(held: float, group: Group) -> float:
    """What of `held` bytes, meant for all ranks alike, a rank sends to others in an all-to-all."""
    return gathered_bytes(held, group)


def exchange_s(held: float, group: Group, gpu: Gpu) -> float:
    """All-to-all, of the rank that holds `held` bytes: `(k - 1) / n` of them stay in the node, `(n - k) / n` leave."""
    n, k = group.size, group.per_node
    return max(held * (k - 1) / n / gpu.intra_bytes_per_s, held * (n - k) / n / gpu.inter_bytes_per_s)
