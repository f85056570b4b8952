"""What data are on average given a state: a covariance that is the same for all states of one noise level."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..models.denoiser import Denoiser, Prediction
from ..models.moments import Moments
from ..sampling.sample import sample
from ..shapes import expand_as
from .conditioned import Observed
from .decomposed import Level, decomposed
from .moment_matched import MomentMatched
from .request import Request
from .tangents import most_likely, patterns_of, rows

PILOT, MOST_NUMBERS = 128, 1 << 26
"""Draws of the model on which its errors are measured, and the most numbers that their predictions may hold."""
LEAST, MOST = 0.02, 2.0
"""Between which the share of what Gaussian data would leave open is held."""
TILT = 0.5
"""A tilted state lies within this share of the noise's own length of the state."""
_OF_PILOT = 0xA7E2A6E
"""Told from the seed of the samples' noise."""


@dataclass(frozen=True)
class AverageCovariance:
    """E Cov[x_0 | x_t] along the principal axes of a model's data.

    moments: of the model's data, in normalised units, whose axes they are. Of Gaussian data they tell all:
        v sigma^2/(alpha^2 v + sigma^2) along an axis of variance v.
    levels, shares: (n,) rising half log-SNRs and (n, axes), how much of that is left there; between them it is interpolated. None: all.
    """

    moments: Moments
    levels: Tensor | None = None
    shares: Tensor | None = None

    def at(self, alpha: float, sigma: float) -> Tensor:
        """The variances along the axes that the moments know."""
        variances = self.moments.along
        known = variances * sigma**2 / (alpha**2 * variances + sigma**2)
        if self.levels is None or self.shares is None:
            return known
        level = math.log(alpha / sigma)
        k = min(max(int(torch.searchsorted(self.levels, level)), 1), len(self.levels) - 1)
        low, high = float(self.levels[k - 1]), float(self.levels[k])
        part = min(max((level - low) / (high - low), 0.0), 1.0)
        return known * ((1 - part) * self.shares[k - 1] + part * self.shares[k])


def measured_average(model: Denoiser, moments: Moments, request: Request) -> tuple[AverageCovariance, int]:
    """The average covariance as `PILOT` draws of the model tell it, by the request's solver and times, and their network calls.

    It is the mean square of x_0 - E[x_0 | x_t], each draw with the predictions on its own way.
    """
    settings = request.settings | {"seed": request.settings["seed"] ^ _OF_PILOT, "batch_size": None, "progress": False}
    out = sample(model, (PILOT, *request.shape), request.solver, request.steps, trajectory="denoised", **settings)
    assert out.trajectory is not None and out.times is not None
    starts = torch.cat((torch.tensor([model.sde.t_max], dtype=torch.float64), out.times[:-1]))  # a frame is of where its step began
    device, plain = moments.mean.device, AverageCovariance(moments)
    alpha, sigma = (value.tolist() for value in model.sde.marginal(starts))
    shares = []
    for frame, a, s in zip(out.trajectory, alpha, sigma, strict=True):
        ends = (out.x, frame.to(out.x.device))
        x_0, denoised = ends if model.normalizer is None else (model.normalizer.encode(end) for end in ends)
        shares.append(moments.squares((x_0 - denoised).to(device)) / plain.at(a, s).clamp_min(1e-12))
    levels = model.sde.half_log_snr(starts).cpu()
    return AverageCovariance(moments, levels, torch.stack(shares).clamp(LEAST, MOST)), int(out.nfe.sum())


def averaged(found: Prediction, observed: Observed, average: AverageCovariance, alpha: float, sigma: float) -> MomentMatched:
    """`MomentMatched` with the average covariance for V: no derivative of the network.

    Columns are shared by all states, (1, k, *), or by blocks of those that have the same gaps and noise. Of an operator that is not linear
    the states of one measurement share them: H is its derivative at one point, see `tangents`, and `rest` are the coordinates of a linear
    measurement that agrees with this one at each state's own most likely data.
    """
    columns, mu, vectors, log_scale, _ = _level(observed, average, alpha, sigma)
    patterns = patterns_of(observed)
    noise = 0.0 if observed.absent else 1.0
    columns, vectors = patterns.of_states(columns), patterns.of_states(vectors)
    mu = mu if len(mu) == 1 else mu[patterns.pattern]
    rest = _rest(found.denoised, observed, vectors)
    if not observed.linear:
        rest = most_likely(rest, lambda c: _rest(found.denoised + _back(c, columns), observed, vectors), mu, noise)
    return MomentMatched(found, _back(mu.sqrt() / (noise + mu) * rest, columns), columns, mu, rest, noise, log_scale[patterns.pattern])


