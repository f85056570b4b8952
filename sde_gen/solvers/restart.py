"""Restart sampling."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import torch
from torch import Tensor

from ..sdes import SDE
from .base import FixedStepSolver, Update
from .grids import make_grid
from .heun import heun_step


class Restart(FixedStepSolver):
    """Heun's method that, at rho_min, returns to rho_max by adding noise and comes down again, `rounds` times over.

        x/alpha <- x/alpha + sqrt(rho_max^2 - rho_min^2) z,   then the flow from rho_max to rho_min in `inner` steps

    rho = sigma/alpha in units of the normalised data. rho_min stands for the level of the grid that is nearest to it, among those below
    rho_max; where there is none, there is no restart. The noise forgets the errors made so
    far, the flow makes few new ones. `inner` counts steps, one fewer than the N_restart of the paper's tables, which counts levels.
    Two calls a step: 2 (steps + rounds inner) in all. Xu et al. 2023, arXiv:2306.14878, algorithm 1.
    """

    stochastic = True
    default_steps = 18
    default_grid = "karras"

    def __init__(self, rho_min: float = 0.1, rho_max: float = 1.0, rounds: int = 2, inner: int = 5) -> None:
        if not (math.isfinite(rho_max) and 0 < rho_min < rho_max):
            raise ValueError(f"rho_min and rho_max must be finite with 0 < rho_min < rho_max, got {rho_min!r} and {rho_max!r}")
        for name, value in (("rounds", rounds), ("inner", inner)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        self.rho_min, self.rho_max, self.rounds, self.inner = rho_min, rho_max, rounds, inner

    @property
    def calls(self) -> int | None:
        return None

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        high = float(sde.time_of(-math.log(self.rho_max)).clamp(sde.t_min, sde.t_max))
        levels = torch.exp(-sde.half_log_snr(times.detach()))
        away = (levels - self.rho_min).abs()
        away[0] = math.inf  # a restart comes after a step
        away[levels >= torch.exp(-sde.half_log_snr(high))] = math.inf
        turn = int(away.argmin()) if bool(torch.isfinite(away).any()) else None
        updates: list[Update] = []
        for k, (t, s) in enumerate(itertools.pairwise(times.tolist()), start=1):
            step = _down(sde, torch.tensor([t, s], dtype=torch.float64))
            if k == turn:
                for _ in range(self.rounds):
                    (alpha_s, sigma_s), (alpha, sigma) = (_marginal(sde, time) for time in (s, high))
                    noise = math.sqrt((sigma / alpha) ** 2 - (sigma_s / alpha_s) ** 2)
                    step.append(Update(t=None, a=alpha / alpha_s, c=alpha * noise))
                    step += _down(sde, make_grid(sde, "karras", high, s, self.inner))
            updates += [replace(update, s=None) for update in step[:-1]]
            updates.append(replace(step[-1], s=s))  # the grid's step ends after its rounds
        return updates


def _down(sde: SDE, times: Tensor) -> list[Update]:
    levels = [(time, *_marginal(sde, time)) for time in times.tolist()]
    steps = itertools.pairwise(levels)
    return [
        update
        for (t, alpha_t, sigma_t), (s, alpha_s, sigma_s) in steps
        for update in heun_step(t, s, alpha_t, alpha_s, (sigma_s / alpha_s) / (sigma_t / alpha_t))
    ]


def _marginal(sde: SDE, t: float) -> tuple[float, float]:
    alpha, sigma = sde.marginal(torch.tensor(t, dtype=torch.float64))
    return float(alpha), float(sigma)
