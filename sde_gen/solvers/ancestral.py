"""Ancestral sampling: the DDPM step for every SDE."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sdes import SDE
from .base import FixedStepSolver, Update, rows

VARIANCES = ("small", "large")


class Ancestral(FixedStepSolver):
    """A draw of q(x_s | x_t, x_0) with the denoised data in the place of x_0: one call a step, weak order 1.

        x_s = r (alpha_s/alpha_t) x + (1 - r) alpha_s E[x_0 | x] + sqrt(variance) z,   r = exp(2 lambda_t - 2 lambda_s)

    variance="small": the posterior's, sigma_s^2 (1 - r); "large": the forward step's, sigma_t^2 - (alpha_t/alpha_s)^2
    sigma_s^2 (DDPM's beta_i). With VP and VE this is the DDPM and the NCSN form. Ho et al. 2020, arXiv:2006.11239,
    equations 7 and 11; Song et al. 2021, arXiv:2011.13456, appendix F.
    """

    order = 1
    weak_order = 1.0
    stochastic = True
    default_steps = 250

    def __init__(self, variance: str = "small") -> None:
        if variance not in VARIANCES:
            raise ValueError(f"unknown variance {variance!r}; choose from {', '.join(VARIANCES)}")
        self.variance = variance

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        t, s = times[:-1], times[1:]
        (alpha_t, sigma_t), (alpha_s, sigma_s) = sde.marginal(t), sde.marginal(s)
        exponent = 2 * (sde.half_log_snr(t) - sde.half_log_snr(s))
        if bool((exponent > 0).any()):
            raise ValueError("ancestral sampling runs from noise to data only: t_end must be below t_start")
        share = -torch.expm1(exponent)  # 1 - r
        # sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2 = sigma_t^2 (1 - r)
        std = (sigma_s if self.variance == "small" else sigma_t) * torch.sqrt(share)
        table = rows(t, torch.exp(exponent) * alpha_s / alpha_t, share * alpha_s, std, s)
        return [Update(t=t, a=a, b=(b,), c=c, s=s) for t, a, b, c, s in table]
