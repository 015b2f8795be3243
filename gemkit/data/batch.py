"""What the loader hands to the model. NamedTuples: pytrees whose tensors Fabric moves and compile sees."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor

from gemkit.nn.jagged import ChunkPlan


class Layout(NamedTuple):
    """Facts about the histories of one batch that the host knows, so that no step waits for the device.

    Attributes:
        max_length: Events in the longest history of the batch (0 if all are empty).
        chunks: The histories in chunks of `gemkit.nn.jagged.CHUNK` slots, for one matrix per history
            (`jagged_matmul`).
        plan: What `SequenceEncoder.plan` made of the lengths: inside a block, its own encoder's; in a batch, all of
            them, as `GEM.layout` orders them; or None.
        arrangement: What `Tokenizer.arrange` made, or None.
    """

    max_length: int
    chunks: ChunkPlan
    plan: Any = None
    arrangement: Any = None


class History(NamedTuple):
    """The batch's histories: each *distinct* one once, oldest event first, back to back.

        offsets  0        3     5            9
        values   [a b c | d e | f g h i]         U = 3 histories, T = 9 events
        history_index  [0 0 2 1]                 B = 4 examples; the first two share a history

    Attributes:
        offsets: (U+1,) int64, where each history starts and ends. `lengths = offsets.diff()`.
        ages: (T,) float32, seconds from the event to the example's timestamp, > 0. Where examples share a
            history they share the timestamp too.
        stream: (T,) int64, index into `Schema.streams`.
        history_index: (B,) int64, each example's history.
        first_example: (U,) int64, one example of each history (its user's features are the history's).
        layout: Host facts.
        stream_offsets: (U * S + 1,) int64, where each of the S streams of each history begins, if the run holds its
            streams apart (`data.streams_apart`); else None.
    """

    offsets: Tensor
    ages: Tensor
    stream: Tensor
    history_index: Tensor
    first_example: Tensor
    layout: Layout
    stream_offsets: Tensor | None = None


class Batch(NamedTuple):
    """B examples.

    Attributes:
        ids: Feature key -> int64 ids: (B,) for a single id, (V,) for a bag, (T,) for an event field
            (key ``events.<field>``). All are valid rows of the feature's table; 0 is "unknown".
        bag_offsets: Feature key -> (B+1,) int64, for bags only.
        dense: (B, number of dense features) float32, standardised.
        vectors: Feature name -> (B, width) float32.
        history: The histories, or None if the data set has none or the run reads none.
        labels: (B, P) float32, 0 or 1; 0 where masked.
        masks: (B, P) float32, 1 where the label counts.
        delays: (B, P) float32, seconds from the example to what the label is about; NaN where that has not happened
            (yet) or the task names no delay.
        elapsed: (B,) float32, seconds from the example to when its labels were looked at; infinite where they are
            final. A label of 0 may become 1 later.
        weights: (B,) float32, weight of each example in the loss.
        surface: (B,) int64, index into `Schema.surfaces`.
        group: (B,) int64, the gAUC group (0 if the schema names none).
        timestamp: (B,) int64, seconds since 1970 (0 if the data set has no time).
        example_id: (B,) int64, unique in the data set.
        totals: (P,) float32, what each task's sum of losses is divided by, so that the mean over processes of their
            losses is that of the global batch: its weights that count, divided by the number of processes. None: this
            batch is all there is.
    """

    ids: dict[str, Tensor]
    bag_offsets: dict[str, Tensor]
    dense: Tensor
    vectors: dict[str, Tensor]
    history: History | None
    labels: Tensor
    masks: Tensor
    delays: Tensor
    elapsed: Tensor
    weights: Tensor
    surface: Tensor
    group: Tensor
    timestamp: Tensor
    example_id: Tensor
    totals: Tensor | None = None

    @property
    def size(self) -> int:
        """B."""
        return int(self.labels.shape[0])
