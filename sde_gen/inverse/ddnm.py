"""The null-space model."""

from __future__ import annotations

from torch import Tensor

from ..models.denoiser import Prediction
from .conditioned import Conditioned, Observed


class DDNM(Conditioned):
    """The measured part of the denoised data is the measurement's.

        D' = D + w H^+ (y - A(D)),   w = min(1, rho h/sigma_y),  rho = sigma/alpha,  h^2 the mean of H H^T's eigenvalues

    w, below 1 once the noise of the state is less than that of the measurement, is the scaling of DDNM+; the solver's own noise stays as
    it is.

    Never exact: what is not measured learns of y from later states alone. Std 0 is the case that it was made for. Linear operators.
    Wang et al. 2022, arXiv:2212.00490, equations 17 and 19.
    """

    linear = True

    def correct(self, x: Tensor, t: Tensor | float, observed: Observed, cond: dict[str, Tensor]) -> Prediction:
        alpha, sigma = self.levels(x, t)
        found = self.model.predict(x, t, **cond)
        rest = observed.residual(found.denoised)
        if not observed.absent:
            level = (sigma / alpha).reshape(-1, *[1] * (rest.ndim - 1))
            rest = rest * (level * observed.mean_gain() / observed.variance.sqrt()).clamp_max(1.0)
        return Prediction(found.denoised + observed.adjoint(observed.solve(rest, 1.0, noise=0.0)), found.variance_fraction)
