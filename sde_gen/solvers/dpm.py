"""Exponential multistep solvers of the probability flow."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sdes import SDE
from .base import FixedStepSolver, Update
from .exponential import data_multistep, noise_multistep

MOST_ORDER = 4


def check_order(order: int, most: int = MOST_ORDER) -> int:
    """`order` if it is one of 1 .. most, else ValueError."""
    if isinstance(order, bool) or order not in range(1, most + 1):
        raise ValueError(f"order must be a whole number from 1 to {most}, got {order!r}")
    return order


class ExponentialMultistep(FixedStepSolver):
    """Exponential multistep in the half log-SNR: the linear part exactly, the network's prediction by a polynomial in lambda.

        data:  x_s = sigma_s/sigma_t x + alpha_s int_{lambda_t}^{lambda_s} exp(u - lambda_s) P(u) du
        noise: x_s = alpha_s/alpha_t x - sigma_s int_{lambda_t}^{lambda_s} exp(lambda_s - u) P(u) du

    P interpolates the last `order` predictions; the integrals are exact. One call a step; the data form is DPM-Solver++
    (multistep), the noise form DPM-Solver's. The first steps have fewer predictions, so that the global order from a cold
    start is 2. Runs in both directions. Lu et al. 2022, arXiv:2211.01095 and arXiv:2206.00927.
    """

    default_steps = 20

    order: int

    def __init__(self, order: int = 3, prediction: str = "data") -> None:
        if prediction not in ("data", "noise"):
            raise ValueError(f"unknown prediction {prediction!r}; choose from data, noise")
        self.order = check_order(order)
        self.prediction = prediction

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        if self.prediction == "data":
            return data_multistep(sde, times, self.order)
        return noise_multistep(
            sde, times, sde.half_log_snr(times), self.order, lambda u, end: -torch.exp(end - u), sde.marginal(times[1:])[1]
        )
