"""Adams and Bashforth's method on the noise."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..sdes import SDE
from .base import FixedStepSolver, Update
from .dpm import check_order
from .exponential import Array, lagrange_integrals

VARIABLES = ("time", "rho")


class AdamsBashforth(FixedStepSolver):
    """Adams and Bashforth's method with unequal steps for d(x/alpha) = noise d(sigma/alpha): DEIS.

        x_s = alpha_s (x/alpha_t + int_t^s P(u) d(sigma/alpha)(u))

    P interpolates the last `order` noise predictions as a polynomial in time ("time", tAB-DEIS) or in rho = sigma/alpha
    ("rho", rhoAB-DEIS); the integrals are exact. One call a step; order 1 is DDIM. From a cold start the global order is 2.
    Runs in both directions. Zhang and Chen 2022, arXiv:2204.13902.
    """

    default_steps = 20

    order: int

    def __init__(self, order: int = 3, variable: str = "rho") -> None:
        if variable not in VARIABLES:
            raise ValueError(f"unknown variable {variable!r}; choose from {', '.join(VARIABLES)}")
        self.order = check_order(order)
        self.variable = variable

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        alpha, sigma = (value.tolist() for value in sde.marginal(times))
        t = times.tolist()
        nodes = times.numpy() if self.variable == "time" else torch.exp(-sde.half_log_snr(times)).numpy()

        def speed(u: Array) -> Array:
            # d(sigma/alpha)/du: 1 in rho itself, -lambda' exp(-lambda) in time.
            if self.variable == "rho":
                return np.ones_like(u)
            time = torch.from_numpy(u)
            return (-sde.slopes(time)[1] * torch.exp(-sde.half_log_snr(time))).numpy()

        updates = []
        for k in range(len(t) - 1):
            known = nodes[max(0, k + 1 - self.order) : k + 1][::-1]
            weights = alpha[k + 1] * lagrange_integrals(known, float(nodes[k]), float(nodes[k + 1]), speed)
            view = (1 / sigma[k], -alpha[k] / sigma[k])
            updates.append(Update(t=t[k], a=alpha[k + 1] / alpha[k], b=tuple(weights.tolist()), s=t[k + 1], view=view))
        return updates
