"""Gibbs sweeps at a small noise level: exact moves within the posterior."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..models.denoiser import Denoiser, Prediction
from ..randomness import NoiseStream
from ..sampling.sample import sample
from .conditioned import Conditioned, Observed
from .measurement import MEASURED, Measurement
from .noise import Gaussian
from .request import Posterior, Request, repeated
from .twisted import Twisted

SHARE = 0.5
"""Of the largest rho for which a sweep is exact."""
_OF_SWEEPS = 0x61BB5
POWERS, TERMS = 60, 24


class Gibbs(Conditioned):
    """Samples of "twisted" moved by `sweeps` Gibbs sweeps that leave the posterior as it is, each with two exact steps:

        z | x, y ~ N(x + rho^2 H^T Sigma_y^-1 (y - A(x)), rho^2 (I - rho^2 H^T Sigma_y^-1 H))
        x | z    the model's own reverse SDE from the state alpha z at the time where sigma/alpha = rho

    since z = x + rho eps carries as much of the measurement's noise as rho says: y | z ~ N(A(z), Sigma_y - rho^2 H H^T).

    Exact for rho <= sigma_y/s_max(H), up to the solver's steps; rho is half of that. It mends what is wrong within a mode, and moves no
    sample from one mode to another. ValueError where rho lies below the model's least noise. Linear operators, Gaussian noise of positive
    std.

    sweeps, inner: their number, and the solver's steps in each.
    start: the method whose samples are polished, a class such as Twisted or another function of model and measurement.

    Coeurdoux et al. 2023, arXiv:2304.11134; Xu and Chi 2024, arXiv:2405.18782 (plug-and-play, with z for the data).
    """

    linear = True
    noisy = True

    def __init__(
        self,
        model: Denoiser,
        measurement: Measurement,
        sweeps: int = 20,
        inner: int = 10,
        start: Callable[..., Conditioned] = Twisted,
    ) -> None:
        super().__init__(model, measurement)
        if not isinstance(measurement.noise, Gaussian):
            raise ValueError(f"gibbs needs Gaussian noise, got {type(measurement.noise).__name__}")
        self.sweeps, self.inner, self.start = sweeps, inner, start(model, measurement)
        self.differentiates = self.start.differentiates

    def correct(self, x: Tensor, t: Tensor | float, observed: Observed, cond: dict[str, Tensor]) -> Prediction:
        return self.start.correct(x, t, observed, cond)

    def draw(self, request: Request) -> Posterior:
        found = self.start.draw(request)
        batch, count = len(request.y), request.count
        x = found.x.flatten(0, 1)
        z = self.model.normalizer.encode(x) if self.model.normalizer is not None else x
        cond = repeated(request, count)
        observed = Observed(self, cond.pop(MEASURED), z)
        rho = SHARE / self._largest(request, z)
        lowest = float(torch.exp(-self.sde.half_log_snr(self.sde.t_min)))
        if rho < lowest:
            raise ValueError(f"the noise is too small for gibbs: rho = {rho:.3g} lies below the model's least noise, {lowest:.3g}")
        t = float(self.sde.time_of(-torch.log(torch.tensor(rho, dtype=torch.float64))))
        alpha = float(self.sde.marginal(torch.tensor(t, dtype=torch.float64))[0])
        seed = request.settings["seed"] ^ _OF_SWEEPS
        noise = NoiseStream(seed, request.index_offset * count, batch * count, request.shape, z.dtype, z.device)
        settings = {**request.settings, "progress": False, "grid": None}
        nfe = found.nfe
        for sweep in range(self.sweeps):
            pull = observed.adjoint(observed.residual(z) / observed.variance)
            z = z + rho**2 * pull + rho * narrowed(observed, rho, noise.draw())
            settings["seed"] = (seed + 1 + sweep) % (1 << 63)
            out = sample(
                self.model,
                tuple(z.shape),
                request.solver,
                self.inner,
                x_init=alpha * z,
                t_start=t,
                cond=cond or None,
                index_offset=request.index_offset * count,
                **settings,
            )
            z = self.model.normalizer.encode(out.x) if self.model.normalizer is not None else out.x
            nfe = nfe + out.nfe.reshape(batch, count).sum(1)
        return replace(found, x=out.x.reshape(found.x.shape) if self.sweeps else found.x, nfe=nfe)

    def _largest(self, request: Request, z: Tensor) -> float:
        """The largest singular value of Sigma_y^(-1/2) H, without the gaps of y, which lessen it."""
        whole = Observed(self, torch.zeros_like(request.y[:1]), z[:1].double())
        generator = torch.Generator().manual_seed(0)
        v = torch.randn(z[:1].shape, generator=generator, dtype=torch.float64).to(z.device)
        value = 1.0
        for _ in range(POWERS):
            v = v / v.norm()
            v = whole.adjoint(whole.forward(v) / whole.variance)
            value = float(v.norm()) ** 0.5
        return value


def narrowed(observed: Observed, rho: float, z: Tensor) -> Tensor:
    """(I - rho^2 H^T Sigma_y^-1 H)^(1/2) z by the binomial series, which goes like (rho s_max)^2 to the power of its terms."""
    total, term, factor = z, z, 1.0
    for k in range(1, TERMS + 1):
        term = rho**2 * observed.adjoint(observed.forward(term) / observed.variance)
        factor *= (k - 1.5) / k
        total = total + factor * term
    return total
