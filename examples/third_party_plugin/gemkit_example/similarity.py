"""The student's readouts are to resemble each other as the teacher's do."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from gemkit.component import component
from gemkit.config.fields import Config, option
from gemkit.data.batch import Batch
from gemkit.errors import GemkitError
from gemkit.interfaces import BuildContext, Outputs, TransferStrategy


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimilarityConfig(Config):
    """Options of the strategy."""

    name: str = "similarity"
    teacher: str = option("", "Run folder of the teacher; it reads the student's data set.")
    weight: float = option(1.0, "Weight of the loss beside the label loss.", ge=0)

    def check(self) -> None:
        if not self.teacher:
            raise GemkitError(
                "transfer=similarity needs a teacher", where="teacher", fix="transfer.teacher=runs/<name>"
            )


@component("transfer", SimilarityConfig)
class SimilarityPreserving(TransferStrategy):
    """Matches the cosine similarities between the examples of a batch, as readouts of teacher and student see them.

    Teacher and student may have readouts of different widths, and nothing has to be learned beside the student.

    Paper: Similarity-Preserving Knowledge Distillation (arXiv 1907.09682), equations 1 to 4.
    Differs: cosine similarities, where the paper normalises each row of the similarity matrix.
    """

    def __init__(self, config: SimilarityConfig, context: BuildContext) -> None:
        super().__init__()
        from gemkit.registry import load_registry
        from gemkit.session import load_run

        self.weight = config.weight
        teacher = load_run(Path(config.teacher), load_registry(), context.schema).model
        self._teacher = (teacher,)  # in a tuple: no submodule, neither trained nor saved with the student

    @torch.no_grad()
    def answer(self, batch: Batch) -> Outputs:
        return self._teacher[0](batch)

    def loss(self, student: Outputs, teacher: Outputs | None, batch: Batch) -> Tensor:
        """Shape: readouts (B, R) of both -> ()."""
        assert teacher is not None
        return self.weight * F.mse_loss(similarities(student.readout), similarities(teacher.readout))


def similarities(readout: Tensor) -> Tensor:
    """Cosine similarity of every two examples. Shape: (B, R) -> (B, B)."""
    rows = F.normalize(readout, dim=1)
    return rows @ rows.t()
