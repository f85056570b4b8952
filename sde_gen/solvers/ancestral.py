"""Ancestral sampling: the DDPM step for every SDE."""

from __future__ import annotations

import torch
from torch import Tensor

from ..discrete import VARIANCES
from ..sdes import SDE
from .base import FixedStepSolver, Update, rows


class Ancestral(FixedStepSolver):
    """A draw of q(x_s | x_t, x_0) with the denoised data in the place of x_0: one call a step, weak order 1.

        x_s = r (alpha_s/alpha_t) x + (1 - r) alpha_s E[x_0 | x] + sqrt(variance) z,   r = exp(2 lambda_t - 2 lambda_s)

    variance="fixed_small": the posterior's, sigma_s^2 (1 - r); "fixed_large": the forward step's, sigma_t^2 - (alpha_t/alpha_s)^2
    sigma_s^2 (DDPM's beta_i); "learned": large^v small^(1 - v) with the model's fraction v, of a network trained for it. With VP
    and VE this is the DDPM and the NCSN form; along the times of a `DiscreteChain`, or some of them, it is that chain. Ho et al.
    2020, arXiv:2006.11239, equations 7 and 11; Nichol and Dhariwal 2021, arXiv:2102.09672, equation 15; Song et al. 2021,
    arXiv:2011.13456, appendix F.
    """

    order = 1
    weak_order = 1.0
    stochastic = True
    reverse_sde = True
    default_steps = 250

    def __init__(self, variance: str = "fixed_small") -> None:
        if variance not in VARIANCES:
            raise ValueError(f"unknown variance {variance!r}; choose from {', '.join(VARIANCES)}")
        self.variance = variance
        self.needs_variance = variance == "learned"

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        t, s = times[:-1], times[1:]
        (alpha_t, sigma_t), (alpha_s, sigma_s) = sde.marginal(t), sde.marginal(s)
        exponent = 2 * (sde.half_log_snr(t) - sde.half_log_snr(s))
        if bool((exponent > 0).any()):
            raise ValueError("ancestral sampling runs from noise to data only: t_end must be below t_start")
        share = -torch.expm1(exponent)  # 1 - r
        # sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2 = sigma_t^2 (1 - r)
        small, large = sigma_s * torch.sqrt(share), sigma_t * torch.sqrt(share)
        std = large if self.variance == "fixed_large" else small
        table = rows(t, torch.exp(exponent) * alpha_s / alpha_t, share * alpha_s, std, large, s)
        learned = self.variance == "learned"
        return [Update(t=t, a=a, b=(b,), c=c, c_most=large if learned else None, s=s) for t, a, b, c, large, s in table]
