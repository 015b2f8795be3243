"""Several strategies at once, each under its own name."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gemkit.component import component
from gemkit.config.fields import Config, option, shown
from gemkit.data.batch import Batch
from gemkit.data.schema import Schema
from gemkit.errors import GemkitError
from gemkit.interfaces import Answers, BuildContext, EmbeddingTables, Outputs, TransferStrategy


@dataclasses.dataclass(frozen=True, kw_only=True)
class SeveralConfig(Config):
    """A list of strategies. ``transfer=[distill,representation]`` on a command line is this component."""

    name: str = "several"
    log: str = option("", "Teacher log of every strategy that reads one and names none of its own.")
    parts: dict[str, Any] = option(
        {}, "Strategy -> its options; a key may be another name beside `name: <strategy>`, for two of one kind."
    )

    def check(self) -> None:
        from gemkit.registry import load_registry

        if not self.parts:
            raise GemkitError("no strategy is named", where="parts", fix="transfer=[distill,representation]")
        parts: dict[str, Any] = {}
        for key, value in self.parts.items():
            where = f"parts.{key}"
            if dataclasses.is_dataclass(value):
                parts[key] = value
                continue
            if not isinstance(value, Mapping | None):
                raise GemkitError(f"{where} = {shown(value)} is no mapping of options", where=where)
            values = {"name": key, **(value or {})}
            known = load_registry().names("transfer")
            if values["name"] in known and values["name"] != self.name:
                fields = dataclasses.fields(load_registry().get("transfer", values["name"]).config)
                if self.log and "log" in [f.name for f in fields]:
                    values.setdefault("log", self.log)
            elif values["name"] == self.name:
                raise GemkitError("a list of strategies holds a list", where=where, fix="name them in one list")
            parts[key] = load_registry().config("transfer", values, where)
        object.__setattr__(self, "parts", parts)


@component("transfer", SeveralConfig)
class Several(TransferStrategy):
    """Every step of the life cycle, strategy by strategy in the order of their names in the config.

    Losses add up. Features of the student's schema are those of all.

    Paper: none; ExFM (arXiv 2502.17494) uses its auxiliary head and Student Adapter together.
    """

    def __init__(self, config: SeveralConfig, context: BuildContext) -> None:
        super().__init__()
        self.parts = nn.ModuleDict({name: context.build("transfer", part) for name, part in config.parts.items()})
        self.taps = tuple(dict.fromkeys(tap for part in self._parts for tap in part.taps))

    @property
    def _parts(self) -> list[TransferStrategy]:
        return list(self.parts.values())  # type: ignore[arg-type]

    def extra_features(self, schema: Schema) -> Schema:
        for part in self._parts:
            schema = part.extra_features(schema)
        return schema

    def with_features(self, batch: Batch) -> Batch:
        for part in self._parts:
            batch = part.with_features(batch)
        return batch

    def prepare(self, student: nn.Module, embeddings: EmbeddingTables) -> None:
        """Each part's, in turn.

        Raises:
            GemkitError: Two of them take the same tensor from a teacher.
        """
        owner: dict[str, str] = {}
        for key, part in zip(self.parts, self._parts, strict=True):
            part.prepare(student, embeddings)
            for name in sorted(part.takes):
                if other := owner.get(name):
                    raise GemkitError(
                        f"{name} is shared twice, by {other} and by {key}",
                        where=f"transfer.parts.{key}.share",
                        allowed="each part of the student from one teacher",
                        fix=f"leave it out of one of the two, parts.{other}.share or parts.{key}.share",
                    )
                owner[name] = key

    def optimizers(self) -> Iterable[torch.optim.Optimizer]:
        return [optimizer for part in self._parts for optimizer in part.optimizers()]

    def answer(self, batch: Batch) -> Answers | None:
        """None: each part's loss asks its own log."""
        return None

    def loss(self, student: Outputs, teacher: Answers | None, batch: Batch) -> Tensor:
        """Shape: ()."""
        losses = []
        for part in self._parts:
            part.fresh, part.processes = self.fresh, self.processes
            own = student._replace(taps={name: student.taps[name] for name in part.taps})
            losses.append(part.loss(own, part.answer(batch), batch))
        return torch.stack(losses).sum()

    def report(self) -> dict[str, float]:
        """What the parts report, ``transfer/...`` with the part's name before it where two say the same."""
        rows = [(name, part.report()) for name, part in zip(self.parts, self._parts, strict=True)]
        keys = [key for _, row in rows for key in row]
        return {
            key if keys.count(key) == 1 else key.replace("transfer/", f"transfer/{name}/", 1): value
            for name, row in rows
            for key, value in row.items()
        }

    def export(self, student: nn.Module) -> nn.Module:
        for part in self._parts:
            student = part.export(student)
        return student
