"""Exponential multistep solvers of the reverse SDE."""

from __future__ import annotations

from torch import Tensor

from ..sdes import SDE
from ..sdes.base import check_positive
from .base import FixedStepSolver, Update
from .dpm import check_order
from .exponential import data_multistep


class ExponentialMultistepSDE(FixedStepSolver):
    """Exponential multistep on the reverse SDE in data prediction: drift's linear part and noise exactly.

        x_s = sigma_s/sigma_t exp(-eta^2 h) x + alpha_s (1 + eta^2) int exp((1 + eta^2)(u - lambda_s)) P(u) du
              + sigma_s sqrt(1 - exp(-2 eta^2 h)) z,   h = lambda_s - lambda_t

    P interpolates the last `order` predictions. One call a step; order 1 with eta = 1 is ancestral sampling. The weak order
    is 1 for order 1 and 2 above: what the last step's noise adds to P stands for what the present step's noise would. Lu et
    al. 2022, arXiv:2211.01095, section 5 (SDE-DPM-Solver++); Gonzalez et al. 2023, arXiv:2305.14267 (SEEDS).
    """

    stochastic = True
    default_steps = 50

    order: int

    def __init__(self, order: int = 2, eta: float = 1.0) -> None:
        self.order = check_order(order, 3)
        self.weak_order = float(min(order, 2))
        self.eta = check_positive("eta", eta)

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        return data_multistep(sde, times, self.order, self.eta)
