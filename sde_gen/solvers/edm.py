"""EDM's stochastic sampler."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch
from torch import Tensor

from ..sdes import SDE
from .base import FixedStepSolver, Update
from .heun import heun_step


class EDM(FixedStepSolver):
    """Heun's method with churn: before each step the noise is raised, then the flow is followed from there.

        rho = sigma/alpha;  rho_hat = (1 + gamma) rho,  x/alpha <- x/alpha + s_noise sqrt(rho_hat^2 - rho^2) z
        gamma = min(s_churn/(steps + 1), sqrt(2) - 1) where s_min <= rho <= s_max, else 0

    s_churn, s_min, s_max, s_noise as in the paper (levels in units of the normalised data). The paper's N counts the last step too, from
    t_min to no noise, which is `final="denoise"` here: N = steps + 1. Where s_min lies below the level of t_min, that last step is
    churned as well: one Euler step, and one call more, leads the raised noise back to t_min. Two calls a step.
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
        most = min(self.s_churn / len(times), math.sqrt(2) - 1)  # len(times) is the paper's N
        top = math.exp(-float(sde.half_log_snr(sde.t_max)))

        def churned(t: float) -> tuple[list[Update], float]:
            """The update that raises the noise at t, if any, and the time at which its level lies."""
            rho = _rho(sde, t)
            hat = min((1 + most) * rho, top)  # the model knows no level above t_max
            if not (self.s_min <= rho <= self.s_max and hat > rho):
                return [], t
            raised = float(sde.time_of(-math.log(hat)))
            alpha = _alpha(sde, raised)
            return [Update(t=None, a=alpha / _alpha(sde, t), c=alpha * self.s_noise * math.sqrt(hat**2 - rho**2))], raised

        updates: list[Update] = []
        for t, s in itertools.pairwise(times.tolist()):
            raising, raised = churned(t)
            updates += raising + heun_step(raised, s, _alpha(sde, raised), _alpha(sde, s), _rho(sde, s) / _rho(sde, raised))
        end = float(times[-1])
        raising, raised = churned(end)
        if raising and math.isclose(end, sde.t_min, rel_tol=1e-6):
            euler, _ = heun_step(raised, end, _alpha(sde, raised), _alpha(sde, end), _rho(sde, end) / _rho(sde, raised))
            updates[-1] = replace(updates[-1], s=None)
            updates += [*raising, replace(euler, s=end)]
        return updates


def _rho(sde: SDE, t: float) -> float:
    return math.exp(-float(sde.half_log_snr(t)))


def _alpha(sde: SDE, t: float) -> float:
    return float(sde.marginal(torch.tensor(t, dtype=torch.float64))[0])
