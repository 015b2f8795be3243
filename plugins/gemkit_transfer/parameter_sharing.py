"""Parameter sharing: parts of the teacher become parts of the student."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Iterable
from pathlib import Path

import torch
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
from gemkit_transfer.low_rank import Factors, factors_adamw


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
    tuning: str = option(
        "full",
        "What happens to it then: full, trained on by the student's optimiser; frozen, left as it is; low_rank, dense "
        "matrices get the trained product of two narrow ones added, and the rest is frozen.",
        choices=("full", "frozen", "low_rank"),
    )
    rank: int = option(8, "low_rank: inner width of the product; at most a matrix's smaller side is used.", ge=1)
    lr: float = option(1e-3, "low_rank: peak learning rate of the factors' AdamW.", gt=0)

    def check(self) -> None:
        if not self.teacher:
            raise GemkitError("parameter sharing needs a teacher", where="teacher", fix="transfer.teacher=runs/<name>")


@component("transfer", ParameterSharingConfig)
class ParameterSharing(TransferStrategy):
    """Named parts of the student begin with the teacher's weights, and are trained on, stay frozen or move at low rank.

    Teacher and student must read the same build of a data set: rows of a table are ids of it, and an id of another
    build is another thing.

    Paper: Meta's description of GEM names parameter sharing as one of its transfers, without details [reading].
        LoRA (arXiv 2106.09685) for `tuning=low_rank`, in `low_rank.py`.
    Differs: frozen tables get no gradient, so their optimiser leaves them. Each run has weights of its own: none are
        tied to the teacher's.
    """

    def __init__(self, config: ParameterSharingConfig, context: BuildContext) -> None:
        super().__init__()
        self.config, self.schema = config, context.schema
        self.factors = nn.ModuleDict()  # by the weight's name, with / for dots, which its keys cannot have

    def prepare(self, student: nn.Module, embeddings: EmbeddingTables) -> None:
        """Copies the shared parts in, and freezes them or makes their factors if asked for.

        Raises:
            GemkitError: A pattern matches nothing, shapes differ, the id spaces do, or nothing can be tuned.
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
        self.takes = frozenset(chosen)
        if self.config.tuning == "full":
            return
        self.weight_of = student.get_parameter
        embeddings.frozen |= {n.removeprefix(TABLES) for n in chosen if n.startswith(TABLES)}
        for name, parameter in student.named_parameters():
            if DENSE + name not in chosen:
                continue
            if self.config.tuning == "low_rank" and parameter.dim() >= 2:
                self.factors[name.replace(".", "/")] = Factors(parameter, self.config.rank)
            else:
                parameter.requires_grad_(False)
        if self.config.tuning == "low_rank" and not self.factors:
            raise GemkitError(
                "nothing that is shared can be tuned at low rank",
                where="transfer.share",
                allowed="dense parameters of two dimensions or more; tables, biases and norms stay frozen",
                fix="name some in transfer.share (dense.tokenizer.*), or transfer.tuning=frozen",
            )

    def optimizers(self) -> Iterable[torch.optim.Optimizer]:
        """The factors'. Weights are looked up only now: some backends put others into their place."""
        if not self.factors:
            return ()
        pairs = [(self.weight_of(key.replace("/", ".")), factors) for key, factors in self.factors.items()]
        return (factors_adamw(pairs, self.config.lr),)  # type: ignore[arg-type]

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
