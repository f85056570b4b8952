"""Moments measured from a model: its score near pure noise holds its data's mean and covariance."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..randomness import NoiseStream
from .denoiser import Denoiser
from .moments import ITERATIONS, SEED, Moments

LARGEST = 256
"""Up to this many dimensions the whole covariance is measured where a model has no moments; above it the largest axes."""
MEASURED_AXES, REACH = 8, 3.0
"""How many axes are measured above that, and how far from a draw of the noise, in its standard deviations."""
NOISY = 30.0
"""sigma/alpha in units of the data's standard deviation at which the score is asked: nearly Gaussian, not yet lost in rounding."""


def moments_of(model: Denoiser, x: Tensor) -> Moments | None:
    """The model's moments; where it has none, those measured from it for samples like `x`'s, once for its weights; None where predictions
    are not finite."""
    if model.moments is not None:
        return model.moments
    shape = tuple(x.shape[1:])
    # Other weights, in place or not, and another device are another model.
    weights = tuple((value.data_ptr(), value._version) for value in (*model.parameters(), *model.buffers()))
    known = model.measured.get(shape)
    if known is None or known[0] != weights:
        known = weights, measure_moments(model, shape, x.dtype, x.device)
        model.measured[shape] = known
    return known[1]


def measure_moments(
    model: Denoiser, shape: Sequence[int], dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Moments | None:
    """Mean and covariance of a model's data from the model itself, as its score near pure noise holds them.

        E[x_0 | x] = m + (alpha/sigma^2) C (x - alpha m) + O((alpha/sigma)^2)

    is fitted by least squares to the predictions at 2 (D + 1) random points where sigma/alpha is `NOISY` times the
    data's standard deviation. Above `LARGEST` dimensions the largest axes of C are found by subspace iteration on differences of
    predictions, and the variance beside them from random ones. None where these are not finite. Wang and Vastola 2024, arXiv:2412.09726.
    """
    if torch.Size(shape).numel() > LARGEST:
        return _measure_largest(model, shape, dtype, torch.device(device))
    sde = model.sde
    count = 2 * (int(torch.Size(shape).numel()) + 1)
    noise = NoiseStream(SEED, 0, count, shape, dtype, torch.device(device))
    spread = 1.0
    for _ in range(2):  # the second time at the level that the first one's spread asks for
        lowest, highest = (float(sde.half_log_snr(t)) for t in (sde.t_max, sde.t_min))
        lambda_ = min(max(-math.log(NOISY * spread), lowest), highest)
        t = float(sde.time_of(lambda_))
        alpha, sigma = (float(value) for value in sde.marginal(torch.tensor(t, dtype=torch.float64)))
        half = noise.draw()[: count // 2]
        z = torch.cat((half, -half))  # in pairs, so that the mean is right to the second order
        with torch.no_grad():
            denoised = model.predict(z * sigma, t).denoised.double().flatten(1)
        if not bool(torch.isfinite(denoised).all()):
            return None
        z = z.double().flatten(1)
        mean = denoised.mean(0)
        odd = 0.5 * (denoised[: count // 2] - denoised[count // 2 :])
        slope = torch.linalg.lstsq(z[: count // 2].cpu(), odd.cpu()).solution.to(odd)
        covariance = (sigma / alpha) * 0.5 * (slope + slope.T)
        covariance = covariance + (alpha / sigma) ** 2 * covariance @ covariance  # the next order of C (1 + C u^2)^-1
        if not bool(torch.isfinite(covariance).all()):
            return None
        spread = float(covariance.diagonal().mean().clamp_min(1e-8).sqrt())
    return Moments(mean.reshape(tuple(shape)), covariance=covariance)


@torch.no_grad()
def _measure_largest(model: Denoiser, shape: Sequence[int], dtype: torch.dtype, device: torch.device) -> Moments | None:
    dim, axes = int(torch.Size(shape).numel()), MEASURED_AXES
    noise = NoiseStream(SEED, 0, axes, shape, dtype, device)
    spread = 1.0
    for _ in range(2):  # the second time at the level that the first one's spread asks for
        level = _Noisy(model, shape, dtype, noise.draw().double().flatten(1), spread)
        vectors = torch.linalg.qr(noise.draw().double().flatten(1).T).Q
        for _ in range(ITERATIONS):
            vectors = torch.linalg.qr(level.covariance_times(vectors.T).T).Q
        inside = vectors.T @ level.covariance_times(vectors.T).T
        if not bool(torch.isfinite(inside).all()):
            return None
        values, rotation = torch.linalg.eigh(0.5 * (inside + inside.T))
        beside = noise.draw().double().flatten(1)
        beside = beside - beside @ vectors @ vectors.T
        rest = ((beside * level.covariance_times(beside)).sum(1).mean() / (dim - axes)).clamp_min(0.0)
        mean = level.predict(torch.cat((level.z, -level.z))).mean(0)
        if not bool(torch.isfinite(rest) and torch.isfinite(mean).all()):
            return None
        # What was measured is C (1 + C u^2)^-1 for Gaussian data.
        values = values.clamp_min(0.0) / (1 - (level.alpha / level.sigma) ** 2 * values).clamp_min(0.1)
        spread = float(torch.sqrt(values.max().clamp_min(1e-8)))
    vectors = vectors @ rotation
    variance = (vectors.square() @ (values - rest) + rest).clamp_min(0.0)
    return Moments(mean.reshape(tuple(shape)), variance=variance.reshape(tuple(shape)), largest=(values, vectors, rest))


class _Noisy:
    """A model where sigma/alpha is `NOISY` times `spread`, and draws z (K, D) of the noise there."""

    def __init__(self, model: Denoiser, shape: Sequence[int], dtype: torch.dtype, z: Tensor, spread: float) -> None:
        self.model, self.shape, self.dtype, self.z = model, shape, dtype, z
        lowest, highest = (float(model.sde.half_log_snr(t)) for t in (model.sde.t_max, model.sde.t_min))
        self.t = float(model.sde.time_of(min(max(-math.log(NOISY * spread), lowest), highest)))
        self.alpha, self.sigma = (float(value) for value in model.sde.marginal(torch.tensor(self.t, dtype=torch.float64)))

    def predict(self, z: Tensor) -> Tensor:
        """E[x_0 | x = sigma z], (n, D) like z."""
        return self.model.predict((self.sigma * z).to(self.dtype).reshape(-1, *self.shape), self.t).denoised.double().flatten(1)

    def covariance_times(self, directions: Tensor) -> Tensor:
        """C v for each row v of `directions` (K, D), from predictions on both sides of the draws."""
        size = float(REACH / directions.norm(dim=1).mean())
        above, below = self.predict(torch.cat((self.z + size * directions, self.z - size * directions))).chunk(2)
        return (self.sigma / self.alpha) * (above - below) / (2 * size)
