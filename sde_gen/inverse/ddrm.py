"""Denoising restoration along the operator's singular vectors."""

from __future__ import annotations

import torch
from torch import Tensor

from ..models.denoiser import Denoiser, Prediction
from .conditioned import Conditioned, Observed
from .measurement import Measurement

MOST_NUMBERS = 1 << 24
"""Of the operator's matrix, which is formed and decomposed once."""


class DDRM(Conditioned):
    """The denoised data pulled onto the measurement along each singular vector of the operator, as far as its own noise lets.

        H = U S V^T:   D' = D + V g (U^T (y - A(D))/s),   g_i = 1 where rho >= sigma_y/s_i, else sqrt(1 - eta^2) rho s_i/sigma_y

    with rho = sigma/alpha; the solver's own noise stays as it is. Never exact. Std 0 is a limit; the noise has one std. Linear operators of
    at most 2^24 numbers, and no gaps in y that the operator does not have.

    eta: how little a measurement noisier than the state pulls. Kawar et al. 2022, arXiv:2201.11793, equation 7 (eta_b = 1).
    """

    linear = True

    def __init__(self, model: Denoiser, measurement: Measurement, eta: float = 0.85) -> None:
        super().__init__(model, measurement)
        if not 0 <= eta <= 1:
            raise ValueError(f"eta must be in [0, 1], got {eta!r}")
        self.eta = float(eta)
        self._known: dict[tuple[object, ...], tuple[Tensor, Tensor, Tensor]] = {}

    def correct(self, x: Tensor, t: Tensor | float, observed: Observed, cond: dict[str, Tensor]) -> Prediction:
        u, s, vt = self._decomposed(x, observed)
        alpha, sigma = self.levels(x, t)
        found = self.model.predict(x, t, **cond)
        rest = observed.residual(found.denoised).flatten(1) @ u / s
        noise = observed.variance_of_seen.flatten(1).amax(1, keepdim=True).sqrt()
        level = (sigma / alpha).reshape(-1, 1) * s
        pull = torch.where(level >= noise, 1.0, (1 - self.eta**2) ** 0.5 * level / noise.clamp_min(torch.finfo(x.dtype).tiny))
        return Prediction(found.denoised + ((pull * rest) @ vt).reshape(x.shape), found.variance_fraction)

    def _decomposed(self, x: Tensor, observed: Observed) -> tuple[Tensor, Tensor, Tensor]:
        kept = self.measurement.operator.kept(x.shape[1:])
        whole = torch.ones_like(observed.seen[0]) if kept is None else kept.to(x.device)
        if not bool((observed.seen == whole).all()):
            raise ValueError("ddrm takes the operator's singular vectors, and y has gaps (NaN) that the operator has not: mmps takes them")
        key = (tuple(x.shape[1:]), x.dtype, x.device)
        if key not in self._known:
            size = x[0].numel() * observed.y[0].numel()
            if size > MOST_NUMBERS:
                raise ValueError(
                    f"ddrm decomposes the operator's matrix, and {size} numbers are more than {MOST_NUMBERS}: diffpir does not"
                )
            matrix = self.measurement.operator.matrix(x.shape[1:], torch.float64, x.device) * whole.flatten()[:, None]
            u, s, vt = torch.linalg.svd(matrix * observed.scale.double().flatten(), full_matrices=False)
            some = s > 1e-6 * s[0]
            self._known[key] = (u[:, some].to(x.dtype), s[some].to(x.dtype), vt[some].to(x.dtype))
        return self._known[key]
