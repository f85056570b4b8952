"""EDM's stochastic sampler."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..sdes import SDE
from .base import FixedStepSolver, Update
from .heun import heun_step


class EDM(FixedStepSolver):
    """Heun's method with churn: before each step the noise is raised, then the flow is followed from there.

        rho = sigma/alpha;  rho_hat = (1 + gamma) rho,  x/alpha <- x/alpha + s_noise sqrt(rho_hat^2 - rho^2) z
        gamma = min(s_churn/steps, sqrt(2) - 1) where s_min <= rho <= s_max, else 0

    s_churn, s_min, s_max, s_noise as in the paper (levels in units of the normalised data). Two calls a step.
    Karras et al. 2022, arXiv:2206.00364, algorithm 2.
    """

    stochastic = True
    default_steps = 50
    default_grid = "karras"

    def __init__(self, s_churn: float = 20.0, s_min: float = 0.05, s_max: float = 50.0, s_noise: float = 1.003) -> None:
        for name, value in (("s_churn", s_churn), ("s_min", s_min), ("s_max", s_max), ("s_noise", s_noise)):
            if not (math.isfinite(value) and value >= 0):
                raise ValueError(f"{name} must be finite and not negative, got {value!r}")
        self.s_churn, self.s_min, self.s_max, self.s_noise = s_churn, s_min, s_max, s_noise

    @property
    def calls(self) -> int | None:
        return 2

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        steps = len(times) - 1
        top = math.exp(-float(sde.half_log_snr(sde.t_max)))
        updates: list[Update] = []
        for t, s in zip(times[:-1].tolist(), times[1:].tolist(), strict=True):
            rho_t, rho_s = _rho(sde, t), _rho(sde, s)
            gamma = min(self.s_churn / steps, math.sqrt(2) - 1) if self.s_min <= rho_t <= self.s_max else 0.0
            hat = min((1 + gamma) * rho_t, top)  # the model knows no level above t_max
            if hat > rho_t:
                raised = float(sde.time_of(-math.log(hat)))
                a, c = _alpha(sde, raised) / _alpha(sde, t), _alpha(sde, raised) * self.s_noise * math.sqrt(hat**2 - rho_t**2)
                updates.append(Update(t=None, a=a, c=c))
                t = raised
            updates += heun_step(t, s, _alpha(sde, t), _alpha(sde, s), rho_s / _rho(sde, t))
        return updates


def _rho(sde: SDE, t: float) -> float:
    return math.exp(-float(sde.half_log_snr(t)))


def _alpha(sde: SDE, t: float) -> float:
    return float(sde.marginal(torch.tensor(t, dtype=torch.float64))[0])
