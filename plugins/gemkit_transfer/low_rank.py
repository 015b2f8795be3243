"""Low-rank tuning: a weight is W = W0 + U V, of which U and V are trained."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from gemkit.errors import GemkitError


class Factors(nn.Module):
    """U and V of a weight W = W0 + U V, which stays a parameter of the student and holds that sum at all times.

    W gets its gradient g as ever: over micro-batches, averaged over processes, clipped. From it follow
    `dL/dU = g V^T` and `dL/dV = U^T g`.

    Shape: W (..., n, m), U (..., n, r), V (..., r, m); dimensions before the last two count banks of matrices.

    Paper: LoRA (arXiv 2106.09685), section 4.1, with B for U and A for V.
    Differs: the sum is not scaled by alpha / r; r is at most the smaller side of W; V's deviation is `m ** -0.5`; what
        is clipped is the gradient of W.
    """

    base: Tensor
    """W0."""

    def __init__(self, weight: Tensor, rank: int) -> None:
        super().__init__()
        *banks, n, m = weight.shape
        rank = min(rank, n, m)
        self.register_buffer("base", weight.detach().clone())
        self.u = nn.Parameter(torch.empty(*banks, n, rank, dtype=weight.dtype))
        self.v = nn.Parameter(torch.empty(*banks, rank, m, dtype=weight.dtype))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        nn.init.zeros_(self.u)
        nn.init.normal_(self.v, std=self.v.shape[-1] ** -0.5)

    @torch.no_grad()
    def take_gradient(self, weight: Tensor) -> None:
        """Turns W's gradient into the factors'. W is left without one, so the student's optimiser leaves W alone."""
        if weight.grad is not None:
            self.u.grad, self.v.grad = weight.grad @ self.v.mT, self.u.mT @ weight.grad
            weight.grad = None

    @torch.no_grad()
    def write(self, weight: Tensor) -> None:
        """Puts W0 + U V into W."""
        weight.copy_(self.base + self.u @ self.v)


def factors_adamw(pairs: Sequence[tuple[Tensor, Factors]], lr: float) -> torch.optim.AdamW:
    """AdamW of the factors; each step takes the gradients of their weights, and writes the weights.

    Raises:
        GemkitError: A weight is divided among processes.
    """
    from torch.distributed.tensor import DTensor

    if any(isinstance(weight, DTensor) for weight, _ in pairs):
        raise GemkitError(
            "low-rank tuning needs whole weights, and this backend divides them among processes",
            where="transfer.tuning",
            allowed="low_rank with parallel=single or parallel=ddp",
            fix="parallel=ddp, or transfer.tuning=full",
        )
    optimizer = torch.optim.AdamW([p for _, factors in pairs for p in factors.parameters()], lr=lr, weight_decay=0.0)

    def before(*_: object) -> None:
        for weight, factors in pairs:
            if not optimizer.state:  # the first step: train.start_from may have put other weights there since
                factors.base.copy_(weight.detach())
            factors.take_gradient(weight)

    def after(*_: object) -> None:
        for weight, factors in pairs:
            factors.write(weight)

    optimizer.register_step_pre_hook(before)
    optimizer.register_step_post_hook(after)
    return optimizer
