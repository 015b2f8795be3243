"""Contracts of what computes on a batch: tokenizers, blocks, domain layers, heads."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from gemkit.testing import bench
from gemkit.testing.bench import disturb
from gemkit.testing.contracts_any import nudge, weighted_sum
from gemkit.testing.subject import CALLS, Contract, Subject, tensors
from gemkit.testing.tolerances import assert_close

KINDS = tuple(CALLS)
ON_TENSORS = tuple(kind for kind in KINDS if kind != "tokenizer")
"""Kinds whose inputs are tensors of examples and histories, which a test can disturb one by one."""


def outputs_are_finite(subject: Subject) -> None:
    """No NaN, no infinity."""
    module = subject.build()
    for t in tensors(subject.call(module, subject.inputs(module))):
        assert torch.isfinite(t).all(), "the output has NaN or infinite values"


def evaluation_is_deterministic(subject: Subject) -> None:
    """In evaluation mode the same inputs give the same bits."""
    module = subject.build()
    inputs = subject.inputs(module)
    for a, b in zip(tensors(subject.call(module, inputs)), tensors(subject.call(module, inputs)), strict=True):
        assert torch.equal(a, b), "two calls with the same inputs differ"


def every_parameter_gets_a_gradient(subject: Subject) -> None:
    """Every parameter can learn, and no gradient is NaN or infinite."""
    module = subject.build().train()
    nudge(module)
    loss = weighted_sum(subject.call(module, subject.inputs(module)))
    if not loss.requires_grad:
        assert not list(module.parameters()), "no parameter takes part in the output"
        return
    loss.backward()
    for name, parameter in module.named_parameters():
        assert parameter.grad is not None, f"{name} gets no gradient"
        assert torch.isfinite(parameter.grad).all(), f"the gradient of {name} is not finite"
        assert parameter.grad.any(), f"the gradient of {name} is zero everywhere"


def gradients_without_events_are_finite(subject: Subject) -> None:
    """A batch of users without any event trains too."""
    module = subject.build().train()
    loss = weighted_sum(subject.call(module, subject.inputs(module, bench.rows_without_events())))
    assert torch.isfinite(loss), "the output is not finite when all histories are empty"
    if loss.requires_grad:
        loss.backward()
    for name, parameter in module.named_parameters():
        finite = parameter.grad is None or bool(torch.isfinite(parameter.grad).all())
        assert finite, f"the gradient of {name} is not finite when all histories are empty"


def order_of_examples_is_kept(subject: Subject) -> None:
    """Permuting the examples permutes the outputs."""
    rows = bench.some_rows()
    order = torch.randperm(len(rows), generator=torch.Generator().manual_seed(0)).tolist()
    module = subject.build()
    nudge(module)
    before = subject.parts(module, subject.inputs(module))
    after = subject.parts(module, subject.inputs(module, tuple(rows[i] for i in order)))
    _compare([before[i] for i in order], after, order, "after permuting the examples")


def each_example_alone_is_the_same(subject: Subject) -> None:
    """An example computed alone, without padding or neighbours, is what it is in a batch."""
    rows = bench.some_rows()
    module = subject.build()
    nudge(module)
    batch = subject.parts(module, subject.inputs(module))
    for i in range(0, len(rows), 2):
        _compare([batch[i]], subject.parts(module, subject.inputs(module, (rows[i],))), [i], "alone")


def no_example_touches_another(subject: Subject) -> None:
    """Disturbing one example and its history leaves all others as they were."""
    module = subject.build()
    nudge(module)
    inputs = subject.inputs(module)
    before = subject.parts(module, inputs)
    for example in range(0, inputs.x.shape[0], 2):
        disturbed, others = disturb(inputs, example)
        after = subject.parts(module, disturbed)
        for other in others:
            for a, b in zip(before[other], after[other], strict=True):
                assert_close(b, a, f"output of example {other} after example {example} was changed")


def compiles_without_a_break(subject: Subject) -> None:
    """torch.compile traces it as one graph, forward and backward, also for another number of events."""
    _compiles(subject, "aot_eager")


def compiles_in_every_config(subject: Subject) -> None:
    """The same for every config."""
    _compiles(subject, "aot_eager")


def compiles_with_inductor(subject: Subject) -> None:
    """The same with the real compiler."""
    _compiles(subject, "inductor")


def _compiles(subject: Subject, backend: str) -> None:
    # As `gemkit.compilation.blocks` has it: tracing starts again where a variable is found to be a constant.
    with torch._dynamo.config.patch(specialize_float=True):
        _compiles_so(subject, backend)


def _compiles_so(subject: Subject, backend: str) -> None:
    torch._dynamo.reset()
    module = subject.build().train()
    nudge(module)
    compiled: Any = torch.compile(module, fullgraph=True, dynamic=True, backend=backend)
    rows = bench.some_rows()
    # Two of those with events are left out: where one example alone is without, PyTorch traces anew.
    for chosen in (rows, rows[:4] + rows[6:]):
        inputs = subject.inputs(module, chosen)
        expected, gradients = _with_gradients(subject, module, module, inputs)
        actual, compiled_gradients = _with_gradients(subject, compiled, module, inputs)
        for a, b in zip(expected, actual, strict=True):
            assert_close(b, a, "compiled output")
        for name, gradient in gradients.items():
            assert_close(compiled_gradients[name], gradient, f"compiled gradient of {name}")


def _with_gradients(
    subject: Subject, called: nn.Module, module: nn.Module, inputs: bench.Inputs
) -> tuple[list[Tensor], dict[str, Tensor]]:
    module.zero_grad()
    torch.manual_seed(0)
    output = subject.call(called, inputs)
    loss = weighted_sum(output)
    if loss.requires_grad:
        loss.backward()
    gradients = {name: p.grad.clone() for name, p in module.named_parameters() if p.grad is not None}
    return [t.detach() for t in tensors(output)], gradients


def _compare(expected: list[list[Tensor]], actual: list[list[Tensor]], examples: list[int], when: str) -> None:
    for example, wanted, found in zip(examples, expected, actual, strict=True):
        for a, b in zip(wanted, found, strict=True):
            assert_close(b, a, f"output of example {example} {when}")


CONTRACTS = (
    Contract(outputs_are_finite, KINDS),
    Contract(evaluation_is_deterministic, KINDS),
    Contract(every_parameter_gets_a_gradient, KINDS),
    Contract(gradients_without_events_are_finite, KINDS),
    Contract(order_of_examples_is_kept, KINDS),
    Contract(each_example_alone_is_the_same, KINDS),
    Contract(no_example_touches_another, ON_TENSORS),
    Contract(compiles_without_a_break, KINDS, once=True),
    Contract(compiles_in_every_config, KINDS, slow=True),
    Contract(compiles_with_inductor, KINDS, once=True, slow=True),
)
