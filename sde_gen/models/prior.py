"""Where sampling starts and likelihood ends: a distribution that stands for p(x) at t_max."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..sdes import SDE
from .moments import Moments


class Prior(ABC):
    """A distribution on states x of shape (B, *), in normalised units."""

    @abstractmethod
    def from_noise(self, z: Tensor) -> Tensor:
        """The draw that belongs to standard normal `z`; same shape."""

    @abstractmethod
    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density in nats: (B, *) gives (B,)."""

    @abstractmethod
    def marginals(self, x: Tensor) -> Tensor:
        """Log-density in nats of each entry of x on its own: (B, *) gives (B, *)."""


class SDEPrior(Prior):
    """The SDE's own prior, N(0, prior_std^2 I): what most papers use."""

    def __init__(self, sde: SDE) -> None:
        self.sde = sde

    def from_noise(self, z: Tensor) -> Tensor:
        return z * self.sde.prior_std

    def log_prob(self, x: Tensor) -> Tensor:
        return self.sde.prior_log_prob(x)

    def marginals(self, x: Tensor) -> Tensor:
        return _normal(x, self.sde.prior_std)


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

    def marginals(self, x: Tensor) -> Tensor:
        vectors, std = self.moments.eigenvectors, self._std()
        each = std if vectors is None else (vectors.square() @ std.square()).sqrt().reshape(x.shape[1:])
        return _normal(x.double() - self.alpha * self.moments.mean, each).to(x.dtype)


def _normal(centred: Tensor, std: Tensor | float) -> Tensor:
    scale = torch.as_tensor(std).to(centred)
    return -0.5 * (centred / scale) ** 2 - torch.log(scale) - 0.5 * math.log(2 * math.pi)
