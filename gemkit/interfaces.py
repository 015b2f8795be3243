"""What each kind of component must do: the first file to read.

Letters, used everywhere: B examples, N tokens, D width, T events in the whole batch, L longest history,
U distinct histories, S CLS tokens, Q query tokens, P tasks, H heads.

A component is built as `Component(config, context)`. It owns its residual, norm and activation; blocks only
connect. Parameters are initialised after building by `gemkit.nn.init`, from (seed, module name): a module
that holds parameters of its own implements `reset_parameters()`.
"""

from __future__ import annotations

import contextlib
import dataclasses
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor, nn

from gemkit.data.batch import Batch, Layout
from gemkit.data.schema import Schema
from gemkit.pieces import Pieces, pieces_of

if TYPE_CHECKING:
    import numpy as np
    from lightning.fabric import Fabric

    from gemkit.config.run import OptimizerConfig, RunConfig
    from gemkit.data.source import Source


# --- what flows ---------------------------------------------------------------------------------------------


class Events(NamedTuple):
    """Encoded histories, jagged: no padding anywhere.

    Attributes:
        values: (T, D), one vector per event, oldest first within each history.
        offsets: (U+1,) int64.
        ages: (T,) float32, seconds before the example.
        stream: (T,) int64.
        cls: (U, S, D), tokens that travel beside the events; S is 0 until a cross layer adds some.
        owner: (U, N_user, D), the user's tokens as the tokenizer made them.
        history_index: (B,) int64, each example's history.
        layout: Host facts.
    """

    values: Tensor
    offsets: Tensor
    ages: Tensor
    stream: Tensor
    cls: Tensor
    owner: Tensor
    history_index: Tensor
    layout: Layout


class Tokens(NamedTuple):
    """What a tokenizer makes of a batch.

    Attributes:
        x: (B, N, D).
        events: The histories, or None.
    """

    x: Tensor
    events: Events | None


class Outputs(NamedTuple):
    """What a model says about a batch.

    Attributes:
        logits: (B, P).
        readout: (B, R), the vector that the head reads.
        taps: Named inner tensors that a transfer strategy asked for.
        scores: What the head gave, for its loss: the logits themselves, unless it says otherwise.
    """

    logits: Tensor
    readout: Tensor
    taps: dict[str, Tensor]
    scores: Tensor


@dataclasses.dataclass(frozen=True)
class BuildContext:
    """What a component may know of its place in the model.

    Attributes:
        dim: D.
        schema: The data set's schema.
        num_tokens_in: N that reaches the component.
        num_tokens_out: N that is wanted of an interaction module.
        num_cls: S, CLS tokens that reach a cross layer.
        layer: Index of the block, from 0.
        roles: Role (user, item, context) of each token that the *tokenizer* makes.
        readout_dim: R, for heads.
        build: `build(kind, config, **changes)` makes another component, in this context with `changes`:
            a DHEN of registered modules, a list of transfers.
    """

    dim: int
    schema: Schema
    build: Callable[..., Any]
    num_tokens_in: int = 0
    num_tokens_out: int = 0
    num_cls: int = 0
    layer: int = 0
    roles: tuple[str, ...] = ()
    readout_dim: int = 0

    def tokens_of(self, role: str) -> list[int]:
        """Positions of the tokenizer's tokens of one role."""
        return [i for i, r in enumerate(self.roles) if r == role]


# --- blocks -------------------------------------------------------------------------------------------------


class Tokenizer(nn.Module, ABC):
    """Embedded features -> tokens and events."""

    roles: tuple[str, ...]
    """Role of each token; N = len(roles)."""

    def arrange(self, lengths: np.ndarray, stream: np.ndarray) -> tuple[np.ndarray, Any]:
        """Host work once per batch, for a tokenizer that makes fewer vectors than there are events.

        Args:
            lengths: (U,), events of each history.
            stream: (T,), the stream of each event.

        Returns:
            Lengths (U,) of the histories that `forward` hands on, and a pytree of CPU tensors that reaches it as
            `batch.history.layout.arrangement`.
        """
        return lengths, None

    @abstractmethod
    def forward(self, batch: Batch, embedded: Mapping[str, Tensor]) -> Tokens:
        """
        Args:
            embedded: Feature key -> (n, D) vectors of `batch.ids[key]`, unpooled. Event fields are there
                exactly if `batch.history` is.

        Shape: x (B, N, D); events.values (T, D), or as `arrange` said; cls (U, 0, D), owner (U, N_user, D).
        """


