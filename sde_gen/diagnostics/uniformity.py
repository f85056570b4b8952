"""Whether ranks are uniform: coverage, simultaneous bands, exact p-values."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
import torch
from torch import Tensor

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Shares of the posterior that credible intervals and regions hold."""
ALPHA = 0.05
"""A test fails below this p-value, and bands hold 1 - ALPHA."""
_POINTS = 100
"""Points at which the distribution function of ranks is compared, at most one a problem."""


@dataclass(frozen=True)
class Coverage:
    """How often intervals that should hold the truth with probability `levels` (J,) do.

    value: (J,), the share of problems, averaged over what was ranked; std_error: (J,), over problems.
    each: (K, J), the share of problems for each of the K quantities.
    band: (J, 2), the central 95 % of the shares of P independent problems. Each of `each` lies in it with that probability, and `value`,
        whose quantities share their problems, at least.
    """

    levels: tuple[float, ...]
    value: Tensor
    std_error: Tensor
    each: Tensor
    band: Tensor

    @property
    def inside(self) -> Tensor:
        """(J,) Boolean: whether `value` lies in its band."""
        return (self.value >= self.band[:, 0]) & (self.value <= self.band[:, 1])

    def __str__(self) -> str:
        rows = zip(self.levels, self.value.tolist(), self.band.tolist(), strict=True)
        return ", ".join(f"{level:.0%}: {value:.1%} ({low:.1%} .. {high:.1%})" for level, value, (low, high) in rows)


def coverage(ranks: Tensor, levels: Sequence[float] = LEVELS, central: bool = True) -> Coverage:
    """The expected coverage that ranks (P, K) stand for (Hermans et al. 2021, arXiv:2110.06581).

    central: of the central intervals, |u - 1/2| <= level/2; else of the regions of smallest values, u <= level, as for `nearest_radii`.
    ValueError for fewer than 2 problems, ranks outside [0, 1], or levels outside (0, 1).
    """
    u = _ranks(ranks)
    if not levels or not all(0 < level < 1 for level in levels):
        raise ValueError(f"levels must be in (0, 1), got {tuple(levels)}")
    edges = torch.tensor(levels, dtype=torch.float64)
    inside = ((2 * u - 1).abs() if central else u)[..., None] <= edges
    count = len(u)
    from scipy.stats import binom  # here and below, as it takes as long to import as the rest of the package

    low, high = (binom.ppf(q, count, levels) / count for q in (ALPHA / 2, 1 - ALPHA / 2))
    of_problems = inside.double().mean(1)
    return Coverage(
        tuple(levels),
        of_problems.mean(0),
        of_problems.std(0) / math.sqrt(count),
        inside.double().mean(0),
        torch.from_numpy(np.stack((low, high), 1)),
    )


@dataclass(frozen=True)
class Uniformity:
    """A test that ranks are uniform, by their distribution function.

    p_value: of all K quantities together, K times the least of theirs and at most 1, which holds however they depend on one another.
    each: (K,), exact p-values.
    points: (G,), in (0, 1); ecdf: (K, G), the share of problems whose rank is at most a point.
    low, high: (G,), bands that hold the whole curve of one quantity with probability 0.95.
    """

    p_value: float
    each: Tensor
    points: Tensor
    ecdf: Tensor
    low: Tensor
    high: Tensor


def uniformity(ranks: Tensor) -> Uniformity:
    """Whether each column of ranks (P, K) is uniform: the curve of P ranks against simultaneous bands (Sailynoja et al. 2022,
    arXiv:2103.10522).

    At a point z the number of ranks below is Binomial(P, z). The statistic is the least two-sided tail probability over the points; its
    distribution, and with it the bands and the p-values, are worked out exactly, by carrying the numbers from point to point.
    ValueError for fewer than 2 problems or ranks outside [0, 1].
    """
    u = _ranks(ranks)
    count = len(u)
    points = _points(count)
    below = (u[..., None] <= torch.from_numpy(points)).sum(0).numpy()  # (K, G)
    tails = _tails(count)
    least = np.take_along_axis(tails, below.T, 1).min(0)
    each = _leaving(count, tuple(least.tolist()))
    allowed = tails > _level(count)
    low = allowed.argmax(1) / count
    high = (count - allowed[:, ::-1].argmax(1)) / count
    return Uniformity(
        min(1.0, len(each) * float(each.min())),
        torch.from_numpy(each),
        torch.from_numpy(points),
        torch.from_numpy(below / count),
        torch.from_numpy(low),
        torch.from_numpy(high),
    )


def ks_p_value(ranks: Tensor) -> float:
    """The exact p-value of Kolmogorov and Smirnov that ranks (P, 1) are uniform; of TARP's, the test of its coverage curve."""
    u = _ranks(ranks)
    if u.shape[1] != 1:
        raise ValueError(f"ranks of one quantity, (P, 1), are needed, got {tuple(u.shape)}")
    from scipy.stats import kstest

    return float(kstest(u[:, 0].numpy(), "uniform").pvalue)


def _points(count: int) -> np.ndarray:
    size = min(count, _POINTS)
    return np.arange(1, size + 1) / (size + 1)


@cache
def _tails(count: int) -> np.ndarray:
    """(G, count + 1): the two-sided tail probability of each number of ranks below each point."""
    from scipy.stats import binom

    law = binom(count, _points(count)[:, None])
    numbers = np.arange(count + 1)
    return np.minimum(1.0, 2 * np.minimum(law.cdf(numbers), law.sf(numbers - 1)))


def _leaving(count: int, levels: tuple[float, ...]) -> np.ndarray:
    """The probability that `count` uniform ranks have a tail probability of at most `level` at one of the points, for each level."""
    from scipy.special import gammaln

    points, tails = _points(count), _tails(count)
    numbers = np.arange(count + 1)
    left, new = count - numbers[:, None], numbers[None, :] - numbers[:, None]  # ranks above the last point, and those up to this one
    with np.errstate(invalid="ignore"):
        log_choose = np.where(new >= 0, gammaln(left + 1) - gammaln(new + 1) - gammaln(left - new + 1), -np.inf)
    kept = np.zeros((len(levels), count + 1))
    kept[:, 0] = 1.0
    before = 0.0
    cut = np.array(levels)[:, None] * (1 + 1e-12)
    for point, tail in zip(points, tails, strict=True):
        share = (point - before) / (1 - before)
        step = np.exp(log_choose + new * math.log(share) + (left - new) * math.log1p(-share))
        kept = (kept @ step) * (tail[None, :] > cut)
        before = point
    return np.clip(1 - kept.sum(1), 0.0, 1.0)


@cache
def _level(count: int) -> float:
    """The largest tail probability, of a fine grid, below which simultaneous bands of 1 - ALPHA leave out."""
    levels = np.geomspace(ALPHA / 200, ALPHA, 60)
    return float(levels[_leaving(count, tuple(levels.tolist())) <= ALPHA].max(initial=levels[0]))


def _ranks(ranks: Tensor) -> Tensor:
    """(P, K) in [0, 1]."""
    u = ranks.detach().cpu().double()
    if u.ndim != 2 or len(u) < 2 or not u.shape[1] or not bool(((u >= 0) & (u <= 1)).all()):
        raise ValueError(f"ranks must be (P, K) in [0, 1] of at least 2 problems, got {tuple(u.shape)}")
    return u
