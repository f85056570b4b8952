"""Tweedie moment projected diffusion."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.denoiser import Prediction
from .conditioned import Conditioned, Observed
from .differentiated import differentiated


class TMPD(Conditioned):
    """Moment matching with the covariance of A(x_0) taken for diagonal, of the row sums of H V H^T.

        D' = D + V H^T (y - A(D))/(sigma_y^2 + H V H^T 1),   V = (sigma^2/alpha) dD/dx

    Exact when the data are Gaussian and H V H^T is diagonal: independent entries, of which some are measured. Noise of positive std,
    as row sums may vanish. Two vector-Jacobian products. Linear operators. Boys et al. 2023, arXiv:2310.06721, section 3.2.
    """

    linear = True
    noisy = True
    gradient = True

    def correct(self, x: Tensor, t: Tensor | float, observed: Observed, cond: dict[str, Tensor]) -> Prediction:
        alpha, sigma = self.levels(x, t)
        gain = sigma**2 / alpha
        with differentiated(self.model, x, t, cond) as (found, back):
            ones = observed.seen.to(x.dtype)
            sums = observed.forward(gain * back(observed.adjoint(ones))).clamp_min(0)
            weights = torch.where(observed.seen, observed.residual(found.denoised) / (observed.variance + sums).clamp_min(1e-30), 0)
            weights = torch.where(observed.variance_of_seen + sums > 0, weights, 0)
            return Prediction(found.denoised + gain * back(observed.adjoint(weights)), found.variance_fraction)
