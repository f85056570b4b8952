"""Heun's method on the probability flow."""

from __future__ import annotations

from torch import Tensor

from ..sdes import SDE
from .base import FixedStepSolver, Update, rows


def heun_step(t: float, s: float, alpha_t: float, alpha_s: float, ratio: float) -> list[Update]:
    """The two updates of a step from t to s; `ratio` = (sigma_s/alpha_s)/(sigma_t/alpha_t).

    In x/alpha the Euler step is q x + (1 - q) D_1 with q the ratio; Heun's adds (1 - 1/q)/2 (D_1 - D_2) to it.
    """
    bend = 0.5 * alpha_s * (1 - 1 / ratio)
    return [
        Update(t=t, a=ratio * alpha_s / alpha_t, b=(alpha_s * (1 - ratio),)),
        Update(t=s, a=1.0, b=(-bend, bend), s=s),
    ]


class Heun(FixedStepSolver):
    """Heun's second-order method for d(x/alpha)/d(sigma/alpha) = noise, EDM's deterministic sampler: two calls a step.

    Runs in both directions. Karras et al. 2022, arXiv:2206.00364, algorithm 1.
    """

    order = 2
    default_steps = 20
    default_grid = "karras"

    @property
    def calls(self) -> int | None:
        return 2

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        alpha, sigma = sde.marginal(times)
        rho = sigma / alpha
        table = rows(times[:-1], times[1:], alpha[:-1], alpha[1:], rho[1:] / rho[:-1])
        return [update for row in table for update in heun_step(*row)]
