"""Plug-and-play restoration by a diffusion model."""

from __future__ import annotations

from torch import Tensor

from ..models.denoiser import Denoiser, Prediction
from ..sdes.base import check_positive
from .conditioned import Conditioned, Observed
from .measurement import Measurement


class DiffPIR(Conditioned):
    """The proximal step of the likelihood at the denoised data, without a derivative of the network.

        D' = argmin_z |y - A(z)|^2/(2 sigma_y^2) + strength |z - D|^2/(2 rho^2),   rho = sigma/alpha
           = D + r^2 H^T (Sigma_y + r^2 H H^T)^-1 (y - A(D)),   r^2 = rho^2/strength

    Never exact: V = rho^2 I is the covariance of p(x_0 | x_t) for a flat prior alone. Std 0 is a limit. Linear operators.
    strength: the paper's lambda. Zhu et al. 2023, arXiv:2305.08995, equation 13.
    """

    linear = True

    def __init__(self, model: Denoiser, measurement: Measurement, strength: float = 1.0) -> None:
        super().__init__(model, measurement)
        self.strength = check_positive("strength", strength)

    def correct(self, x: Tensor, t: Tensor | float, observed: Observed, cond: dict[str, Tensor]) -> Prediction:
        alpha, sigma = self.levels(x, t)
        found = self.model.predict(x, t, **cond)
        spread = (sigma / alpha) ** 2 / self.strength
        return Prediction(found.denoised + observed.pulled(found.denoised, spread), found.variance_fraction)
