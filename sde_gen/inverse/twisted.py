"""Twisted particles: sequential Monte Carlo whose weights make a biased method exact."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..models.denoiser import Denoiser, Prediction
from ..models.weighed import Weighed, Weighing
from ..sampling.sample import sample
from .conditioned import Conditioned, Observed
from .measurement import MEASURED, Measurement
from .moment_matched import MomentMatched, moment_matched
from .request import Posterior, Request, repeated


class Twisted(Conditioned, Weighed):
    """K weighted particles for each sample, moved by MMPS and weighted with its own evidence as twist.

        psi(x_t) = N(y; A(D), Sigma_y + H V H^T),   V = (sigma^2/alpha) dD/dx
        w_s = w_t p(x_s | x_t) psi(x_s)/(q(x_s | x_t) psi(x_t))

    p is the model's own reverse step, q that with the prediction shifted as `MMPS` says; at the end psi is the likelihood itself where
    the noise is not Gaussian. Groups of few effective particles are resampled on their way.

    Exact as the number of particles grows, for any operator and any noise with a density, up to the solver's steps: its weighted samples
    are those of the posterior, and the mean weight is the evidence.

    iterations, tolerance: see `MMPS`.

    Wu et al. 2023, arXiv:2306.17775 (whose twist has V = sigma^2/(alpha^2 + sigma^2)); Rozet et al. 2024, arXiv:2405.13712.
    """

    gradient = True

    def __init__(self, model: Denoiser, measurement: Measurement, iterations: int = 8, tolerance: float = 1e-3) -> None:
        super().__init__(model, measurement)
        self.iterations, self.tolerance = iterations, tolerance

    def correct(self, x: Tensor, t: Tensor | float, observed: Observed, cond: dict[str, Tensor]) -> Prediction:
        return self._shifted(self._matched(x, t, observed, cond))

    def weigh(self, x: Tensor, t: float, **cond: Tensor) -> Weighing:
        observed = Observed(self, cond.pop(MEASURED), x)
        found = self._matched(x, t, observed, cond)
        assert found.log_evidence is not None
        return Weighing(self._shifted(found), twist=found.log_evidence.double(), shift=found.shift)

    def weigh_last(self, x: Tensor, t: float, **cond: Tensor) -> Weighing:
        last = self.weigh(x, t, **cond)
        if self.measurement.noise.gaussian:
            return last  # the little noise that is left is in it
        observed = Observed(self, cond[MEASURED], x)
        return replace(last, twist=observed.log_prob(last.prediction.denoised).double())

    def _matched(self, x: Tensor, t: Tensor | float, observed: Observed, cond: dict[str, Tensor]) -> MomentMatched:
        alpha, sigma = self.levels(x, t)
        return moment_matched(self.model, x, t, observed, cond, sigma**2 / alpha, self.iterations, self.tolerance, evidence=True)

    @staticmethod
    def _shifted(found: MomentMatched) -> Prediction:
        return Prediction(found.prediction.denoised + found.shift, found.prediction.variance_fraction)

    def draw(self, request: Request) -> Posterior:
        """Groups of particles until there are `count`; where a group is cut or several are, they are resampled to count equal weights."""
        size = request.count if request.particles is None else request.particles
        groups = -(-request.count // size)
        batch = len(request.y)
        out = sample(
            self,
            (batch * groups, *request.shape),
            request.solver,
            request.steps,
            particles=size,
            cond=repeated(request, groups),
            index_offset=request.index_offset * groups,
            **request.settings,
        )
        assert out.log_weights is not None and out.evidence_error is not None
        x = out.x.reshape(batch, groups * size, *request.shape)
        log_weights = out.log_weights.reshape(batch, groups * size)
        evidence = torch.logsumexp(log_weights, 1) - math.log(groups * size)
        # Each group's error, weighted with its share of the evidence.
        shares = log_weights.reshape(batch, groups, size).logsumexp(2).softmax(1)
        error = (shares * out.evidence_error.reshape(batch, groups)).square().sum(1).sqrt()
        found = Posterior(
            x=x,
            log_weights=log_weights,
            ess=1 / log_weights.softmax(1).square().sum(1),
            log_evidence=evidence,
            log_evidence_error=error,
            nfe=out.nfe.reshape(batch, groups).sum(1),
        )
        return found if groups * size == request.count else found.resampled(request.count, request.settings["seed"])
