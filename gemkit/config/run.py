"""The config of a run: one dataclass a section, every default in this file or in a component's own config."""

from __future__ import annotations

import dataclasses
from typing import Any

from gemkit.component import KINDS
from gemkit.config.fields import Config, option, shown, to_mapping
from gemkit.config.layers import LAYERED, Layer, LayerConfig, layer_of
from gemkit.errors import GemkitError


@dataclasses.dataclass(frozen=True, kw_only=True)
class TrainConfig(Config):
    """The loop: how long, how big a batch, in what precision, when to stop."""

    start_from: str | None = option(
        None,
        "Run folder to go on from: training begins with its last weights and optimiser states. It is the same model on "
        "the same id spaces, mostly of earlier days; null: first weights.",
        filled=True,
    )
    epochs: int = option(1, "Passes over the training split.", ge=1)
    max_steps: int | None = option(
        None, "Stop after this many optimiser steps, whatever the epoch; null: no limit.", ge=1
    )
    batch_size: int = option(1024, "Examples per optimiser step, over all ranks together.", ge=1)
    eval_batch_size: int = option(1024, "Examples per evaluation step.", ge=1)
    accumulate: int = option(
        1, "Micro-batches per step. Dense gradients add up; embedding tables update at every micro-batch.", ge=1
    )
    clip_norm: float | None = option(10.0, "Largest norm of the dense gradient; null: no clipping.", gt=0)
    precision: str = option("fp32", "Arithmetic of the dense part.", choices=("fp32", "bf16"))
    compile: bool = option(False, "torch.compile each block.")
    compile_cache: str | None = option(
        None,
        "Folder in which compiled code is kept for later runs, for each environment apart; null: gemkit/compiled in "
        "the user's cache folder. TORCHINDUCTOR_CACHE_DIR wins.",
        filled=True,
    )
    checkpoint_activations: bool = option(False, "Recompute each block in backward: less memory, more time.")
    activation_budget: float = option(
        1.0,
        "Memory for the blocks' activations, from the least that recomputing blocks can reach (0) to all of them (1). "
        "The blocks that cost least to recompute are.",
        ge=0,
        le=1,
    )
    eval_every: int | None = option(None, "Steps between validations; null: once an epoch.", ge=1)
    checkpoint_every: int | None = option(
        None, "Steps between checkpoints, besides those at each validation; null: only those.", ge=1
    )
    async_checkpoints: bool = option(
        False, "Copy a checkpoint and train on while it is written; takes the memory of one more (or two)."
    )
    autoresume: bool = option(
        False,
        "Go on with the newest run of this very config in `runs`, unless it has come to its end: for schedulers that "
        "start a job again.",
    )
    keep_checkpoints: int = option(
        1, "Older checkpoints that are kept beside best and last, in case the last is damaged.", ge=0
    )
    monitor: str = option(
        "logloss",
        "Validation metric of the first task that picks the best checkpoint.",
        choices=("logloss", "ne", "auc", "gauc_impressions"),
    )
    patience: int | None = option(None, "Stop after this many validations without a better one; null: never.", ge=1)
    num_threads: int | None = option(None, "CPU threads of PyTorch; null: PyTorch's choice.", ge=1, le=1024)
    log_every: int = option(50, "Steps between rows in metrics.jsonl.", ge=1)
    tensorboard: bool = option(False, "Also write TensorBoard event files into the run folder.")
    save_predictions: bool = option(False, "Also write predictions.safetensors, those for the test split.")

    def check(self) -> None:
        if self.checkpoint_activations and self.activation_budget < 1:
            raise GemkitError(
                f"activation_budget = {self.activation_budget} beside checkpoint_activations, which keeps none",
                where="activation_budget",
                allowed="one of the two",
                fix="train.checkpoint_activations=false, and the budget chooses the blocks",
            )


@dataclasses.dataclass(frozen=True, kw_only=True)
class SizeConfig(Config):
    """The dial: width, depth and number of tokens of the whole model."""

    dim: int = option(32, "Width D of tokens, events and every embedding table.", ge=4, le=16384)
    num_blocks: int = option(2, "Blocks; each has a cross, an interaction and a sequence layer.", ge=1, le=256)
    num_tokens: int = option(16, "Tokens that leave each interaction module.", ge=1, le=4096)


@dataclasses.dataclass(frozen=True, kw_only=True)
class OptimizerConfig(Config):
    """AdamW for the dense part, row-wise AdaGrad for the embedding tables, one schedule for both."""

    lr: float = option(1e-3, "Peak learning rate of AdamW.", gt=0)
    weight_decay: float = option(0.0, "Decoupled weight decay of dense matrices (not of biases and norms).", ge=0)
    beta1: float = option(0.9, "AdamW's decay of the first moment.", ge=0, lt=1)
    beta2: float = option(0.999, "AdamW's decay of the second moment.", ge=0, lt=1)
    eps: float = option(1e-8, "AdamW's epsilon.", gt=0)
    embedding_lr: float = option(0.05, "Peak learning rate of the embedding tables.", gt=0)
    embedding_eps: float = option(1e-8, "Row-wise AdaGrad's epsilon.", gt=0)
    warmup_steps: int = option(100, "Steps of linear warm-up.", ge=0)
    schedule: str = option("cosine", "After warm-up.", choices=("constant", "linear", "cosine"))
    final_lr_fraction: float = option(0.05, "Learning rate at the end, as a fraction of the peak.", ge=0, le=1)


