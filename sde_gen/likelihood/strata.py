"""Noised items along the whole path, in equal intervals of the half log-SNR: what integrals over it are estimated from."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..randomness import check_seed
from ..sdes import SDE
from ..shapes import expand_as


@dataclass(frozen=True)
class Noised:
    """Items z at one level each, x = alpha z + sigma noise, of one interval of lambda.

    stratum, draw: which interval, from t_max on, and which of its draws. t: (N,) float64. noise, x: (N, *).
    alpha, sigma: (N, 1, ...), of x's dtype.
    """

    stratum: int
    draw: int
    t: Tensor
    alpha: Tensor
    sigma: Tensor
    noise: Tensor
    x: Tensor

    def rows(self, rows: slice) -> Noised:
        """Those of these items alone."""
        parts = (part[rows] for part in (self.t, self.alpha, self.sigma, self.noise, self.x))
        return Noised(self.stratum, self.draw, *parts)

    def eps(self, denoised: Tensor) -> Tensor:
        """The noise that E[x_0 | x] means, (x - alpha E[x_0 | x])/sigma, float64; denoised: (..., N, *)."""
        return ((self.x - self.alpha * denoised) / self.sigma).double()


def widths(sde: SDE, count: int) -> tuple[list[float], float]:
    """The middles of `count` equal intervals of lambda, the half log-SNR, from t_max to t_min, and their width."""
    low, high = (float(sde.half_log_snr(t)) for t in (sde.t_max, sde.t_min))
    width = (high - low) / count
    return [low + width * (k + 0.5) for k in range(count)], width


def noised(sde: SDE, z: Tensor, strata: int, draws: int, seed: int) -> Iterator[Noised]:
    """`draws` times, z (N, *) at a random level of its own for each item in each of so many intervals (see `widths`)."""
    middles, width = widths(sde, strata)
    generator = torch.Generator(z.device).manual_seed(check_seed(seed))
    for draw in range(draws):
        for stratum, middle in enumerate(middles):
            place = torch.rand(len(z), generator=generator, dtype=torch.float64, device=z.device)
            t = sde.time_of(middle + width * (place - 0.5)).clamp(sde.t_min, sde.t_max)
            noise = torch.randn(z.shape, generator=generator, dtype=z.dtype, device=z.device)
            alpha, sigma = (expand_as(value.to(z), z) for value in sde.marginal(t))
            yield Noised(stratum, draw, t, alpha, sigma, noise, alpha * z + sigma * noise)
