"""Denoising diffusion implicit sampling."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..sdes import SDE
from .base import FixedStepSolver, Update, rows


class DDIM(FixedStepSolver):
    """x_s = alpha_s E[x_0|x] + sqrt(sigma_s^2 - c^2) noise + c z,  c = eta sigma_s sqrt(1 - exp(2 lambda_t - 2 lambda_s)).

    eta = 0 is deterministic, the exponential Euler step of the flow, in both directions; eta = 1 is ancestral sampling. One
    call a step, order 1. Song et al. 2020, arXiv:2010.02502, equations 12 and 16.
    """

    order = 1
    default_steps = 50

    def __init__(self, eta: float = 0.0) -> None:
        if not (math.isfinite(eta) and 0 <= eta <= 1):
            raise ValueError(f"eta must be in [0, 1], got {eta!r}")
        self.eta = float(eta)
        self.stochastic = eta > 0
        self.weak_order = 1.0 if eta > 0 else None

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        t, s = times[:-1], times[1:]
        (alpha_t, sigma_t), (alpha_s, sigma_s) = sde.marginal(t), sde.marginal(s)
        c = torch.zeros_like(t)
        if self.stochastic:
            c = self.eta * sigma_s * torch.sqrt(-torch.expm1(2 * (sde.half_log_snr(t) - sde.half_log_snr(s))))
        a = torch.sqrt(sigma_s**2 - c**2) / sigma_t
        return [Update(t=t, a=a, b=(b,), c=c, s=s) for t, a, b, c, s in rows(t, a, alpha_s - a * alpha_t, c, s)]
