"""Parameter sharing: parts of the teacher become parts of the student."""

from __future__ import annotations

import dataclasses
import fnmatch
from pathlib import Path

from torch import nn

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.errors import GemkitError
from gemkit.interfaces import BuildContext, EmbeddingTables, TransferStrategy
from gemkit.pieces import fill, pieces_of
from gemkit.runs import checkpoint
from gemkit.runs.checkpoint import Stored
from gemkit.runs.folder import RunFolder
from gemkit.runs.keeping import BEST
from gemkit.session import DENSE, TABLES


@dataclasses.dataclass(frozen=True, kw_only=True)
class ParameterSharingConfig(Config):
    """Options of parameter sharing."""

    name: str = "parameter_sharing"
    teacher: str = option("", "Run folder of the teacher.")
    share: tuple[str, ...] = option(
        ("tables.*",),
        "What is taken, by the names of the checkpoint (`gemkit inspect RUN`), * for anything: tables.movie_id, "
        "dense.blocks.0.sequence.*, dense.tokenizer.*.",
        filled=True,
    )
    frozen: bool = option(False, "Leave it as it is; false: train it on.")

    def check(self) -> None:
        if not self.teacher:
            raise GemkitError("parameter sharing needs a teacher", where="teacher", fix="transfer.teacher=runs/<name>")


@component("transfer", ParameterSharingConfig)
class ParameterSharing(TransferStrategy):
    """Named parts of the student begin with the teacher's weights, and are trained on, or stay frozen.

    Teacher and student must read the same build of a data set: rows of a table are ids of it, and an id of another
    build is another thing.

    Paper: Meta's description of GEM names parameter sharing as one of its transfers, without details [reading].
    Differs: frozen tables get no gradient, so their optimiser leaves them. Each run has weights of its own: none are
        tied to the teacher's.
    """

    def __init__(self, config: ParameterSharingConfig, context: BuildContext) -> None:
        super().__init__()
        self.config, self.schema = config, context.schema

    def prepare(self, student: nn.Module, embeddings: EmbeddingTables) -> None:
        """Copies the shared parts in, and freezes them if asked for.

        Raises:
            GemkitError: A pattern matches nothing, shapes differ, or the id spaces do.
        """
        file = RunFolder.open(Path(self.config.teacher)).checkpoints / BEST
        tensors, state = checkpoint.load(file)
        own = {DENSE + name: pieces_of(value) for name, value in student.state_dict().items()}
        tables = {TABLES + name: pieces for name, pieces in embeddings.weight_pieces().items()}
        chosen = _chosen(self.config.share, list(own | tables))
        self._check_ids(state["schema"], [n.removeprefix(TABLES) for n in chosen if n.startswith(TABLES)])
        for name in chosen:
            pieces = (own | tables)[name]
            _check_shape(name, pieces.shape, tensors, str(file))
            fill(pieces, tensors, name)
        if self.config.frozen:
            for name, parameter in student.named_parameters():
                if DENSE + name in chosen:
                    parameter.requires_grad_(False)
            embeddings.frozen = frozenset(n.removeprefix(TABLES) for n in chosen if n.startswith(TABLES))

    def _check_ids(self, theirs: dict[str, object], tables: list[str]) -> None:
        """
        Raises:
            GemkitError: A shared table is another id space for the teacher.
        """
        found = {t["name"]: t for t in theirs["tables"]}  # type: ignore[attr-defined]
        for table in self.schema.tables:
            if table.name in tables and dict(found.get(table.name, {})) != dataclasses.asdict(table):
                raise GemkitError(
                    f"table {table.name} has other ids in the teacher's data set",
                    where="transfer.share",
                    allowed="tables of the same build of the same data set",
                    fix="train the teacher on the student's data set, or share dense parts only",
                )


def _chosen(patterns: tuple[str, ...], names: list[str]) -> list[str]:
    for i, pattern in enumerate(patterns):
        if not fnmatch.filter(names, pattern):
            first = ", ".join(sorted(names)[:8])
            raise GemkitError(
                f"nothing in the student is called {pattern}",
                where=f"transfer.share[{i}]",
                allowed=f"names such as {first}, and * for anything",
            )
    return [name for name in names if any(fnmatch.fnmatchcase(name, p) for p in patterns)]


def _check_shape(name: str, shape: tuple[int, ...], tensors: Stored, where: str) -> None:
    if name not in tensors or tuple(tensors.shape(name)) != tuple(shape):
        found = tuple(tensors.shape(name)) if name in tensors else "nothing of that name"
        raise GemkitError(
            f"{name} is {tuple(shape)} in the student and {found} in the teacher",
            where=where,
            allowed="parts of one shape (size.dim and the component's options make it)",
            fix="leave it out of transfer.share, or give both the same size.dim",
        )
