"""Contracts of single kinds: shapes, what may be shared, which labels count."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from gemkit.data.schema import ROLES
from gemkit.interfaces import Events
from gemkit.testing import bench
from gemkit.testing.bench import DIM
from gemkit.testing.contracts_any import nudge
from gemkit.testing.subject import Contract, Subject, tensors
from gemkit.testing.tolerances import assert_close


def tokenizer_shapes(subject: Subject) -> None:
    """One token for each role, as many vectors of events as `arrange` says; nothing where none are read."""
    module = subject.build()
    inputs = subject.inputs(module)
    tokens = subject.call(module, inputs)
    assert set(module.roles) <= set(ROLES), f"roles are {module.roles}, allowed are {ROLES}"
    assert_shape(tokens.x, (inputs.x.shape[0], len(module.roles), DIM), "x")
    history = inputs.batch.history
    assert history is not None and tokens.events is not None
    histories = history.offsets.shape[0] - 1
    lengths, _ = module.arrange(history.offsets.diff().numpy(), history.stream.numpy())
    assert tokens.events.offsets.diff().tolist() == lengths.tolist(), "lengths are not those that `arrange` says"
    assert_events(tokens.events, int(lengths.sum()), histories, num_cls=0)
    assert_shape(tokens.events.owner, (histories, module.roles.count("user"), DIM), "events.owner")
    without = inputs.batch._replace(history=None)
    embedded = {key: v for key, v in inputs.embedded.items() if not key.startswith("events.")}
    tokens = module(without, embedded)
    assert tokens.events is None, "there are events although the batch has no history"
    assert_close(tokens.x, subject.call(module, inputs).x, "x without events")


def interaction_shapes(subject: Subject) -> None:
    """As many tokens come out as `num_tokens_out` says."""
    module = subject.build()
    inputs = subject.inputs(module)
    assert_shape(subject.call(module, inputs), (inputs.x.shape[0], module.num_tokens_out, DIM), "x")


def domain_shapes(subject: Subject) -> None:
    """The tokens keep their shape."""
    module = subject.build()
    inputs = subject.inputs(module)
    assert_shape(subject.call(module, inputs), tuple(inputs.x.shape), "x")


def sequence_shapes(subject: Subject) -> None:
    """One vector per event, unless the class says that it shortens; CLS tokens keep their shape."""
    module = subject.build()
    for rows in (bench.some_rows(), bench.rows_without_events()):
        inputs = subject.inputs(module, rows)
        events = subject.call(module, inputs)
        num_events = inputs.events.values.shape[0]
        if module.shortens:
            num_events = int(events.offsets[-1])
        else:
            assert torch.equal(events.offsets, inputs.events.offsets), "offsets changed, but `shortens` is False"
        assert_events(events, num_events, inputs.events.cls.shape[0], inputs.events.cls.shape[1])
        assert_close(events.owner, inputs.events.owner, "events.owner")


def cross_shapes(subject: Subject) -> None:
    """X grows by `num_tokens_added`, CLS by `num_cls_added`; events stay, or end, as `passes_events` says."""
    module = subject.build()
    for rows in (bench.some_rows(), bench.rows_without_events()):
        inputs = subject.inputs(module, rows)
        x, events = subject.call(module, inputs)
        batch, tokens, _ = inputs.x.shape
        assert_shape(x, (batch, tokens + module.num_tokens_added, DIM), "x")
        assert (events is not None) == module.passes_events, f"passes_events is {module.passes_events}"
        if events is not None:
            num_cls = inputs.events.cls.shape[1] + module.num_cls_added
            assert_events(events, inputs.events.values.shape[0], inputs.events.cls.shape[0], num_cls)


def shared_histories_do_not_depend_on_the_target(subject: Subject) -> None:
    """What several examples share cannot know which of them asks: no `query`, no x, unless the class says so."""
    module = subject.build()
    if not module.shares_histories:
        return
    nudge(module)
    inputs = subject.inputs(module)
    changed = inputs._replace(x=torch.randn_like(inputs.x), query=torch.randn_like(inputs.query))
    for a, b in zip(_events(subject.call(module, inputs)), _events(subject.call(module, changed)), strict=True):
        assert_close(b, a, "events with another target, although `shares_histories` is True")


def masked_labels_do_not_count(subject: Subject) -> None:
    """A masked label, or an example of weight zero, changes neither the loss nor any gradient."""
    module = subject.build()
    inputs = subject.inputs(module)
    batch = inputs.batch
    masks = batch.masks.clone()
    masks[0, 0], masks[1] = 0.0, 0.0
    batch = batch._replace(masks=masks, weights=batch.weights.index_fill(0, torch.tensor([2]), 0.0))
    counts = (batch.masks > 0) & (batch.weights > 0).unsqueeze(1)
    other = batch._replace(labels=torch.where(counts, batch.labels, 1.0 - batch.labels))
    scores = subject.call(module, inputs).detach().requires_grad_()
    loss = module.loss(scores, batch)
    assert loss.shape == (), f"the loss has shape {tuple(loss.shape)}, not ()"
    assert torch.isfinite(loss), "the loss is not finite"
    assert_close(module.loss(scores, other), loss, "loss with other labels where they do not count")
    (gradient,) = torch.autograd.grad(loss, scores)
    gradient = gradient.any(2) if gradient.dim() > 2 else gradient
    assert not gradient[~counts].any(), "labels that do not count have a gradient"
    assert gradient[counts].all(), "labels that count have no gradient"


def a_batch_without_labels_has_a_finite_loss(subject: Subject) -> None:
    """Nothing to learn is zero, not NaN."""
    module = subject.build().train()
    inputs = subject.inputs(module)
    loss = module.loss(subject.call(module, inputs), inputs.batch._replace(masks=torch.zeros_like(inputs.batch.masks)))
    loss.backward()
    assert torch.isfinite(loss), "the loss of a batch without labels is not finite"
    assert all(p.grad is None or torch.isfinite(p.grad).all() for p in module.parameters()), "its gradient is not"


def head_shapes(subject: Subject) -> None:
    """A logit for each task."""
    module = subject.build()
    inputs = subject.inputs(module)
    assert_shape(module.logits(subject.call(module, inputs)), tuple(inputs.batch.labels.shape), "logits")


def assert_shape(tensor: Tensor, shape: tuple[int, ...], what: str) -> None:
    """Raises: AssertionError: `tensor` has another shape."""
    assert tuple(tensor.shape) == shape, f"{what} has shape {tuple(tensor.shape)}, not {shape}"


def assert_events(events: Events, num_events: int, num_histories: int, num_cls: int) -> None:
    """Raises: AssertionError: The fields of `events` do not fit together."""
    assert_shape(events.values, (num_events, DIM), "events.values")
    assert_shape(events.ages, (num_events,), "events.ages")
    assert_shape(events.stream, (num_events,), "events.stream")
    assert_shape(events.offsets, (num_histories + 1,), "events.offsets")
    assert_shape(events.cls, (num_histories, num_cls, DIM), "events.cls")
    lengths = events.offsets.diff()
    assert int(events.offsets[-1]) == num_events, "events.offsets and events.values disagree"
    assert events.layout.max_length == int(lengths.max()), "events.layout.max_length is not that of the longest history"
    chunks = events.layout.chunks
    assert torch.equal(chunks.gather.view(-1)[chunks.position], torch.arange(num_events)), (
        "events.layout.chunks are not those of the events: replace them when the lengths change"
    )


def _events(output: Any) -> list[Tensor]:
    events = output if isinstance(output, Events) else output[1]
    return [] if events is None else tensors(events)


CONTRACTS = (
    Contract(tokenizer_shapes, ("tokenizer",)),
    Contract(interaction_shapes, ("interaction",)),
    Contract(sequence_shapes, ("sequence",)),
    Contract(cross_shapes, ("cross",)),
    Contract(domain_shapes, ("domain",)),
    Contract(head_shapes, ("head",)),
    Contract(shared_histories_do_not_depend_on_the_target, ("sequence", "cross")),
    Contract(masked_labels_do_not_count, ("head",)),
    Contract(a_batch_without_labels_has_a_finite_loss, ("head",)),
)
