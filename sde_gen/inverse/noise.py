"""How a measurement differs from what the operator gives: Gaussian, Poisson and quantisation noise, entry by entry."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..sdes.base import check_positive

SMALLEST_RATE = 1e-6
"""Expected counts are held above this number: data that a model predicts may be negative, expected counts may not."""


class Noise(ABC):
    """p(y | clean) of independent entries, in the measurement's units; clean = A(x)."""

    gaussian: bool = False
    """Whether `variance` says all."""

    @property
    def absent(self) -> bool:
        """Whether y is clean itself."""
        return False

    @abstractmethod
    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        """Log-density or log-probability of each entry of y in nats, (B, *) as y and clean are; differentiable in clean."""

    @abstractmethod
    def simulate(self, clean: Tensor, z: Tensor) -> Tensor:
        """A measurement of `clean` made of standard normal numbers z; all of one shape."""

    @abstractmethod
    def variance(self, y: Tensor) -> Tensor:
        """The variance of each entry, broadcasting to y, as a Gaussian method takes it; an estimate from y where noise is not Gaussian."""


class Gaussian(Noise):
    """y = clean + std z.

    std: a number, or a tensor that broadcasts to one measurement's shape, at least 0. 0 is a measurement without noise, which some
        methods take as a hard constraint.
    """

    gaussian = True

    def __init__(self, std: float | Tensor) -> None:
        self.std = torch.as_tensor(std, dtype=torch.float64)
        if not bool(torch.isfinite(self.std).all()) or bool((self.std < 0).any()):
            raise ValueError(f"the noise's std must be finite and not negative, got {float(self.std.min()):g}")
        if bool((self.std == 0).any()) and not bool((self.std == 0).all()):
            raise ValueError("the noise's std must be positive for all entries, or 0 for all of them")

    @property
    def absent(self) -> bool:
        return not bool(self.std.any())

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        if self.absent:
            raise ValueError("a measurement without noise has no density: std must be positive here")
        std = self.std.to(clean.device, clean.dtype)
        return -0.5 * ((y - clean) / std) ** 2 - torch.log(std) - 0.5 * math.log(2 * math.pi)

    def simulate(self, clean: Tensor, z: Tensor) -> Tensor:
        return clean + self.std.to(clean.device, clean.dtype) * z

    def variance(self, y: Tensor) -> Tensor:
        return self.std.to(y.device, y.dtype) ** 2


class Poisson(Noise):
    """gain y is Poisson with mean gain clean: counts, in units of 1/gain.

    gain: expected counts for each unit of clean data, positive.

    A Gaussian method takes the variance max(y, 1/gain)/gain.
    """

    def __init__(self, gain: float = 1.0) -> None:
        self.gain = check_positive("gain", gain)

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        counts, rate = self.gain * y, (self.gain * clean).clamp_min(SMALLEST_RATE)
        return counts * torch.log(rate) - rate - torch.lgamma(counts + 1)

    def simulate(self, clean: Tensor, z: Tensor) -> Tensor:
        from scipy.stats import poisson  # here, as it takes as long to import as the rest of the package

        rate = (self.gain * clean).double().clamp_min(SMALLEST_RATE)
        counts = poisson.ppf(torch.special.ndtr(z.double()).cpu().numpy(), rate.cpu().numpy())
        return torch.as_tensor(counts).to(clean.device, clean.dtype) / self.gain

    def variance(self, y: Tensor) -> Tensor:
        return y.clamp_min(1 / self.gain) / self.gain


class Quantised(Noise):
    """y = step round((clean + std z)/step), held between low and high.

    step: the width of a bin, positive.
    std: of the Gaussian noise before rounding, positive: without it the likelihood has no gradient.
    low, high: the least and the largest y, whose bins are open to the outside; None: as far as the data go. One bit is step=2, low=-1,
        high=1 (bins meet at 0), with y = -1 or 1; levels are counted from `low` where it is given, else from 0.

    A Gaussian method takes the variance std^2 + step^2/12.
    """

    def __init__(self, step: float, std: float, low: float | None = None, high: float | None = None) -> None:
        self.step, self.std = check_positive("step", step), check_positive("std", std)
        if low is not None and high is not None and not low < high:
            raise ValueError(f"low must be below high, got {low!r} and {high!r}")
        self.low, self.high = low, high

    def log_prob(self, y: Tensor, clean: Tensor) -> Tensor:
        upper = (y + 0.5 * self.step - clean) / self.std
        lower = (y - 0.5 * self.step - clean) / self.std
        if self.high is not None:
            upper = torch.where(y >= self.high - 0.25 * self.step, math.inf, upper)
        if self.low is not None:
            lower = torch.where(y <= self.low + 0.25 * self.step, -math.inf, lower)
        # In the tail where both lie the difference of the logarithms is exact; Phi is symmetric.
        flip = (lower > 0) | ((upper == math.inf) & (lower > -upper))
        first, last = torch.where(flip, -upper, lower), torch.where(flip, -lower, upper)
        tall = torch.special.log_ndtr(last.clamp(-1e4, 1e4))
        ratio = torch.special.log_ndtr(first.clamp(-1e4, 1e4)) - tall
        return tall + torch.log(-torch.expm1(ratio.clamp_max(-1e-12)))

    def simulate(self, clean: Tensor, z: Tensor) -> Tensor:
        start = 0.0 if self.low is None else self.low
        value = start + self.step * torch.round((clean + self.std * z - start) / self.step)
        return value.clamp(self.low, self.high) if self.low is not None or self.high is not None else value

    def variance(self, y: Tensor) -> Tensor:
        return torch.full((), self.std**2 + self.step**2 / 12, dtype=y.dtype, device=y.device)