READING = (
    *("root", "max_history", "streams", "streams_apart"),
    *("train_days", "valid_days", "test_days", "labels_as_of", "only_surfaces", "only_tasks"),
)
"""Options of a data component that say how a built data set is read, not what it holds."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class StreamWindow(Config):
    """How much of one kind of event is read."""

    name: str = option("", "Name of the stream, as the data set calls it.", filled=True)
    max_history: int = option(64, "Newest events of this stream that are read; 0: none.", ge=0)


@dataclasses.dataclass(frozen=True, kw_only=True)
class DataConfig(Config):
    """What every data component's config has; a recipe derives its own from it."""

    name: str = ""
    root: str = option(
        "datasets", "Folder that holds data sets; each lives in a folder of its own inside.", filled=True
    )
    max_history: int = option(64, "Newest events of each history that are read.", ge=1)
    streams: tuple[StreamWindow, ...] = option(
        (), "A window for each of these streams, in place of `max_history` for all together; others are not read."
    )
    streams_apart: bool = option(
        False, "Hold each history stream by stream, in the order of `streams` (or of the data set); false: by time."
    )
    train_days: tuple[float, ...] | None = option(
        None,
        "First and last day (excluded) of the examples that train, instead of the stored split; day 0 begins at the "
        "midnight (UTC) before the data set's first example.",
    )
    valid_days: tuple[float, ...] | None = option(None, "The same for validation.")
    test_days: tuple[float, ...] | None = option(None, "The same for the test.")
    labels_as_of: float | None = option(
        None,
        "Train and validate on labels as they were known when this day began: what had not happened yet is 0. The test "
        "has the final ones. null: so have all.",
        gt=0,
        le=100_000,
    )
    only_surfaces: tuple[str, ...] = option((), "Only examples on these surfaces; empty: on all.")
    only_tasks: tuple[str, ...] = option((), "Only these labels; empty: all.")

    def check(self) -> None:
        for name in ("train_days", "valid_days", "test_days"):
            days = getattr(self, name)
            if days is not None and (len(days) != 2 or not 0 <= days[0] < days[1] <= 100_000):
                raise GemkitError(
                    f"{name} = {list(days)} is no window",
                    where=name,
                    allowed="the first day and the last, excluded: [from, until] with 0 <= from < until",
                    fix=f"data.{name}=[0,7]",
                )
        names = [s.name for s in self.streams]
        if len(set(names)) < len(names):
            raise GemkitError("a stream is named twice", where="streams", allowed="one window for each stream")

    @property
    def folder_name(self) -> str:
        """Folder of the built data set inside `root`; a recipe that builds several gives each its own."""
        return self.name

    @property
    def build_options(self) -> dict[str, Any]:
        """What the built data set depends on; one that was built with other options is built again."""
        return {k: v for k, v in to_mapping(self).items() if k not in READING}


@dataclasses.dataclass(frozen=True, kw_only=True)
class LoaderConfig(Config):
    """Which training examples come when, and who makes batches of them. Validation and test are read as stored."""

    order: str = option(
        "shuffled",
        "Shuffled by seed and epoch; by time, for one pass over a stream; or as stored, by user and time.",
        choices=("shuffled", "time", "stored"),
    )
    shuffle_buffer: int = option(
        1_000_000, "Examples that are shuffled (or sorted by time) together; 8 bytes each, twice.", ge=1
    )
    group: str = option(
        "history",
        "What shuffling keeps together: nothing; the examples of a user at one time, which share a history; a user's.",
        choices=("none", "history", "user"),
    )
    balance: bool = option(
        True, "Divide each batch among the ranks so that all have as many events; one rank: nothing to divide."
    )
    workers: int = option(1, "Threads or processes that make batches ahead; 0: none, training waits.", ge=0, le=256)
    worker_kind: str = option("thread", "What the workers are.", choices=("thread", "process"))
    prefetch: int = option(2, "Batches that are made ahead, on each rank.", ge=1, le=1024)
    pin_memory: bool = option(True, "With CUDA: page-locked batches, copied to the GPU while it computes.")


@dataclasses.dataclass(frozen=True, kw_only=True)
class RunConfig:
    """A whole run. Component sections hold the component's own config, or None for ``none``.

    The component sections are typed loosely because their dataclasses live in plugins;
    `gemkit.registry` builds and checks them.
    """

    seed: int
    runs: str
    """Folder in which run folders are made."""
    train: TrainConfig
    size: SizeConfig
    optimizer: OptimizerConfig
    loader: LoaderConfig
    data: Any
    tokenizer: Any
    interaction: Any
    sequence: Any
    cross: Any
    domain: Any
    head: Any
    transfer: Any
    parallel: Any
    layers: tuple[LayerConfig, ...] = ()
    """What is different about single blocks; `blocks` says what follows from it."""

    @property
    def blocks(self) -> list[Layer]:
        """What each block is made of, `layers` applied."""
        return [layer_of(self, i) for i in range(self.size.num_blocks)]

    def components(self) -> list[tuple[str, Any]]:
        """Kind and config of everything that the run is made of, each once."""
        found = [(kind, getattr(self, kind)) for kind in KINDS if kind not in LAYERED]
        found += [(kind, getattr(block, kind)) for kind in LAYERED for block in self.blocks]
        return [pair for i, pair in enumerate(found) if pair[1] is not None and pair not in found[:i]]

    @property
    def reads_events(self) -> bool:
        """Whether any block encodes histories; without one, none are read."""
        return any(block.sequence is not None for block in self.blocks)

    def __post_init__(self) -> None:
        if isinstance(self.seed, bool) or not isinstance(self.seed, int) or not 0 <= self.seed < 2**32:
            raise GemkitError(
                f"seed = {shown(self.seed)} is out of range", where="seed", allowed="a whole number, 0 to 2**32 - 1"
            )
