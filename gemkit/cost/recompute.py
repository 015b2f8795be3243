"""Which blocks backward computes again, so that the activations of all blocks fit into a budget of memory."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Sequence

from gemkit.config.run import RunConfig
from gemkit.cost.count import RunCost, count, middle_batch
from gemkit.data.dataset import Dataset
from gemkit.data.loader import Loader
from gemkit.errors import GemkitError
from gemkit.registry import Registry
from gemkit.session import Model, reading_of

STEPS = 1000
"""Memory is reckoned in thousandths of what all blocks keep, rounded up for each block."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Recomputed:
    """A choice of blocks, and what it means for one batch.

    Attributes:
        blocks: Those that backward computes again.
        num_blocks: Of the model.
        peak_bytes: Most that the blocks' activations, and those after them, take at a time; without blocks' inputs and
            outputs, which are kept anyway.
        full_bytes, least_bytes: The same if no block is computed again, and if all are.
        flops_share: FLOPs that are computed again, of all blocks' forward FLOPs.
    """

    blocks: tuple[int, ...]
    num_blocks: int
    peak_bytes: int
    full_bytes: int
    least_bytes: int
    flops_share: float

    def note(self, budget: float) -> str:
        """For people."""
        which = f"blocks {', '.join(map(str, self.blocks))} of {self.num_blocks} are" if self.blocks else "no block is"
        return (
            f"note: train.activation_budget={budget:g}: {which} recomputed in backward: {self.peak_bytes / 1e6:,.1f} MB"
            f" of activations at a time (all kept: {self.full_bytes / 1e6:,.1f}, all recomputed: "
            f"{self.least_bytes / 1e6:,.1f}), {self.flops_share:.0%} of the blocks' forward FLOPs again"
        )


def recomputed_for(model: Model, registry: Registry, dataset: Dataset, world_size: int) -> Recomputed:
    """The choice for a run and all of its processes: counted on one's share of a batch, without computing it.

    Raises:
        GemkitError: The model cannot be counted.
    """
    run = model.run
    size = max(run.train.batch_size // run.train.accumulate // world_size, 1)
    reading = reading_of(run, model.dense)
    loader = Loader(dataset, "train", batch_size=size, reading=reading, seed=run.seed, config=run.loader)
    try:
        cost = count(run, model.schema, registry, middle_batch(loader))
    except GemkitError:
        raise
    except Exception as error:
        raise GemkitError(
            f"the blocks' activations could not be counted: {type(error).__name__}: {error}",
            where="train.activation_budget",
            fix="train.activation_budget=1, perhaps with train.checkpoint_activations=true",
        ) from error
    return recomputed(run, cost)


def recomputed(run: RunConfig, cost: RunCost) -> Recomputed:
    """What `train.activation_budget` means for a run with this cost."""
    freed, flops = [b.freed_bytes for b in cost.blocks], [b.forward_flops for b in cost.blocks]
    chosen = choose(freed, flops, cost.tail_bytes, run.train.activation_budget)
    return Recomputed(
        blocks=chosen,
        num_blocks=len(freed),
        peak_bytes=peak(freed, cost.tail_bytes, chosen),
        full_bytes=peak(freed, cost.tail_bytes, ()),
        least_bytes=peak(freed, cost.tail_bytes, range(len(freed))),
        flops_share=sum(flops[i] for i in chosen) / max(sum(flops), 1),
    )


def peak(freed: Sequence[int], tail: int, chosen: Collection[int]) -> int:
    """The most that activations take at a time.

    At the end of forward those of all blocks that are kept are there, and the tail's. When backward comes to a block,
    those of kept blocks before it are, and its own: never let go, or computed again.

    Args:
        freed: What recomputing each block would free.
        tail: What is kept of what comes after the blocks.
        chosen: Blocks that are computed again.
    """
    kept = highest = 0
    for block, size in enumerate(freed):
        highest = max(highest, kept + size)
        kept += 0 if block in chosen else size
    return max(highest, kept + tail)


def choose(freed: Sequence[int], flops: Sequence[int], tail: int, budget: float) -> tuple[int, ...]:
    """The blocks with the fewest FLOPs whose recomputing brings the peak down to the budget; earlier ones among equals.

    Exact, by dynamic programming over the blocks and the memory kept so far, but for the rounding of memory (`STEPS`).
    Recomputing early blocks frees memory before the peak; the last block's activations are needed there anyway.

    Args:
        budget: From 0, the least peak that recomputing can reach, to 1, the peak without it.
    """
    unit = max(sum(freed) // STEPS, 1)
    sizes, end = [-(-size // unit) for size in freed], -(-tail // unit)
    full, least = peak(sizes, end, ()), peak(sizes, end, range(len(sizes)))
    limit = least + int(budget * (full - least))
    best: dict[int, tuple[int, tuple[int, ...]]] = {0: (0, ())}
    """Memory kept so far -> the least FLOPs with which that can be, and the blocks that are computed again."""
    for block, size in enumerate(sizes):
        found: dict[int, tuple[int, tuple[int, ...]]] = {}
        for kept, (spent, chosen) in best.items():
            if kept + size > limit:
                continue
            again = spent + flops[block], (*chosen, block)
            for memory, way in ((kept, again), (kept + size, (spent, chosen))):
                found[memory] = min(found.get(memory, way), way)
        best = found
    return min(way for kept, way in best.items() if kept + end <= limit)[1]
