"""The data's moments from a model itself."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..randomness import NoiseStream
from .prior import Moments
from .score import Denoiser

SEED = 0x6D6F6D
LARGEST = 256
"""Up to this many dimensions moments are measured where a model has none."""
NOISY = 30.0
"""sigma/alpha in units of the data's standard deviation at which the score is asked: nearly Gaussian, not yet lost in rounding."""


def moments_of(model: Denoiser, x: Tensor) -> Moments | None:
    """The model's moments; where it has none, those measured from it for samples like `x`'s, once; None where there is no telling:
    more than `LARGEST` dimensions, or predictions that are not finite."""
    shape = tuple(x.shape[1:])
    if model.moments is not None or shape in model.measured:
        return model.moments if model.moments is not None else model.measured[shape]
    model.measured[shape] = measure_moments(model, shape, x.dtype, x.device) if x[0].numel() <= LARGEST else None
    return model.measured[shape]


def measure_moments(
    model: Denoiser, shape: Sequence[int], dtype: torch.dtype = torch.float64, device: torch.device | str = "cpu"
) -> Moments | None:
    """Mean and covariance of a model's data from the model itself, as its score near pure noise holds them.

        E[x_0 | x] = m + (alpha/sigma^2) C (x - alpha m) + O((alpha/sigma)^2)

    is fitted by least squares to the predictions at 2 (D + 1) random points where sigma/alpha is `NOISY` times the
    data's standard deviation. None where these are not finite. Wang and Vastola 2024, arXiv:2412.09726.
    """
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
            denoised = model.predict(z * sigma, t)[0].double().flatten(1)
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
