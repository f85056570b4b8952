"""Twisted particles: sequential Monte Carlo whose weights make a biased method exact."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
from torch import Tensor

from ..models.denoiser import Denoiser, Prediction
from ..models.weighed import Weighed, Weighing
from ..sampling.sample import sample
from ..solvers.particles import evidence_error
from .average import MOST_NUMBERS, PILOT, AverageCovariance, averaged, measured_average, tilted
from .conditioned import Conditioned, Observed
from .measurement import MEASURED, Measurement
from .moment_matched import FAR, MomentMatched, moment_matched
from .request import Posterior, Request, repeated
from .towards import Towards

DIFFERENTIATED = 8
"""Measured entries up to which V is the network's own Jacobian, one vector-Jacobian product for each; above it is the model's average
covariance, which is as good for images, and costs one product's time whatever is measured."""
PLANNED = 2048
"""Measured entries above which that covariance is not decomposed, and V is looked at along some directions."""
FEW_LEFT, MANY_LEFT = 0.3, 0.5
"""Shares of effective particles below which groups are resampled, with the Jacobian and with the average covariance."""
LATE = 1.25
"""sigma/alpha in units of the data's largest standard deviation below which states are tilted."""


class Twisted(Conditioned, Weighed):
    """K weighted particles for each sample, moved towards the measurement and weighted with its evidence as twist.

        psi(x_t) = N(y; A(D), Sigma_y + H V H^T)
        w_s = w_t p(x_s | x_t) psi(x_s)/(q(x_s | x_t) psi(x_t))

    p is the solver's own step, q that tilted by psi (see `Towards`), V stands for Cov[x_0 | x_t]: up to 8 measured entries it is the
    network's own Jacobian, (sigma^2/alpha) dD/dx, which tells modes apart; above, the model's average covariance. An operator that is not
    linear is linearised, at D with the Jacobian, and else where y has its most likely data (see `averaged`). At the end psi is the
    likelihood itself where the noise is not Gaussian. Groups of few effective particles are resampled on their way.

    Exact as the number of particles grows, for any operator, any noise with a density and any V: its weighted samples are those of the
    law that the solver draws from by its steps, given y, and the mean weight is the evidence.

    directions: along which V is looked at where neither holds: more than 2,048 measured entries, or a model without moments and more than
        48, as `MMPS` does it.
    resample_below: the share of effective particles below which a group is resampled; None: .3 with the Jacobian, as a twist that errs
        prunes what would have counted, and errs most while the data's modes part; else .5.

    Wu et al. 2023, arXiv:2306.17775 (whose twist has V = sigma^2/(alpha^2 + sigma^2)); Rozet et al. 2024, arXiv:2405.13712.
    """

    gradient = True

    def __init__(self, model: Denoiser, measurement: Measurement, directions: int = 8, resample_below: float | None = None) -> None:
        super().__init__(model, measurement)
        self.directions = directions
        if resample_below is not None and not 0 <= resample_below <= 1:
            raise ValueError(f"resample_below must be in [0, 1], got {resample_below!r}")
        self.asked = resample_below
        self.resample_below = FEW_LEFT if resample_below is None else resample_below
        moments = model.moments
        self.average = None if moments is None else AverageCovariance(moments)
        self.widest = math.inf if moments is None else float(moments.along.max())
        self.tilt_from = math.inf
        if moments is not None and self.widest > 0:
            self.resample_from = -math.log(FAR[0] * math.sqrt(self.widest))

    def correct(self, x: Tensor, t: Tensor | float, observed: Observed, cond: dict[str, Tensor]) -> Prediction:
        found = self._differentiated(x, t, observed, cond) if isinstance(t, Tensor) else self._matched(x, t, observed, cond)
        return Prediction(found.prediction.denoised + found.shift, found.prediction.variance_fraction)

    def cost_at(self, t: float) -> int:
        return self.model.cost_at(t) * (2 if float(self.sde.half_log_snr(t)) >= self.tilt_from else 1)

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

    def _matched(self, x: Tensor, t: float, observed: Observed, cond: dict[str, Tensor]) -> MomentMatched:
        level = float(self.sde.half_log_snr(float(t)))
        # From where on mmps goes over from a network's Jacobian to the data's own moments; weights make up for a step in V.
        wanted = not self._few(observed.entries) or level < self.resample_from
        if self.average is None or not wanted or not self._decomposes(observed.entries):
            return self._differentiated(x, t, observed, cond)
        alpha, sigma = (float(value) for value in self.sde.marginal(torch.tensor(float(t), dtype=torch.float64)))
        found = averaged(self.model.predict(x, t, **cond), observed, self.average, alpha, sigma)
        return found if level < self.tilt_from else tilted(self.model, x, t, cond, found, observed, self.average, alpha, sigma)

    def _few(self, entries: int) -> bool:
        return entries <= DIFFERENTIATED

    def _decomposes(self, entries: int) -> bool:
        return entries <= PLANNED

    def _differentiated(self, x: Tensor, t: Tensor | float, observed: Observed, cond: dict[str, Tensor]) -> MomentMatched:
        alpha, sigma = self.levels(x, t)
        found = moment_matched(self.model, x, t, observed, cond, sigma**2 / alpha, self.directions, evidence=True)
        # A Jacobian that is not symmetric gives columns of any length to directions of small variance.
        length = found.columns.flatten(2).square().sum(2)
        held = torch.sqrt(self.widest / length.clamp_min(torch.finfo(x.dtype).tiny)).clamp_max(1)
        return replace(found, columns=found.columns * held.reshape(*held.shape, *[1] * (x.ndim - 1)))

    def _run_of(self, request: Request) -> tuple[Twisted, int]:
        """The same method for this run, with what its weights need to know of the model, and the network calls that this took."""
        kept = self.measurement.operator.kept(request.shape)
        entries = request.y[0].numel() if kept is None else int(kept.sum())
        moments = self.model.moments
        if moments is None or self._few(entries) or not self._decomposes(entries):
            return self, 0
        twin = Twisted(self.model, self.measurement, self.directions, MANY_LEFT if self.asked is None else self.asked)
        twin.tilt_from = self.resample_from + math.log(FAR[0] / LATE)
        # What conditions leave open of the data, their moments do not tell, and draws without conditions would tell no better.
        if request.cond or PILOT * (request.steps or 100) * math.prod(request.shape) > MOST_NUMBERS:
            return twin, 0
        twin.average, calls = measured_average(self.model, moments, request)
        return twin, calls

    def draw(self, request: Request) -> Posterior:
        """Groups of particles until there are `count`; where a group is cut or several are, they are resampled to count equal weights."""
        size = request.count if request.particles is None else request.particles
        groups = -(-request.count // size)
        batch = len(request.y)
        run, before = self._run_of(request)
        out = sample(
            run,
            (batch * groups, *request.shape),
            request.solver,
            request.steps,
            particles=size,
            cond=repeated(request, groups),
            index_offset=request.index_offset * groups,
            **request.settings,
        )
        assert out.log_weights is not None and out.lineages is not None
        x = out.x.reshape(batch, groups * size, *request.shape)
        log_weights = out.log_weights.reshape(batch, groups * size)
        evidence = torch.logsumexp(log_weights, 1) - math.log(groups * size)
        # Of all groups together, each with its share of the evidence.
        shares = log_weights.reshape(batch, groups, size).logsumexp(2).softmax(1)
        lineages = 1 / (shares.square() / out.lineages.reshape(batch, groups)).sum(1)
        found = Posterior(
            x=x,
            log_weights=log_weights,
            ess=1 / log_weights.softmax(1).square().sum(1),
            log_evidence=evidence,
            log_evidence_error=evidence_error(lineages, groups * size),
            nfe=out.nfe.reshape(batch, groups).sum(1) + -(-before // batch),
            lineages=lineages,
        )
        return found if groups * size == request.count else found.resampled(request.count, request.settings["seed"])
