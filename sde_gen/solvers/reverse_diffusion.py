"""The reverse diffusion predictor."""

from __future__ import annotations

import torch
from torch import Tensor

from ..sdes import SDE
from .base import FixedStepSolver, Update, rows


class ReverseDiffusion(FixedStepSolver):
    """The discretisation of the forward process, reversed: one call a step, weak order 1.

        x_s = (2 - r) x + G^2 score(x, t) + G z,   r = alpha_t/alpha_s,  G^2 = sigma_t^2 - r^2 sigma_s^2

    where x_t = r x_s + G z is the exact forward step. Song et al. 2021, arXiv:2011.13456, appendix E.
    """

    order = 1
    weak_order = 1.0
    stochastic = True
    reverse_sde = True
    default_steps = 250

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        t, s = times[:-1], times[1:]
        (alpha_t, sigma_t), (alpha_s, _) = sde.marginal(t), sde.marginal(s)
        r = alpha_t / alpha_s
        # G^2/sigma_t^2 = 1 - SNR_t/SNR_s, which does not cancel in this form
        share = -torch.expm1(2 * (sde.half_log_snr(t) - sde.half_log_snr(s)))
        table = rows(t, 2 - r - share, share * alpha_t, sigma_t * torch.sqrt(share), s)
        return [Update(t=t, a=a, b=(b,), c=c, s=s) for t, a, b, c, s in table]
