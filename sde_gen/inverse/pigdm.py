"""Pseudo-inverse guidance."""

from __future__ import annotations

from torch import Tensor

from ..models.denoiser import Prediction
from .conditioned import Conditioned, Observed
from .differentiated import differentiated


class PiGDM(Conditioned):
    """p(x_0 | x_t) taken for N(D, r^2 I), as a normal prior of the data's standard deviation s has it.

        D' = D + (sigma^2/alpha) (dD/dx)^T H^T (Sigma_y + r^2 H H^T)^-1 (y - A(D)),
        r^2 = s^2 sigma^2/(s^2 alpha^2 + sigma^2)

    s is the model's data_std, or 1.
    Exact when the normalised data are N(0, s^2 I) and the operator is linear. Std 0 is a limit. Linear operators.
    Song et al. 2023, openreview.net/forum?id=9_gsMA8MRKQ, equation 8 (without its adaptive weight).
    """

    linear = True
    gradient = True

    def correct(self, x: Tensor, t: Tensor | float, observed: Observed, cond: dict[str, Tensor]) -> Prediction:
        alpha, sigma = self.levels(x, t)
        square = (self.data_std or 1.0) ** 2
        spread = square * sigma**2 / (square * alpha**2 + sigma**2)
        with differentiated(self.model, x, t, cond) as (found, back):
            rest = observed.residual(found.denoised)
            pull = observed.adjoint(observed.solve(rest, spread))
            return Prediction(found.denoised + sigma**2 / alpha * back(pull), found.variance_fraction)