def tilted(
    model: Denoiser,
    x: Tensor,
    t: float,
    cond: dict[str, Tensor],
    found: MomentMatched,
    observed: Observed,
    average: AverageCovariance,
    alpha: float,
    sigma: float,
) -> MomentMatched:
    """`found`, as `averaged` gave it, with what the model predicts where the state is moved towards the measurement, by one more call.

    The state x + (sigma^2/alpha) H^T theta says of the data what x says times exp(theta . u), of u = H x_0, exactly and whatever the data
    are. With u_0 and u_theta their means before and after,

        log p(y | x) = theta . ((u_0 + u_theta)/2 - y + Sigma_y theta/2) + log N(y - Sigma_y theta; u_theta, Sigma_y + H V H^T)

    for Gaussian data and any theta, and nearly so where u_theta is linear in theta and the tilted data are Gaussian near y. Here theta is
    mu/(noise + mu) of what brings u_theta to y by the covariance of `found`, and less where the state would move far from the model's own.
    """
    _, _, vectors, _, across = _level(observed, average, alpha, sigma)
    patterns = patterns_of(observed)
    vectors = patterns.of_states(vectors)
    total = found.noise + found.mu
    theta = found.mu * found.rest / total**2
    if across is None:
        of_y = torch.zeros_like(observed.y.flatten(1)).to(x.dtype)
        of_y[:, patterns.places] = rows(vectors, theta) * patterns.weights[patterns.pattern].to(x.dtype)
        push = observed.adjoint(of_y.reshape(observed.y.shape))
    else:
        across = patterns.of_states(across)
        push = rows(across.mT, theta).reshape(x.shape)
    push = sigma**2 / alpha * push
    length = push.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    held = (TILT * sigma * math.sqrt(x[0].numel()) / length).clamp_max(1)
    theta, push = held[:, None] * theta, expand_as(held, x) * push
    denoised = model.predict(x + push, t, **cond).denoised
    lead = denoised - found.prediction.denoised
    rest = _rest(denoised, observed, vectors) if across is None else found.rest - rows(across, lead.flatten(1))
    gained = (theta * (found.noise * theta - found.rest - rest)).double().sum(1)
    rest = rest - found.noise * theta
    shift = lead + _back(found.mu.sqrt() / total * rest, found.columns)
    return replace(found, shift=shift, rest=rest, lead=lead, log_scale=found.log_scale + 0.5 * gained)


def _rest(denoised: Tensor, observed: Observed, vectors: Tensor) -> Tensor:
    """The coordinates (B, k) of y - A(D) in units of the noise."""
    patterns = patterns_of(observed)
    white = observed.residual(denoised).flatten(1)[:, patterns.places] * patterns.weights[patterns.pattern].to(denoised.dtype)
    return rows(vectors.mT, white)


def _back(coordinates: Tensor, columns: Tensor) -> Tensor:
    """The sum of columns (B, k, *data shape), or shared ones, by their coordinates (B, k)."""
    return rows(columns.flatten(2).mT, coordinates).reshape(len(coordinates), *columns.shape[2:])


def _level(observed: Observed, average: AverageCovariance, alpha: float, sigma: float) -> Level:
    """What is worked out once for all states of a noise level; a run goes through them one after the other, so that one is kept."""
    if observed.plans.get("level") != (alpha, sigma):
        observed.plans["level of average"] = decomposed(observed, average.moments, average.at(alpha, sigma))
        observed.plans["level"] = (alpha, sigma)
    found: Level = observed.plans["level of average"]
    return found
