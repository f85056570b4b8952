"""Annealed Langevin dynamics."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sdes import SDE
from ..sdes.base import check_positive
from .base import FixedStepSolver, Update, rows


class AnnealedLangevin(FixedStepSolver):
    """`corrections` Langevin steps at each noise level of the grid, from the noisiest down; nothing else moves the state.

        x <- x + e score(x, t) + sqrt(2 e) z,   e = 2 (snr sigma_t)^2

    `corrections` calls a step. No order: a Langevin step of fixed snr does not shrink with the grid. For processes that shrink
    the data (alpha < 1) neighbouring levels must be close, since nothing rescales x between them. Song and Ermon 2019,
    arXiv:1907.05600, algorithm 1; 2020, arXiv:2006.09011, for the steps.
    """

    stochastic = True
    default_steps = 250

    def __init__(self, snr: float = 0.16, corrections: int = 2) -> None:
        if isinstance(corrections, bool) or not isinstance(corrections, int) or corrections < 1:
            raise ValueError(f"corrections must be a whole number of at least 1, got {corrections!r}")
        self.snr, self.corrections = check_positive("snr", snr), corrections

    @property
    def calls(self) -> int | None:
        return self.corrections

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        updates: list[Update] = []
        for s, update in zip(times[1:].tolist(), langevin_steps(sde, times[1:], self.snr), strict=True):
            updates += [update] * (self.corrections - 1)
            updates.append(Update(t=update.t, a=update.a, b=update.b, c=update.c, s=s, keep=False))
        return updates


def langevin_steps(sde: SDE, times: Tensor, snr: float | Tensor) -> list[Update]:
    """One Langevin step for each of `times`: x + e score = (1 - e/sigma^2) x + e alpha/sigma^2 E[x_0|x] with e = 2 (snr sigma)^2.

    snr: one number, or one for each time.
    """
    alpha, sigma = sde.marginal(times)
    share = 2 * torch.as_tensor(snr, dtype=torch.float64).expand_as(times) ** 2  # e/sigma^2
    table = rows(times, 1 - share, alpha * share, sigma * torch.sqrt(2 * share))
    return [Update(t=t, a=a, b=(b,), c=c, keep=False) for t, a, b, c in table]


def normed_steps(sde: SDE, times: Tensor, snr: float | Tensor) -> list[Update]:
    """One Langevin step for each of `times` whose size is that of the sample's own noise over its own score (`Update.snr`)."""
    alpha, sigma = sde.marginal(times)
    table = rows(times, -1 / sigma**2, alpha / sigma**2, torch.as_tensor(snr, dtype=torch.float64).expand_as(times))
    return [Update(t=t, a=1.0, view=(p, q), keep=False, snr=snr) for t, p, q, snr in table]
