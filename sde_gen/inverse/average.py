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
from .moment_matched import SMALLEST, MomentMatched, units_of
from .request import Request

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
    """`MomentMatched` of a linear operator with the average covariance for V: no derivative of the network.

    Columns and mu are shared by all states, (1, k, *), unless their gaps or noise differ.
    """
    key = ("average", alpha, sigma)
    if key not in observed.plans:
        observed.plans[key] = _decomposed(observed, average.moments, average.at(alpha, sigma))
    columns, mu, vectors, log_scale = observed.plans[key]
    pattern = observed.plans["patterns"][2]
    noise = 0.0 if observed.absent else 1.0
    if len(mu) > 1:
        columns, mu, vectors = columns[pattern], mu[pattern], vectors[pattern]
    rest = _rest(found.denoised, observed, vectors)
    return MomentMatched(found, _back(mu.sqrt() / (noise + mu) * rest, columns), columns, mu, rest, noise, log_scale[pattern])


def tilted(
    model: Denoiser, x: Tensor, t: float, cond: dict[str, Tensor], found: MomentMatched, observed: Observed, alpha: float, sigma: float
) -> MomentMatched:
    """`found` with what the model predicts where the state is moved towards the measurement, by one more call.

    The state x + (sigma^2/alpha) H^T theta says of the data what x says times exp(theta . u), of u = H x_0, exactly and whatever the data
    are. With u_0 and u_theta their means before and after,

        log p(y | x) = theta . ((u_0 + u_theta)/2 - y + Sigma_y theta/2) + log N(y - Sigma_y theta; u_theta, Sigma_y + H V H^T)

    for Gaussian data and any theta, and nearly so where u_theta is linear in theta and the tilted data are Gaussian near y. Here theta is
    mu/(noise + mu) of what brings u_theta to y by the covariance of `found`, and less where the state would move far from the model's own.
    """
    vectors = observed.plans["average", alpha, sigma][2]
    places, weights, pattern = observed.plans["patterns"]
    vectors = vectors if len(vectors) == 1 else vectors[pattern]
    total = found.noise + found.mu
    theta = found.mu * found.rest / total**2
    of_y = torch.zeros_like(observed.y.flatten(1)).to(x.dtype)
    of_y[:, places] = rows(vectors, theta) * weights[pattern].to(x.dtype)
    push = sigma**2 / alpha * observed.adjoint(of_y.reshape(observed.y.shape))
    length = push.flatten(1).norm(dim=1).clamp_min(torch.finfo(x.dtype).tiny)
    held = (TILT * sigma * math.sqrt(x[0].numel()) / length).clamp_max(1)
    theta, push = held[:, None] * theta, expand_as(held, x) * push
    lead = model.predict(x + push, t, **cond).denoised
    rest = _rest(lead, observed, vectors)
    gained = (theta * (found.noise * theta - found.rest - rest)).double().sum(1)
    rest, lead = rest - found.noise * theta, lead - found.prediction.denoised
    shift = lead + _back(found.mu.sqrt() / total * rest, found.columns)
    return replace(found, shift=shift, rest=rest, lead=lead, log_scale=found.log_scale + 0.5 * gained)


def rows(matrix: Tensor, vector: Tensor) -> Tensor:
    """The products of (B, m, n), or of one matrix (1, m, n), with vectors (B, n): (B, m)."""
    return vector @ matrix[0].mT if len(matrix) == 1 else (matrix @ vector[..., None])[..., 0]


def _rest(denoised: Tensor, observed: Observed, vectors: Tensor) -> Tensor:
    """The coordinates (B, k) of y - A(D) in units of the noise."""
    places, weights, pattern = observed.plans["patterns"]
    return rows(vectors.mT, observed.residual(denoised).flatten(1)[:, places] * weights[pattern].to(denoised.dtype))


def _back(coordinates: Tensor, columns: Tensor) -> Tensor:
    """The sum of columns (B, k, *data shape), or shared ones, by their coordinates (B, k)."""
    return rows(columns.flatten(2).mT, coordinates).reshape(len(coordinates), *columns.shape[2:])


def _decomposed(observed: Observed, moments: Moments, variances: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Columns (P, k, *data shape), mu (P, k), vectors (P, M, k) and log_scale (P,) of each pattern of gaps and noise."""
    if "patterns" not in observed.plans:
        observed.plans["patterns"] = _patterns(observed)
    places, weights, _ = observed.plans["patterns"]
    scale = observed.scale
    eye = torch.eye(observed.seen[0].numel(), dtype=torch.float64, device=scale.device)[places]
    rows = scale.double() * observed.measurement.operator.adjoint(eye.reshape(-1, *observed.seen.shape[1:]), observed.shape)
    spread = moments.product(variances, rows)  # V H^T
    matrix = weights[:, :, None] * (spread.flatten(1) @ rows.flatten(1).T) * weights[:, None, :]
    if observed.absent:
        matrix = matrix + torch.diag_embed((weights == 0).double())
    mu, vectors = torch.linalg.eigh(0.5 * (matrix + matrix.mT))
    mu = mu.clamp_min(0).maximum(SMALLEST * mu[:, -1:]).clamp_min(1e-30)
    columns = (vectors * weights[..., None]).mT @ spread.flatten(1) / mu.sqrt()[..., None]
    of_units = torch.where(weights > 0, torch.log(weights.clamp_min(1e-30)) - 0.5 * math.log(2 * math.pi), 0).sum(1)
    dtype = scale.dtype
    return columns.reshape(*mu.shape, *observed.shape).to(dtype), mu.to(dtype), vectors.to(dtype), of_units


def _patterns(observed: Observed) -> tuple[Tensor, Tensor, Tensor]:
    """The measured entries (M,); 1/std of each, 0 in gaps, for every pattern (P, M) that states have; and which one each has, (B,).

    Without noise the std is that of `units_of`.
    """
    seen = observed.seen.flatten(1)
    places = seen.any(0).nonzero().flatten()
    std = units_of(observed).double().sqrt()
    weights, pattern = torch.unique((observed.seen / std).flatten(1)[:, places], dim=0, return_inverse=True)
    return places, weights, pattern
