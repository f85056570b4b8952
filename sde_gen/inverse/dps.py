"""Diffusion posterior sampling."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..models.denoiser import Denoiser, Prediction
from .conditioned import Conditioned, Observed
from .measurement import Measurement


class DPS(Conditioned):
    """The gradient of the likelihood at the denoised data.

        score' = score + strength grad_x log p(y | D(x)),   D' = D + strength (sigma^2/alpha) grad_x log p(y | D(x))

    It is the noise's own likelihood, so that strength 1 is Bayes where D is all that x says of the data, for any noise and operator.
    normed: the paper's step in its place, whose likelihood is as wide as the residual of each sample is long:

        score' = score - strength grad_x |y - A(D(x))|

    Never exact: the spread of p(x_0 | x_t) is left out, which is right at t_min alone. Noise of positive std, unless normed.
    Chung et al. 2022, arXiv:2209.14687, algorithm 1.
    """

    gradient = True

    def __init__(self, model: Denoiser, measurement: Measurement, strength: float = 1.0, normed: bool = False) -> None:
        self.noisy = not normed
        super().__init__(model, measurement)
        if not math.isfinite(strength):
            raise ValueError(f"strength must be finite, got {strength!r}")
        self.strength, self.normed = float(strength), normed

    def correct(self, x: Tensor, t: Tensor | float, observed: Observed, cond: dict[str, Tensor]) -> Prediction:
        alpha, sigma = self.levels(x, t)
        outside = torch.is_grad_enabled() and x.requires_grad
        with torch.enable_grad():
            state = x if outside else x.detach().requires_grad_()
            found = self.model.predict(state, t, **cond)
            value = -observed.residual(found.denoised).flatten(1).norm(dim=1) if self.normed else observed.log_prob(found.denoised)
            if not value.requires_grad:
                raise TypeError("the likelihood of the denoised data has no gradient (detached, or computed under no_grad?)")
            gradient = torch.autograd.grad(value.sum(), state, create_graph=outside, retain_graph=outside)[0]
        denoised = found.denoised if outside else found.denoised.detach()
        fraction = found.variance_fraction if outside or found.variance_fraction is None else found.variance_fraction.detach()
        return Prediction(denoised + self.strength * sigma**2 / alpha * gradient, fraction)
