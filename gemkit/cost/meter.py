"""Counts what each module of a model costs, forward and backward, while a step runs (or seems to)."""

from __future__ import annotations

import bisect
import contextlib
import dataclasses
import itertools
from collections import defaultdict
from collections.abc import Collection, Iterable, Iterator
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from gemkit.cost.formulas import flops_of


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModuleCost:
    """What one module, or several together, cost in one step.

    Attributes:
        params: Parameters, each counted once.
        forward_flops, backward_flops: Two for each multiply-add of a matrix product.
        activation_bytes: What autograd keeps for backward, parameters and inputs apart. A storage is counted once, by
            the module that kept it first.
    """

    params: int = 0
    forward_flops: int = 0
    backward_flops: int = 0
    activation_bytes: int = 0

    def __add__(self, other: ModuleCost) -> ModuleCost:
        return ModuleCost(
            params=self.params + other.params,
            forward_flops=self.forward_flops + other.forward_flops,
            backward_flops=self.backward_flops + other.backward_flops,
            activation_bytes=self.activation_bytes + other.activation_bytes,
        )

    @property
    def flops(self) -> int:
        """Forward and backward."""
        return self.forward_flops + self.backward_flops


class CostMeter(TorchDispatchMode):
    """Counts the operators that run inside `with`, and which module of `root` they belong to.

    In forward that is the module whose `forward` is running. In backward it is the one that was running when the
    graph's node was made; nodes are numbered in the order of their making, so the numbers at which each module began
    and ended tell. What ran while no module did belongs to `root` itself, whose path is the empty string.

    Works on real tensors, and on fake and meta tensors, whose products cost nothing and count the same.

    Args:
        root: The model.
        inputs: Any nest of tensors that are there anyway: their storages are no activations.

    Attributes:
        unknown: Operators, not PyTorch's own, that nobody has given a formula (`register_flop_formula` of
            `torch.utils.flop_counter`): they count as nothing.
    """

    supports_higher_order_operators = True

    def __init__(self, root: nn.Module, inputs: Any = ()) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.root = root
        self.unknown: set[str] = set()
        self._forward: defaultdict[str, int] = defaultdict(int)
        self._backward: defaultdict[str, int] = defaultdict(int)
        self._saved: defaultdict[str, list[torch.UntypedStorage]] = defaultdict(list)
        self._running = [""]
        self._starts, self._owners = [-1], [""]
        there = [*root.parameters(), *root.buffers(), *(t for t in tree_leaves(inputs) if isinstance(t, Tensor))]
        # Kept alive: the address of a storage that is gone may be another's.
        self._storages = {s._cdata: s for s in (t.untyped_storage() for t in there)}

    @property
    def costs(self) -> dict[str, ModuleCost]:
        """Path of each module of `root` -> what it cost, its children apart."""
        return {
            path: ModuleCost(
                params=sum(p.numel() for p in own),
                forward_flops=self._forward[path],
                backward_flops=self._backward[path],
                activation_bytes=sum(s.nbytes() for s in self._saved[path]),
            )
            for path, own in _own_parameters(self.root)
        }

    def freed_bytes(self, path: str, passed: Collection[int]) -> int:
        """Activations of the module at `path` and those inside it, but for storages (`_cdata`) that are `passed`."""
        inside = (saved for name, saved in self._saved.items() if name == path or name.startswith(f"{path}."))
        return sum(s.nbytes() for s in itertools.chain.from_iterable(inside) if s._cdata not in passed)

    @contextlib.contextmanager
    def within(self, path: str) -> Iterator[None]:
        """Counts what runs inside as the module's at `path`: for a method that is not its `forward`."""
        self._enter(path)
        try:
            yield
        finally:
            self._leave()

    def __enter__(self) -> CostMeter:
        with contextlib.ExitStack() as opened:
            for path, module in self.root.named_modules():
                opened.enter_context(module.register_forward_pre_hook(lambda *_, path=path: self._enter(path)))
                opened.enter_context(module.register_forward_hook(lambda *_: self._leave()))
            opened.enter_context(torch.autograd.graph.saved_tensors_hooks(self._save, lambda tensor: tensor))
            super().__enter__()  # type: ignore[no-untyped-call]
            self._opened = opened.pop_all()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)  # type: ignore[no-untyped-call]
        self._opened.close()

    def __torch_dispatch__(
        self, func: Any, types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        out = func(*args, **kwargs)
        flops = flops_of(func, args, kwargs, out)
        if flops:
            node = torch._C._current_autograd_node()
            if node is None:
                self._forward[self._running[-1]] += flops
            else:
                self._backward[self._owner(node._sequence_nr())] += flops
        elif flops is None:
            self.unknown.add(str(func))
        return out

    def _owner(self, number: int) -> str:
        return self._owners[bisect.bisect_right(self._starts, number) - 1]

    def _enter(self, path: str) -> None:
        self._running.append(path)
        self._mark()

    def _leave(self) -> None:
        self._running.pop()
        self._mark()

    def _mark(self) -> None:
        """From here on, nodes of the graph are the running module's."""
        self._starts.append(torch.autograd._get_sequence_nr())  # type: ignore[attr-defined]
        self._owners.append(self._running[-1])

    def _save(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._storages:
            self._storages[storage._cdata] = storage
            self._saved[self._running[-1]].append(storage)
        return tensor


def _own_parameters(root: nn.Module) -> Iterator[tuple[str, list[nn.Parameter]]]:
    """Path and parameters of each module; what two modules share is the first one's."""
    seen: set[int] = set()
    for path, module in root.named_modules():
        own = [p for _, p in module.named_parameters(recurse=False) if id(p) not in seen]
        seen |= {id(p) for p in own}
        yield path, own
