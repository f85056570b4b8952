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


class Towards:
    """The reverse step towards a measurement, with the covariance that p(x_0 | x_t) gives it along the measured directions.

        p(x_s | x_t) = N(a x + b D, c^2 I + b^2 G^T G),   q = N(a x + b (D + shift), c^2 I + b^2 G^T (I + mu)^-1 G)

    where x_s given x_t and x_0 is N(a x + b x_0, c^2 I), and N(D, V) stands for p(x_0 | x_t): V = G^T G along what is measured, and what
    a network says nothing of is left out. For Gaussian data both are exact there, and the weights are all alike.
    """

    def __init__(self, columns: Tensor, aim: Tensor, narrowed: Tensor) -> None:
        self.columns, self.aim, self.narrowed = columns, aim, narrowed

    @classmethod
    def of(cls, found: MomentMatched) -> Towards:
        total = found.noise + found.mu
        return cls(found.columns.flatten(2), found.mu.sqrt() / total * found.rest, (found.noise / total).sqrt())

    def taken(self, order: Tensor) -> Towards:
        return Towards(self.columns[order], self.aim[order], self.narrowed[order])

    def move(self, b: float, c: float, z: Tensor, bend: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to a x + b D + bend + c z for it to be a draw of q, of z's shape, and log p/q of that draw, (B,).

        A multistep solver's bend stands for the same covariance, and stays where nothing is measured.
        """
        g, flat, ratio = self.columns, z.flatten(1), b / c
        narrow = g * self.narrowed[..., None]
        values, vectors = torch.linalg.eigh(narrow @ narrow.mT)
        values = values.clamp_min(0)
        # The root of I + ratio^2 narrow^T narrow, less I, on z.
        root = ratio**2 / (1 + torch.sqrt(1 + ratio**2 * values))
        along = ((narrow @ flat[..., None])[..., 0][:, None] @ vectors)[:, 0]
        widened = (((root * along)[:, None] @ vectors.mT) @ narrow)[:, 0]
        extra = ratio * (self.aim[:, None] @ g)[:, 0] + widened
        wide = flat + extra
        # By eigenvectors, for columns that are nearly parallel leave no Cholesky factor in float32.
        wide_values, wide_vectors = torch.linalg.eigh(g @ g.mT)
        wide_values = wide_values.clamp_min(0)
        seen = ((g @ wide[..., None])[..., 0][:, None] @ wide_vectors)[:, 0] / torch.sqrt(wide_values + 1 / ratio**2)
        quadratic = (extra * (wide + flat)).double().sum(1) - seen.double().square().sum(1)
        gained = 0.5 * ((torch.log1p(ratio**2 * values) - torch.log1p(ratio**2 * wide_values)).double().sum(1) - quadratic)
        # The bend, off the columns' span.
        inside = ((g @ bend.flatten(1)[..., None])[..., 0][:, None] @ wide_vectors)[:, 0]
        real = wide_values > 1e-6 * wide_values[:, -1:]
        inside = torch.where(real, inside / torch.where(real, wide_values, 1), 0)
        measured = ((inside[:, None] @ wide_vectors.mT) @ g)[:, 0]
        return (c * extra - measured).reshape(z.shape), gained


class Twisted(Conditioned, Weighed):
    """K weighted particles for each sample, moved by MMPS and weighted with its own evidence as twist.

        psi(x_t) = N(y; A(D), Sigma_y + H V H^T),   V = (sigma^2/alpha) dD/dx
        w_s = w_t p(x_s | x_t) psi(x_s)/(q(x_s | x_t) psi(x_t))

    p is the model's own reverse step, q that with the prediction shifted as `MMPS` says; at the end psi is the likelihood itself where
    the noise is not Gaussian. Groups of few effective particles are resampled on their way.

    Exact as the number of particles grows, for any operator and any noise with a density, up to the solver's steps: its weighted samples
    are those of the posterior, and the mean weight is the evidence.

    directions: see `MMPS`.
    resample_below: the share of effective particles below which a group is resampled. A twist that errs prunes what would have counted, and
        errs most while the data's modes part.

    Wu et al. 2023, arXiv:2306.17775 (whose twist has V = sigma^2/(alpha^2 + sigma^2)); Rozet et al. 2024, arXiv:2405.13712.
    """

    gradient = True

    def __init__(self, model: Denoiser, measurement: Measurement, directions: int = 8, resample_below: float = 0.3) -> None:
        super().__init__(model, measurement)
        self.directions = directions
        if not 0 <= resample_below <= 1:
            raise ValueError(f"resample_below must be in [0, 1], got {resample_below!r}")
        self.resample_below = resample_below

    def correct(self, x: Tensor, t: Tensor | float, observed: Observed, cond: dict[str, Tensor]) -> Prediction:
        return self._shifted(self._matched(x, t, observed, cond))

    def weigh(self, x: Tensor, t: float, **cond: Tensor) -> Weighing:
        observed = self.observed(x, t, cond.pop(MEASURED))
        found = self._matched(x, t, observed, cond)
        return Weighing(found.prediction, twist=found.log_evidence, proposal=Towards.of(found))

    def weigh_last(self, x: Tensor, t: float, **cond: Tensor) -> Weighing:
        last = self.weigh(x, t, **cond)
        if self.measurement.noise.gaussian:
            return last  # the little noise that is left is in it
        observed = Observed(self, cond[MEASURED], x)
        return replace(last, twist=observed.log_prob(last.prediction.denoised).double())

    def _matched(self, x: Tensor, t: Tensor | float, observed: Observed, cond: dict[str, Tensor]) -> MomentMatched:
        alpha, sigma = self.levels(x, t)
        return moment_matched(self.model, x, t, observed, cond, sigma**2 / alpha, self.directions, evidence=True)

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
