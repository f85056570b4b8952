"""Where sampling starts and likelihood ends: a distribution that stands for p(x) at t_max."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor, nn

from .sdes import SDE

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
        centred = x.double() - alpha * self.mean
        vectors = self.eigenvectors
        part = centred * gain if vectors is None else (((centred.flatten(1) @ vectors) * gain) @ vectors.T).reshape(x.shape)
        return (self.mean + part).to(x.dtype)


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
