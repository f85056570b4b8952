"""Euler-Maruyama."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.reverse import coefficients
from ..sdes import SDE
from .base import FixedStepSolver, Update, rows


class EulerMaruyama(FixedStepSolver):
    """Euler-Maruyama on the reverse-time family: one call a step, strong and weak order 1 (the noise is additive).

        x_s = x + (s - t) [f x - (1 + eta^2)/2 g^2 score(x, t)] + eta g sqrt|s - t| z

    eta = 1 is the reverse SDE, eta = 0 the explicit Euler method on the probability flow. Song et al. 2021,
    arXiv:2011.13456, section 4.
    """

    order = 1
    strong_order = 1.0
    weak_order = 1.0
    stochastic = True
    reverse_sde = True
    default_steps = 250

    def __init__(self, eta: float = 1.0) -> None:
        if not eta >= 0:
            raise ValueError(f"eta must not be negative, got {eta!r}")
        self.eta = float(eta)

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        t, s = times[:-1], times[1:]
        step = s - t
        a, b, c = coefficients(sde, t, self.eta)
        table = rows(t, 1 + step * a, step * b, torch.sqrt(step.abs()) * c, s)
        return [Update(t=t, a=a, b=(b,), c=c, s=s) for t, a, b, c, s in table]
