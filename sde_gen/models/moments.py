"""The data's mean and covariance: what they imply in closed form, and how a model is asked for them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from ..randomness import NoiseStream

if TYPE_CHECKING:
    from .denoiser import Denoiser

MAX_COVARIANCE = 1024
"""Up to this many dimensions `Moments.fit` keeps the whole covariance; above it, each element's variance."""
SEED = 0x6D6F6D
LARGEST = 256
"""Up to this many dimensions moments are measured where a model has none."""
NOISY = 30.0
"""sigma/alpha in units of the data's standard deviation at which the score is asked: nearly Gaussian, not yet lost in rounding."""


class Moments(nn.Module):
    """Mean and covariance of data in normalised units, float64.

    `mean` has one sample's shape (or broadcasts to it). The covariance is either `variance`, one number for each element
    (broadcast likewise), or `covariance`, (D, D) over the flattened sample; it is kept as eigenvalues and eigenvectors.
    ValueError where neither or both are given, or a variance is negative.
    """

    mean: Tensor
    eigenvalues: Tensor
    eigenvectors: Tensor | None

    def __init__(self, mean: Tensor, variance: Tensor | None = None, covariance: Tensor | None = None) -> None:
        super().__init__()
        if (variance is None) == (covariance is None):
            raise ValueError("Moments takes exactly one of variance and covariance")
        self.register_buffer("mean", mean.double())
        if covariance is not None:
            if covariance.ndim != 2 or covariance.shape[0] != covariance.shape[1]:
                raise ValueError(f"covariance must be a square matrix, got shape {tuple(covariance.shape)}")
            eigenvalues, eigenvectors = torch.linalg.eigh(covariance.double())
            self.register_buffer("eigenvalues", eigenvalues.clamp_min(0.0))
            self.register_buffer("eigenvectors", eigenvectors)
        else:
            assert variance is not None
            if bool((variance < 0).any()):
                raise ValueError(f"variances must not be negative, got {float(variance.min())}")
            self.register_buffer("eigenvalues", variance.double())
            self.register_buffer("eigenvectors", None)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Moments:
        # They follow the model's device and stay float64 when its network is cast to a narrower dtype.
        def moved(value: Tensor) -> Tensor:
            other = fn(value)
            return value.to(other.device) if other.dtype != value.dtype else other

        return super()._apply(moved, recurse)

    @classmethod
    def fit(cls, data: Tensor) -> Moments:
        """The moments of `data` (N, *), already normalised: the whole covariance up to 1,024 dimensions, variances above."""
        flat = data.flatten(1).double()
        mean = flat.mean(0)
        if flat.shape[1] <= MAX_COVARIANCE:
            centred = flat - mean
            return cls(mean.reshape(data.shape[1:]), covariance=centred.T @ centred / flat.shape[0])
        return cls(mean.reshape(data.shape[1:]), variance=flat.var(0, unbiased=False).reshape(data.shape[1:]))

    def denoise(self, x: Tensor, alpha: Tensor | float, sigma: Tensor | float) -> Tensor:
        """E[x_0 | x_t = x] of Gaussian data with these moments, m + alpha C (alpha^2 C + sigma^2)^-1 (x - alpha m).

        It is the best linear denoiser of any data with these moments. `alpha`, `sigma` scalars; shape of `x`.
        """
        gain = alpha * self.eigenvalues / (alpha**2 * self.eigenvalues + sigma**2)
        return (self.mean + self._product(gain, x - alpha * self.mean)).to(x.dtype)

    def flow(self, x: Tensor, alpha: Tensor, sigma: Tensor) -> Tensor:
        """The probability flow of Gaussian data with these moments, exactly, from alpha[0], sigma[0] to alpha[1], sigma[1]:
        alpha m + ((alpha^2 C + sigma^2)/(alpha_t^2 C + sigma_t^2))^(1/2) (x - alpha_t m); shape of `x`."""
        alpha, sigma = alpha.to(self.mean), sigma.to(self.mean)
        before, after = ((alpha[i] ** 2 * self.eigenvalues + sigma[i] ** 2) for i in (0, 1))
        return (alpha[1] * self.mean + self._product(torch.sqrt(after / before), x - alpha[0] * self.mean)).to(x.dtype)

    def continued(self, x: Tensor, denoised: Tensor, alpha: Tensor, sigma: Tensor, ratios: Tensor) -> list[Tensor]:
        """E[x_0 | x] of such Gaussian data along the flow through x, at alpha/sigma = each of `ratios`, shifted by a constant
        so that it is `denoised` at x itself.

        In u = alpha/sigma it is m + C u (1 + C u^2)^(-1/2) c with c constant along the flow, an odd function about m that
        goes on smoothly through u = 0 (pure noise) to negative u.
        """
        alpha, sigma, ratios = (value.to(self.mean) for value in (alpha, sigma, ratios))
        variances = self.eigenvalues
        here = alpha * variances / (alpha**2 * variances + sigma**2)
        constant = 1 / torch.sqrt(alpha**2 * variances + sigma**2)
        gains = [variances * u / torch.sqrt(1 + variances * u**2) * constant - here for u in ratios]
        centred = x - alpha * self.mean
        return [denoised + self._product(gain, centred).to(x.dtype) for gain in gains]

    def axes(self, shape: Sequence[int]) -> tuple[Tensor, Tensor, Tensor | None]:
        """Mean (D,), variances along the principal axes (D,) and these axes as columns (D, D), None where they are the elements',
        all for a flattened sample of this shape."""
        mean = self.mean.expand(shape).flatten()
        variances = self.eigenvalues if self.eigenvectors is not None else self.eigenvalues.expand(shape).flatten()
        return mean, variances, self.eigenvectors

    def _product(self, gain: Tensor, centred: Tensor) -> Tensor:
        """The matrix with these eigenvalues times `centred` (B, *), float64."""
        vectors = self.eigenvectors
        if vectors is None:
            return centred.double() * gain
        return (((centred.double().flatten(1) @ vectors) * gain) @ vectors.T).reshape(centred.shape)

    def spread(self) -> tuple[float, float]:
        """sqrt(sum s^4/sum s^2) and the root mean square of the standard deviations s along the principal axes: the spread
        of the directions that hold most of the variance, and of all."""
        variances = self.eigenvalues
        mean = variances.mean()
        return (float(torch.sqrt((variances**2).mean() / mean)), float(torch.sqrt(mean))) if float(mean) > 0 else (1.0, 1.0)


def moments_of(model: Denoiser, x: Tensor) -> Moments | None:
    """The model's moments; where it has none, those measured from it for samples like `x`'s, once; None where there is no telling:
    more than `LARGEST` dimensions, or predictions that are not finite."""
    if model.moments is not None or x[0].numel() > LARGEST:
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
