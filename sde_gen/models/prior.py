"""Where sampling starts and likelihood ends: a distribution that stands for p(x) at t_max."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from ..sdes import SDE

MAX_COVARIANCE = 1024
"""Up to this many dimensions `Moments.fit` keeps the whole covariance; above it, each element's variance."""


class Prior(ABC):
    """A distribution on states x of shape (B, *), in normalised units."""

    @abstractmethod
    def from_noise(self, z: Tensor) -> Tensor:
        """The draw that belongs to standard normal `z`; same shape."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats: (B, *) gives (B,)."""


class SDEPrior(Prior):
    """The SDE's own prior, N(0, prior_std^2 I): what most papers use."""

    def __init__(self, sde: SDE) -> None:
        self.sde = sde

    def from_noise(self, z: Tensor) -> Tensor:
        return z * self.sde.prior_std

    def log_prob(self, x: Tensor) -> Tensor:
        return self.sde.prior_log_prob(x)


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


class MatchedPrior(Prior):
    """The Gaussian with the data's own moments carried to t_max, N(alpha m, alpha^2 C + sigma^2 I).

    It is exact for Gaussian data and closer than the SDE's prior for every other: no mass is lost at the noisy end.
    """

    def __init__(self, moments: Moments, alpha: float, sigma: float) -> None:
        self.moments = moments
        self.alpha, self.sigma = alpha, sigma

    def _std(self) -> Tensor:
        return torch.sqrt(self.alpha**2 * self.moments.eigenvalues + self.sigma**2)

    def from_noise(self, z: Tensor) -> Tensor:
        vectors, std = self.moments.eigenvectors, self._std()
        scaled = z.double() * std if vectors is None else ((z.flatten(1).double() * std) @ vectors.T).reshape(z.shape)
        return (self.alpha * self.moments.mean + scaled).to(z.dtype)

    def log_prob(self, x: Tensor) -> Tensor:
        vectors, std = self.moments.eigenvectors, self._std()
        centred = x.double() - self.alpha * self.moments.mean
        z = (centred / std if vectors is None else (centred.flatten(1) @ vectors) / std).flatten(1)
        log_std = torch.log(std.expand(x.shape[1:]) if vectors is None else std).sum()
        return (-0.5 * (z * z).sum(1) - log_std - 0.5 * z.shape[1] * math.log(2 * math.pi)).to(x.dtype)
