"""Contracts of every kind: config, documentation, first weights, saving."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor, nn

from gemkit.component import KINDS
from gemkit.config.fields import from_mapping, to_mapping
from gemkit.testing.subject import CALLS, Contract, Subject, tensors
from gemkit.testing.tolerances import assert_close

WITHOUT_PAPER = ("data", "parallel")
"""Kinds whose components need not come from a paper."""

METHODS: dict[str, tuple[str, ...]] = {
    "head": ("forward", "loss"),
    "transfer": ("loss",),
    "data": (),
    "parallel": (),
}
"""Kind -> methods whose docstring says which shapes go in and out; `forward` where not named."""


def config_survives_yaml(subject: Subject) -> None:
    """A run folder keeps the config as YAML, and reloads it."""
    text = yaml.safe_dump(to_mapping(subject.config))
    again = from_mapping(subject.spec.config, yaml.safe_load(text))
    assert again == subject.config, f"{subject.config} came back from YAML as {again}"


def is_documented(subject: Subject) -> None:
    """The class says what it is and which paper it follows; its methods say their shapes."""
    spec = subject.spec
    assert spec.summary, f"{spec.cls.__name__} has no docstring"
    if spec.kind not in WITHOUT_PAPER:
        assert spec.paper, f"the docstring of {spec.cls.__name__} has no `Paper:` (write `Paper: none; ...` if so)"
    for method in METHODS.get(spec.kind, ("forward",)):
        doc = getattr(spec.cls, method).__doc__ or ""
        assert "Shape:" in doc, f"the docstring of {spec.cls.__name__}.{method} has no `Shape:`"


def fields_are_documented(subject: Subject) -> None:
    """Every field of the config says what it means."""
    import dataclasses

    missing = [
        f.name for f in dataclasses.fields(subject.spec.config) if f.name != "name" and not f.metadata.get("doc")
    ]
    assert not missing, f"{subject.spec.config.__name__} has fields without documentation: {', '.join(missing)}"


def inner_modules_are_documented(subject: Subject) -> None:
    """Modules that the component is made of say their shapes too."""
    package = subject.spec.cls.__module__.partition(".")[0]
    for module in subject.build().modules():
        own = type(module)
        if own.__module__.partition(".")[0] == package and "forward" in vars(own):
            text = f"{own.__doc__}{own.forward.__doc__}"
            assert "Shape:" in text, f"neither {own.__name__} nor its forward has a `Shape:` in the docstring"


def first_weights_depend_on_seed_and_name_only(subject: Subject) -> None:
    """Same seed, same weights, whatever was drawn before; another seed, others."""
    first = subject.build(seed=1).state_dict()
    torch.rand(7)
    again, other = subject.build(seed=1).state_dict(), subject.build(seed=2).state_dict()
    for name, value in first.items():
        assert torch.equal(value, again[name]), f"{name} is not initialised from (seed, name): see gemkit.nn.init"
    drawn = [name for name, value in first.items() if value.is_floating_point() and len(value.unique()) > 2]
    for name in drawn:
        assert not torch.equal(first[name], other[name]), f"{name} does not depend on the seed"


def state_dict_survives_a_file(subject: Subject) -> None:
    """Saved, loaded into a module with other weights: the same outputs."""
    from safetensors.torch import load_file, save_file

    module, other = subject.build(seed=1), subject.build(seed=2)
    nudge(module)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "state.safetensors"
        save_file({name: value.contiguous() for name, value in module.state_dict().items()}, path)
        other.load_state_dict(load_file(path))
    if subject.spec.kind in CALLS:
        inputs = subject.inputs(module)
        for a, b in zip(tensors(subject.call(module, inputs)), tensors(subject.call(other, inputs)), strict=True):
            assert_close(b, a, "output after loading")


def nudge(module: nn.Module) -> None:
    """Moves every parameter a little, so that one that starts at zero hides nothing."""
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))


def weighted_sum(output: Any) -> Tensor:
    """A scalar in which every number of an output counts differently."""
    generator = torch.Generator().manual_seed(0)
    sums = [(t * torch.randn(t.shape, generator=generator)).sum() for t in tensors(output)]
    return torch.stack(sums).sum()


MODULES = tuple(kind for kind in KINDS if kind not in ("data", "parallel"))

CONTRACTS = (
    Contract(config_survives_yaml, tuple(KINDS)),
    Contract(is_documented, tuple(KINDS), once=True),
    Contract(fields_are_documented, tuple(KINDS), once=True),
    Contract(inner_modules_are_documented, MODULES),
    Contract(first_weights_depend_on_seed_and_name_only, MODULES),
    Contract(state_dict_survives_a_file, MODULES),
)
