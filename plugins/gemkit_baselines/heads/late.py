"""Labels that come late: what a head must say of a task so that "not yet" is not taken for "no"."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from gemkit.data.batch import Batch

DAY_S = 86_400.0
LONGEST_DAYS = 1e4
"""Final labels were looked at after an infinite time; this is long enough, and has a gradient."""
MAX_LOG_RATE = 10.0


class LateLabels(nn.Module):
    """How the scores of a task with delays are read. Derive from it.

    Attributes:
        num_scores: M, scores for each task.
    """

    num_scores: int

    def logits(self, scores: Tensor) -> Tensor:
        """The chance that it happens, however late. Shape: (B, P, M) -> (B, P)."""
        raise NotImplementedError

    def losses(self, scores: Tensor, batch: Batch) -> Tensor:
        """Negative log-likelihood of what is known. Shape: (B, P, M) -> (B, P)."""
        raise NotImplementedError


class DelayedFeedback(LateLabels):
    """A logit, and the logarithm of the rate (per day) at which what will happen happens: delays are exponential.

    With chance p, rate lambda, delay d, and e the time that has passed: `-log p - log lambda + lambda d` where it has
    happened, `-log(1 - p + p exp(-lambda e))` where it has not.

    Paper: Chapelle, Modeling Delayed Feedback in Display Advertising (KDD 2014), equations 5 to 8.
    Differs: p and lambda share the model up to the head's last layer; the paper has two linear models. What has
        happened without saying when counts for p alone.
    """

    num_scores = 2

    def logits(self, scores: Tensor) -> Tensor:
        return scores[..., 0]

    def losses(self, scores: Tensor, batch: Batch) -> Tensor:
        logit, log_rate = scores[..., 0], scores[..., 1].clamp(-MAX_LOG_RATE, MAX_LOG_RATE)
        days = batch.delays / DAY_S
        timing = torch.where(days.isnan(), 0.0, log_rate - log_rate.exp() * days.nan_to_num())
        happened = -F.logsigmoid(logit) - timing
        passed = (batch.elapsed / DAY_S).clamp(max=LONGEST_DAYS).unsqueeze(1)
        not_yet = -torch.logaddexp(F.logsigmoid(-logit), F.logsigmoid(logit) - log_rate.exp() * passed)
        return torch.where(batch.labels > 0, happened, not_yet)


class Windows(LateLabels):
    """For each window of delays, the logit of h: it happens in this window, given that it has not before.

    A window counts once it is over, and not before, even where it has happened: only positives would count then. What
    is served is `1 - prod(1 - h)`: that it happens within the last window; later than that counts as never.

    Paper: the discrete logistic model of survival analysis (Cox, Regression Models and Life-Tables, 1972, section 6);
        windows of delays for conversions are those of ESDF (arXiv 2011.11826).
    Differs: ESDF's delay is another softmax beside p, as in the delayed-feedback model; here the windows are the
        prediction. What has happened without saying when counts as in some window.

    Args:
        ends_s: Where each window ends, seconds after the example, ascending.
    """

    starts: Tensor
    ends: Tensor

    def __init__(self, ends_s: Sequence[float]) -> None:
        super().__init__()
        self.num_scores = len(ends_s)
        self.register_buffer("starts", torch.tensor([-1.0, *ends_s[:-1]]), persistent=False)
        self.register_buffer("ends", torch.tensor(list(ends_s)), persistent=False)

    def logits(self, scores: Tensor) -> Tensor:
        # log of 1 / prod(1 - h), more exact than the product where all h are small
        total = F.softplus(scores).sum(-1).clamp(min=1e-30)
        return total + torch.log(-torch.expm1(-total))

    def losses(self, scores: Tensor, batch: Batch) -> Tensor:
        delays, elapsed = batch.delays.unsqueeze(-1), batch.elapsed.view(-1, 1, 1)
        inside = (delays > self.starts) & (delays <= self.ends)
        counts = (elapsed >= self.ends) & ~(delays <= self.starts)
        each = F.binary_cross_entropy_with_logits(scores, inside.to(scores), reduction="none")
        known = (each * counts).sum(-1)
        some_time = (batch.labels > 0) & batch.delays.isnan()
        return torch.where(some_time, -F.logsigmoid(self.logits(scores)), known)


KINDS = ("naive", "delayed_feedback", "windows")
"""naive: a label of 0 is a no, whatever may come."""


def late_labels(kind: str, ends_s: Sequence[float]) -> LateLabels | None:
    """One of `KINDS`; None: naive."""
    if kind == "naive":
        return None
    return DelayedFeedback() if kind == "delayed_feedback" else Windows(ends_s)
