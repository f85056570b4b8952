"""Adams and Bashforth's method on the noise."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sdes import SDE
from .base import FixedStepSolver, Update
from .dpm import check_order
from .exponential import noise_multistep

VARIABLES = ("time", "rho")


class AdamsBashforth(FixedStepSolver):
    """Adams and Bashforth's method with unequal steps for d(x/alpha) = noise d(sigma/alpha): DEIS.

        x_s = alpha_s (x/alpha_t + int_t^s P(u) d(sigma/alpha)(u))

    P interpolates the last `order` noise predictions as a polynomial in time ("time", tAB-DEIS) or in rho = sigma/alpha
    ("rho", rhoAB-DEIS); the integrals are exact. One call a step; order 1 is DDIM. From a cold start the global order is 2.
    Runs in both directions; towards noise the polynomial is one in the half log-SNR, since it would run away in the others.
    Zhang and Chen 2022, arXiv:2204.13902.
    """

    default_steps = 20

    order: int

    def __init__(self, order: int = 3, variable: str = "rho") -> None:
        if variable not in VARIABLES:
            raise ValueError(f"unknown variable {variable!r}; choose from {', '.join(VARIABLES)}")
        self.order = check_order(order)
        self.variable = variable

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        if times[-1] > times[0]:
            # Towards noise steps in rho and time grow so fast that polynomials in them run away; in lambda they do not.
            return noise_multistep(
                sde, times, sde.half_log_snr(times), self.order, lambda u, end: -torch.exp(-u), sde.marginal(times[1:])[0]
            )
        if self.variable == "rho":
            nodes = torch.exp(-sde.half_log_snr(times))
            return noise_multistep(sde, times, nodes, self.order, lambda u, end: torch.ones_like(u), sde.marginal(times[1:])[0])

        def speed(u: Tensor, end: Tensor) -> Tensor:
            return -sde.slopes(u)[1] * torch.exp(-sde.half_log_snr(u))  # d(sigma/alpha)/dt

        return noise_multistep(sde, times, times, self.order, speed, sde.marginal(times[1:])[0])
