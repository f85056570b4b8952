"""Moment-matching posterior sampling."""

from __future__ import annotations

from torch import Tensor

from ..models.denoiser import Denoiser, Prediction
from .conditioned import Conditioned, Observed
from .measurement import Measurement
from .moment_matched import moment_matched


class MMPS(Conditioned):
    """p(x_0 | x_t) taken for the Gaussian of its own mean and covariance, which the network's Jacobian holds.

        D' = D + V H^T (Sigma_y + H V H^T)^-1 (y - A(D)),   V = Cov[x_0 | x_t] = (sigma^2/alpha) dD/dx

    Exact when the data are Gaussian, the operator linear and the solve converged: mean and covariance of the posterior. Elsewhere the
    derivative of V is neglected, and a nonlinear operator is linearised at D.

    iterations, tolerance: of conjugate gradients, above 48 measured entries; each takes a vector-Jacobian product. Below, the system is
        formed and solved.

    Noise that is not Gaussian is taken for Gaussian; std 0 is a limit. Rozet et al. 2024, arXiv:2405.13712.
    """

    gradient = True

    def __init__(self, model: Denoiser, measurement: Measurement, iterations: int = 8, tolerance: float = 1e-3) -> None:
        super().__init__(model, measurement)
        self.iterations, self.tolerance = iterations, tolerance

    def correct(self, x: Tensor, t: Tensor | float, observed: Observed, cond: dict[str, Tensor]) -> Prediction:
        alpha, sigma = self.levels(x, t)
        found = moment_matched(self.model, x, t, observed, cond, sigma**2 / alpha, self.iterations, self.tolerance)
        return Prediction(found.prediction.denoised + found.shift, found.prediction.variance_fraction)
