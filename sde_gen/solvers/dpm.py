"""Exponential multistep solvers of the probability flow."""

from __future__ import annotations

import math

import numpy as np
from torch import Tensor

from ..sdes import SDE
from .base import FixedStepSolver, Update
from .exponential import data_weights, noise_weights

MOST_ORDER = 4


def check_order(order: int, most: int = MOST_ORDER) -> int:
    """`order` if it is one of 1 .. most, else ValueError."""
    if isinstance(order, bool) or order not in range(1, most + 1):
        raise ValueError(f"order must be a whole number from 1 to {most}, got {order!r}")
    return order


def data_multistep(sde: SDE, times: Tensor, order: int, eta: float = 0.0) -> list[Update]:
    """The table of the exponential multistep method in data prediction, of the reverse SDE with this eta."""
    alpha, sigma = (value.tolist() for value in sde.marginal(times))
    lambdas, t = sde.half_log_snr(times).numpy(), times.tolist()
    updates = []
    for k in range(len(t) - 1):
        start, end = float(lambdas[k]), float(lambdas[k + 1])
        known = lambdas[max(0, k + 1 - order) : k + 1][::-1]
        weights = alpha[k + 1] * data_weights(known, start, end, eta)
        decay = -(eta**2) * (end - start)
        noise = sigma[k + 1] * math.sqrt(-math.expm1(2 * decay)) if eta else 0.0
        a = sigma[k + 1] / sigma[k] * math.exp(decay)
        updates.append(Update(t=t[k], a=a, b=tuple(weights.tolist()), c=noise, s=t[k + 1]))
    return updates


def noise_multistep(sde: SDE, times: Tensor, order: int) -> list[Update]:
    """The table of the exponential multistep method in noise prediction."""
    alpha, sigma = (value.tolist() for value in sde.marginal(times))
    lambdas, t = sde.half_log_snr(times).numpy(), times.tolist()
    updates = []
    for k in range(len(t) - 1):
        known: np.ndarray = lambdas[max(0, k + 1 - order) : k + 1][::-1]
        weights = sigma[k + 1] * noise_weights(known, float(lambdas[k]), float(lambdas[k + 1]))
        view = (1 / sigma[k], -alpha[k] / sigma[k])
        updates.append(Update(t=t[k], a=alpha[k + 1] / alpha[k], b=tuple(weights.tolist()), s=t[k + 1], view=view))
    return updates


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
        return (data_multistep if self.prediction == "data" else noise_multistep)(sde, times, self.order)
