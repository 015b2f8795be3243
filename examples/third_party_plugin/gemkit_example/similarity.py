"""The student's readouts are to resemble each other as the teacher's do."""

from __future__ import annotations

import dataclasses

from torch import Tensor
from torch.nn import functional as F

from gemkit.component import component
from gemkit.config.fields import option
from gemkit.data.batch import Batch
from gemkit.interfaces import Answers, BuildContext, Outputs, TransferStrategy
from gemkit.transfer.answers import LogConfig, LoggedAnswers


@dataclasses.dataclass(frozen=True, kw_only=True)
class SimilarityConfig(LogConfig):
    """Options of the strategy."""

    name: str = "similarity"
    weight: float = option(1.0, "Weight of the loss beside the label loss.", ge=0)


@component("transfer", SimilarityConfig)
class SimilarityPreserving(TransferStrategy):
    """Matches the cosine similarities between the examples of a batch, as the teacher's codes and the student see them.

    The teacher log needs codes (`gemkit teach --codes`). They may have another width than the student's readout, and
    nothing has to be learned beside the student. Examples without an answer are left out.

    Paper: Similarity-Preserving Knowledge Distillation (arXiv 1907.09682), equations 1 to 4.
    Differs: cosine similarities, where the paper normalises each row of the similarity matrix; codes of the teacher's
        readout, where the paper has the layer itself; with several processes, pairs within the share of each.
    """

    reads_codes = True

    def __init__(self, config: SimilarityConfig, context: BuildContext) -> None:
        super().__init__()
        self.weight = config.weight
        self.answers = LoggedAnswers(config.log, context.schema, with_codes=True)

    def answer(self, batch: Batch) -> Answers:
        answers: Answers = self.answers(batch)
        return answers

    def loss(self, student: Outputs, teacher: Answers | None, batch: Batch) -> Tensor:
        """Shape: readout (B, R), codes (B, K) -> ()."""
        assert teacher is not None
        known = teacher.known.amax(1)
        pairs = known.unsqueeze(0) * known.unsqueeze(1)
        differences = similarities(student.readout) - similarities(teacher.codes)
        return self.weight * (differences.square() * pairs).sum() / self.mean(pairs.sum()).clamp(min=1)


def similarities(readout: Tensor) -> Tensor:
    """Cosine similarity of every two examples. Shape: (B, R) -> (B, B)."""
    rows = F.normalize(readout, dim=1)
    return rows @ rows.t()