class InteractionModule(nn.Module, ABC):
    """Tokens with tokens, one layer."""

    num_tokens_out: int

    @abstractmethod
    def forward(self, x: Tensor, earlier: Sequence[Tensor]) -> Tensor:
        """
        Args:
            earlier: Outputs of the earlier blocks' interaction modules, for dense connections and
                cross-layer attention.

        Shape: x (B, N, D) -> (B, num_tokens_out, D).
        """


class SequenceEncoder(nn.Module, ABC):
    """Events with events, one layer. No history may touch another."""

    shares_histories: bool = True
    """False if the output depends on `query`: then every example needs its own copy of its history."""

    shortens: bool = False
    """True if fewer vectors come out than events went in; then `lengths_out` says how many."""

    def plan(self, lengths: np.ndarray) -> Any:
        """Host work once per batch, shared by all layers: index tensors made from the histories' lengths (U,).

        The result is a pytree of CPU tensors and ints; it travels with the batch, and reaches `forward` as
        `events.layout.plan`.
        """
        return None

    def lengths_out(self, lengths: np.ndarray) -> np.ndarray:
        """Lengths (U,) of the histories that come out, on the host; for encoders that shorten."""
        return lengths

    @abstractmethod
    def forward(self, events: Events, query: Tensor) -> Events:
        """
        Args:
            query: (B, Q, D), the target item's tokens, for target attention; most encoders ignore it.

        Shape: values (T, D) -> (T, D), unless `shortens`; cls (U, S, D) -> (U, S, D).
        """


class CrossFeatureLayer(nn.Module, ABC):
    """Tokens and events see a summary of each other, one layer."""

    num_tokens_added: int
    """Tokens that it appends to x."""

    num_cls_added: int = 0
    """Tokens that it appends to `Events.cls`."""

    shares_histories: bool = True
    """False if the events are personalised by tokens that differ between the examples of one history."""

    passes_events: bool = True
    """False if it pools the events into tokens and hands none on: then nothing encodes them any more."""

    requires_events: bool = False
    """True if it makes no sense without events; else `forward` passes x through when there are none."""

    @abstractmethod
    def forward(self, x: Tensor, events: Events) -> tuple[Tensor, Events | None]:
        """Shape: x (B, N, D) -> (B, N + num_tokens_added, D); events.values (T, D) -> (T, D)."""


class DomainLayer(nn.Module, ABC):
    """Adapts tokens to the surface of each example."""

    @abstractmethod
    def forward(self, x: Tensor, surface: Tensor) -> Tensor:
        """Shape: x (B, N, D), surface (B,) -> (B, N, D)."""


class Head(nn.Module, ABC):
    """Readout -> scores, the logits that they stand for, and the loss that belongs to them."""

    @abstractmethod
    def forward(self, readout: Tensor, batch: Batch) -> Tensor:
        """Shape: (B, R) -> (B, P) logits, in the order of `Schema.tasks`; or (B, P, M), with a `logits` of its own."""

    def logits(self, scores: Tensor) -> Tensor:
        """What is served, where a task has several scores (a chance and a delay). Shape: of `forward` -> (B, P)."""
        return scores

    @abstractmethod
    def loss(self, scores: Tensor, batch: Batch) -> Tensor:
        """The weighted mean of the tasks' losses over labels that count. Shape: of `forward` -> ()."""


# --- transfer -----------------------------------------------------------------------------------------------


