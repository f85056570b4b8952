"""The sub-VP SDE."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .base import as_time
from .vp import LinearBeta


class SubVPSDE(LinearBeta):
    """The sub-VP SDE, whose variance stays below the VP one's.

        alpha as VP,  sigma = 1 - alpha^2,  g^2 = beta (1 - alpha^4)

    Arguments and errors as `VPSDE`. Song et al. 2021, arXiv:2011.13456, equation 12.
    """

    @classmethod
    def log_alpha_at(cls, half_log_snr: float) -> float:
        return -math.asinh(0.5 * math.exp(-half_log_snr))

    def marginal(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        log_alpha = self.log_alpha(t)
        return torch.exp(log_alpha), -torch.expm1(2.0 * log_alpha)

    def half_log_snr(self, t: Tensor | float) -> Tensor:
        log_alpha = self.log_alpha(t)
        return log_alpha - torch.log(-torch.expm1(2.0 * log_alpha))

    def time_of(self, lambda_: Tensor | float) -> Tensor:
        # exp(-lambda) = 1/alpha - alpha = 2 sinh(-log alpha).
        return self._time_of_log_alpha(-torch.asinh(0.5 * torch.exp(-as_time(lambda_))))

    def diffusion(self, t: Tensor | float) -> Tensor:
        return torch.sqrt(-self.beta(t) * torch.expm1(4.0 * self.log_alpha(t)))

    def slopes(self, t: Tensor | float) -> tuple[Tensor, Tensor]:
        f = self.f(t)
        return f, f / torch.tanh(-self.log_alpha(t))