class Answers(NamedTuple):
    """What a teacher said about a batch, without gradient.

    Attributes:
        logits: (B, P), in the order of the student's tasks; 0 where there is no answer.
        known: (B, P) float32, 1 where there is one.
        ages: (B,) float32, seconds from the newest example that the teacher was trained on to the example; negative
            if it may have been trained on it. 0 where there is no answer.
        codes: (B, K), compact codes of what the teacher's head read; K is 0 unless they are asked for.
    """

    logits: Tensor
    known: Tensor
    ages: Tensor
    codes: Tensor


class TransferStrategy(nn.Module):
    """What a student learns from a teacher. Each step of the life cycle defaults to nothing.

    The life cycle, in order: `extra_features` (before the student is built), `prepare` (after), then for every batch
    `with_features` (also when the student predicts), `answer` and `loss`, and `export` at the end.
    """

    taps: tuple[str, ...] = ()
    """Names of inner tensors of the student that `loss` wants in `Outputs.taps`: ``block<i>.x``."""

    reads_codes: bool = False
    """Whether it needs the codes of a teacher log, so that whoever writes one for it leaves some."""

    takes: frozenset[str] = frozenset()
    """Names of the student's tensors that `prepare` has given other values, as checkpoints call them."""

    fresh: bool = True
    """Set by training: whether this run sees the examples of the batch for the first time."""

    processes: ParallelBackend | None = None
    """Set by training: those that train together; None: one."""

    def extra_features(self, schema: Schema) -> Schema:
        """The student's schema with the features that the strategy adds."""
        return schema

    def with_features(self, batch: Batch) -> Batch:
        """The batch with these features, in training and in serving."""
        return batch

    def prepare(self, student: nn.Module, embeddings: EmbeddingTables) -> None:
        """Initialises, freezes or shares student parameters; makes what is trained beside the student."""

    def optimizers(self) -> Iterable[torch.optim.Optimizer]:
        """Optimisers of what the strategy trains beside the student (an adapter, a head), stepped after each batch.

        Training asks once the student is placed, steps them before the student's own optimiser, and scales their
        learning rates by its schedule.
        """
        return ()

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes, for what a loss is divided by or depends on: all must use the same.

        Shape: any -> the same, without a gradient.
        """
        values = values.detach()
        return values if self.processes is None else self.processes.mean(values)

    def answer(self, batch: Batch) -> Answers | None:
        """What the teacher said about a batch; None if the strategy does not ask."""
        return None

    def loss(self, student: Outputs, teacher: Answers | None, batch: Batch) -> Tensor:
        """What is added to the label loss. Shape: ()."""
        return student.logits.new_zeros(())

    def report(self) -> dict[str, float]:
        """Numbers for the history, since the last report."""
        return {}

    def export(self, student: nn.Module) -> nn.Module:
        """The student as it is served: without what only training needed."""
        return student


# --- parallelism --------------------------------------------------------------------------------------------


class EmbeddingTables(nn.Module, ABC):
    """All embedding tables of a model; their optimiser runs inside backward (fused row-wise AdaGrad)."""

    @abstractmethod
    def forward(self, ids: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """One unpooled lookup per table. Shape: feature key -> (n,) ids -> (n, D) float32."""

    @abstractmethod
    def set_lr(self, lr: float) -> None:
        """The learning rate from the next backward on."""

    @abstractmethod
    def tables(self) -> dict[str, Tensor]:
        """Table name -> (num_embeddings, D) weights, as views: writing to them changes the tables."""

    @abstractmethod
    def optimizer_state(self) -> dict[str, Tensor]:
        """Table name -> (num_embeddings,) sums of row-wise mean squared gradients, as views."""

    frozen: frozenset[str] = frozenset()
    """Tables that no gradient reaches: `Model` cuts it off."""

    prefetches: bool = False
    """Whether training calls `prefetch`."""

    copy: int = 0
    copies: int = 1
    """Groups of processes that hold all tables once each: which one this process is of, and how many there are."""

    apart: frozenset[str] = frozenset()
    """Tables whose copies differ now."""

    def average(self) -> None:
        """Makes the copies that are apart alike: each takes the mean of all."""
        return

    def prefetch(self, ids: Mapping[str, Tensor]) -> None:
        """The ids of a batch that comes later, the mapping that `forward` will get: their exchange may begin."""
        return

    def forget(self) -> None:
        """Batches that were prefetched do not come."""
        return

    def weight_pieces(self) -> dict[str, Pieces]:
        """What this process holds of each table, which every process names. Of copies, the first is saved."""
        return {name: pieces_of(values) for name, values in self.tables().items()}

    def state_pieces(self) -> dict[str, Pieces]:
        """The same of the optimiser's state: (num_embeddings,), or (num_embeddings, k) with one for each part of the
        rows.
        """
        return {name: pieces_of(values) for name, values in self.optimizer_state().items()}


class ParallelBackend(ABC):
    """Where parameters and examples live. Only the dense part enters Fabric; tables are the backend's own."""

    fabric: Fabric

    @abstractmethod
    def launch(self, run: RunConfig) -> None:
        """Makes `self.fabric` and joins the process group, if there is one."""

    @abstractmethod
    def build_embeddings(self, schema: Schema, dim: int, optimizer: OptimizerConfig, seed: int) -> EmbeddingTables:
        """The tables, initialised from (seed, table name)."""

    @abstractmethod
    def place(self, dense: nn.Module, optimizer: OptimizerConfig) -> tuple[nn.Module, torch.optim.Optimizer]:
        """The dense model on its devices, and its optimiser."""

    @abstractmethod
    def clip(self, dense: nn.Module, optimizer: torch.optim.Optimizer, max_norm: float) -> Tensor:
        """Clips the dense gradient to `max_norm`; returns the norm before. Shape: ()."""

    @abstractmethod
    def all_gather(self, values: Tensor) -> Tensor:
        """Rows of all ranks, in order of rank. Shape: (n, ...) -> (n * world, ...)."""

    @property
    @abstractmethod
    def rank(self) -> int:
        """This process's share of the data, `rank` of `world_size`."""

    @property
    @abstractmethod
    def world_size(self) -> int:
        """Number of shares."""

    # What follows is right for one process; backends of several say more.

    def broadcast(self, value: Any) -> Any:
        """The first process's `value`, which JSON could hold."""
        return value

    def gather_objects(self, value: Any) -> list[Any]:
        """The `value` of every process, in order of rank; on others than the first, nothing."""
        return [value]

    def agree(self, flag: bool) -> bool:
        """Whether it is so in any process."""
        return flag

    def mean(self, values: Tensor) -> Tensor:
        """The mean over processes. Shape: any -> the same."""
        return values

    def accumulating(self, dense: nn.Module, more: bool) -> AbstractContextManager[None]:
        """Around a micro-batch's forward and backward pass: with `more` to come, gradients need not be exchanged."""
        return contextlib.nullcontext()

    def average_gradients(self, parameters: Iterable[nn.Parameter]) -> None:
        """The mean over processes of the gradients of parameters outside of the dense part (a student's adapter)."""
        return

    def after_step(self, step: int, embeddings: EmbeddingTables) -> None:
        """After optimiser step `step`, counted from 1."""
        return

    def alone(self) -> ParallelBackend:
        """The backend with which one process evaluates or predicts what this one trained."""
        return self


# --- data ---------------------------------------------------------------------------------------------------


class DataRecipe(ABC):
    """A data set: where its source files come from, and what their columns mean."""

    terms: str = ""
    """Terms of use, printed before anything is fetched."""

    @abstractmethod
    def fetch(self, folder: Path, progress: Callable[[str, int, int], None]) -> None:
        """Puts verified source files into `folder`; does nothing if they are there.

        Args:
            progress: Called as (file name, bytes done, bytes in all; 0 if unknown).
        """

    @abstractmethod
    def source(self, folder: Path) -> Source:
        """Reads the source files into tables, with the meaning of their columns."""
