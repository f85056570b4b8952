"""Whether posterior samples are calibrated: coverage, ranks, and a score for sharpness, from truths whose posterior was sampled.

Problem p is a truth x_p ~ p(x), a measurement y_p of it, and L samples of what should be p(x | y_p). Where they are, truth and samples
are L + 1 draws of one law, so that the truth's rank among them is uniform, whatever is ranked: an entry, a projection, a density, a
distance to a point that depends on y. All tests here are of such ranks. They are exact for any number of samples and any posterior,
and the problems, not their entries, are what is independent.

    truths (P, *), samples (P, L, *)  ->  a value of each: projections, nearest_radii, reference_distances
        -> randomised_ranks (P, K)    ->  coverage, uniformity, ks_p_value;   judge does all of it

Weights of samples are w_l, given as logarithms in any unit. Among weighted samples the truth has a weight too, and the weighted rank is
uniform as well (weighted exchangeability: Tibshirani et al. 2019, arXiv:1904.06019): exactly, where samples are draws of q, w = p/q, and
the truth's own w is given. Where that cannot be evaluated it is taken as the weight that a draw of the posterior has on average,
sum w^2/sum w: u = (ess F(x) + U)/(ess + 1), with F the weighted distribution function and the effective number of samples for L. What is
judged are then the weighted samples as they are, with what a finite number of them misses of the posterior.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..metrics import Estimate
from ..randomness import check_seed
from .finding import std_error

LEVELS = (0.5, 0.8, 0.9, 0.95)
"""Shares of the posterior that credible intervals and regions hold."""
PROJECTIONS = 20
ALPHA = 0.05
"""A test fails below this p-value, and bands hold 1 - ALPHA."""
_POINTS = 100
"""Points at which the distribution function of ranks is compared, at most one a problem."""


# ---------------------------------------------------------------- what is ranked


def projections(truths: Tensor, samples: Tensor, count: int = PROJECTIONS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Truths (P, *) and samples (P, L, *) along `count` random directions of unit length: (P, count) and (P, L, count), float64.

    All entries count alike: bring them to one unit first, as `model.normalizer.encode` does.
    """
    x, s = _flat(truths, samples)
    generator = torch.Generator().manual_seed(check_seed(seed))
    directions = torch.randn(x.shape[1], count, generator=generator, dtype=torch.float64)
    directions = directions / directions.norm(dim=0)
    return x @ directions, s @ directions


def nearest_radii(
    truths: Tensor, samples: Tensor, log_weights: Tensor | None = None, truth_log_weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """How far one must go from each point, among truth and samples of its problem, to meet a share L^(-1/2) of their weight: small where
    the posterior is dense. (P, 1) and (P, L, 1), float64.

    The points of small radius are a region of highest density, by the nearest-neighbour estimate of it, of any shape. It treats truth
    and samples alike, as ranks need.
    """
    x, s = _flat(truths, samples)
    weights, own = _weights(s.shape[:2], log_weights, truth_log_weights)
    found = torch.empty(s.shape[0], s.shape[1] + 1, dtype=torch.float64)
    for p in range(len(x)):
        points = torch.cat((x[p : p + 1], s[p]))
        mass = torch.cat((own[p : p + 1], weights[p]))
        distance = torch.cdist(points, points)
        distance.fill_diagonal_(math.inf)  # comes last: a point is no neighbour of its own
        near, order = distance.sort(1)
        share = mass[order].cumsum(1) / (mass.sum() - mass)[:, None]
        place = (share < s.shape[1] ** -0.5 - 1e-12).sum(1, keepdim=True).clamp(max=s.shape[1] - 1)
        found[p] = near.gather(1, place)[:, 0]
    return found[:, :1], found[:, 1:, None]


def reference_distances(truths: Tensor, samples: Tensor, references: Tensor) -> tuple[Tensor, Tensor]:
    """Distances of truths (P, *) and samples (P, L, *) to each problem's reference (P, *): (P, 1) and (P, L, 1), float64.

    The ranks of these are TARP's (Lemos et al. 2023, arXiv:2302.03026). The references must depend on the measurement, and on truth and
    samples in no other way: with references that know nothing of y, samples of the prior pass.
    """
    x, s = _flat(truths, samples)
    if tuple(references.shape) != tuple(truths.shape):
        raise ValueError(f"references must be one point for each truth, {tuple(truths.shape)}, got {tuple(references.shape)}")
    at = references.detach().cpu().double().flatten(1)
    return (x - at).norm(dim=1, keepdim=True), (s - at[:, None]).norm(dim=2)[..., None]


def randomised_ranks(
    truths: Tensor,
    samples: Tensor,
    log_weights: Tensor | None = None,
    truth_log_weights: Tensor | None = None,
    seed: int = 0,
) -> Tensor:
    """The rank of each truth among its samples, made continuous: (r + U)/(L + 1), r of L samples below it and U ~ U(0, 1).

    Ranks of truths whose samples are of their posterior are uniform on (0, 1), exactly and for any L (Talts et al. 2018,
    arXiv:1804.06788, who leave r/L discrete). Ties are broken by U. With weights it is
    (sum of w_l of samples below + U w_0)/(w_0 + sum of w_l), w_0 the truth's weight.

    Args:
        truths: (P, *), each entry a value that is ranked by itself.
        samples: (P, L, *).
        log_weights: (P, L), not normalised; None: equal weights.
        truth_log_weights: (P,), in the unit of log_weights; None: what a sample of the posterior has on average (see the module).
        seed: of U.

    Returns:
        float64 (P, K), K the entries of a truth.

    Raises:
        ValueError: shapes that do not fit, fewer than 2 problems, values or weights that are not finite.
    """
    x, s = _flat(truths, samples)
    weights, own = _weights(s.shape[:2], log_weights, truth_log_weights)
    uniform = torch.rand(x.shape, generator=torch.Generator().manual_seed(check_seed(seed)), dtype=torch.float64)
    below = torch.einsum("pl,plk->pk", weights, (s < x[:, None]).double())
    tied = torch.einsum("pl,plk->pk", weights, (s == x[:, None]).double())
    return (below + uniform * (tied + own[:, None])) / (1 + own[:, None])


# ---------------------------------------------------------------- tests of ranks


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


# ---------------------------------------------------------------- sharpness


def energy_score(truths: Tensor, samples: Tensor, log_weights: Tensor | None = None) -> tuple[Estimate, Tensor]:
    """E|X - x| - E|X - X'|/2 for X, X' of the posterior and x the truth, averaged over problems: a proper score, smallest for the true
    posterior, that rewards sharpness beyond calibration (Gneiting and Raftery 2007, JASA 102:359).

    Unbiased in the number of samples L >= 2. truths (P, *), samples (P, L, *), in the units of which it is; log_weights (P, L).
    Returns the mean with its standard error over problems, and each problem's (P,).
    """
    x, s = _flat(truths, samples)
    weights, _ = _weights(s.shape[:2], log_weights, None)
    spread = torch.stack([w @ torch.cdist(points, points) @ w for w, points in zip(weights, s, strict=True)])
    return _scored((weights * (s - x[:, None]).norm(dim=2)).sum(1), spread, weights)


def crps(truths: Tensor, samples: Tensor, log_weights: Tensor | None = None) -> tuple[Estimate, Tensor]:
    """The continuous ranked probability score, the energy score of each entry by itself, averaged over entries and problems; arguments
    and results as in `energy_score`."""
    x, s = _flat(truths, samples)
    weights, _ = _weights(s.shape[:2], log_weights, None)
    near = torch.einsum("pl,plk->p", weights, (s - x[:, None]).abs()) / x.shape[1]
    ordered, order = s.sort(1)
    w = weights[..., None].expand_as(s).gather(1, order)
    # sum over pairs of w w' (x - x') with x' below x
    spread = 2 * (w * (ordered * (w.cumsum(1) - w) - ((w * ordered).cumsum(1) - w * ordered))).sum(1).mean(1)
    return _scored(near, spread, weights)


def _scored(near: Tensor, spread: Tensor, weights: Tensor) -> tuple[Estimate, Tensor]:
    if weights.shape[1] < 2:
        raise ValueError("a score needs at least 2 samples of each posterior, got 1")
    pairs = 1 - weights.square().sum(1)  # the weight of pairs of different samples
    each = near - spread / (2 * pairs.clamp_min(1e-12))
    return Estimate(float(each.mean()), std_error(each)), each


# ---------------------------------------------------------------- all of it


@dataclass(frozen=True)
class Calibration:
    """What `judge` found.

    problems, samples: P and L; ess: the effective number of samples of a problem, on average.
    entries, directions: the coverage of central intervals of every entry and of random projections.
    regions: that of regions of highest density.
    sbc: the ranks of the projections against uniform ones; region_p: the p-value of the regions' ranks.
    tarp_p: that of TARP, NaN without references.
    energy, crps: the scores, in the unit of the samples.
    """

    problems: int
    samples: int
    ess: float
    entries: Coverage
    directions: Coverage
    regions: Coverage
    sbc: Uniformity
    region_p: float
    tarp_p: float
    energy: Estimate
    crps: Estimate

    @property
    def p_value(self) -> float:
        """Of the tests by ranks together: the least p-value times their number."""
        found = [p for p in (self.sbc.p_value, self.region_p, self.tarp_p) if not math.isnan(p)]
        return min(1.0, len(found) * min(found))

    @property
    def calibrated(self) -> bool:
        """Whether nothing speaks against it: p_value at least `ALPHA`."""
        return self.p_value >= ALPHA

    def to_json(self) -> dict[str, Any]:
        """Plain numbers and lists."""
        shares = {
            name: {
                "levels": list(part.levels),
                "value": part.value.tolist(),
                "std_error": part.std_error.tolist(),
                "band": part.band.tolist(),
            }
            for name, part in (("entries", self.entries), ("directions", self.directions), ("regions", self.regions))
        }
        scores = {name: {"value": part.value, "std_error": part.std_error} for name, part in (("energy", self.energy), ("crps", self.crps))}
        names = ("points", "ecdf", "low", "high")
        curves = {name: getattr(self.sbc, name).tolist() for name in names}
        whole = {"problems": self.problems, "samples": self.samples, "ess": self.ess, "calibrated": self.calibrated}
        tests = {"p_value": self.p_value, "sbc_p": self.sbc.p_value, "region_p": self.region_p, "tarp_p": self.tarp_p}
        return whole | tests | {"coverage": shares} | scores | {"sbc": curves}


def judge(
    truths: Tensor,
    samples: Tensor,
    log_weights: Tensor | None = None,
    references: Tensor | None = None,
    seed: int = 0,
    directions: int = PROJECTIONS,
    truth_log_weights: Tensor | None = None,
) -> Calibration:
    """Every test of this module on truths (P, *), samples (P, L, *) of their posteriors and, for TARP, references (P, *).

    Truths drawn from the model whose posteriors are sampled judge the sampler alone, exactly, however well that model is trained;
    truths that are held-out data judge model and sampler together.

    Args:
        truths, samples: in one unit for all entries, such as normalised units.
        log_weights, truth_log_weights: see `randomised_ranks`.
        references: points that depend on the measurement (see `reference_distances`); None: no TARP.
        seed: of directions and of U.
        directions: random projections that are ranked.

    Raises:
        ValueError: as `randomised_ranks`, or a single sample.
    """
    x, s = _flat(truths, samples)
    weights, _ = _weights(s.shape[:2], log_weights, None)
    given = (log_weights, truth_log_weights)
    along = randomised_ranks(*projections(x, s, directions, seed), *given, seed=seed)
    regions = randomised_ranks(*nearest_radii(x, s, *given), *given, seed=seed + 1)
    tarp = math.nan
    if references is not None:
        tarp = ks_p_value(randomised_ranks(*reference_distances(truths, samples, references), *given, seed=seed + 2))
    return Calibration(
        len(x),
        s.shape[1],
        float((1 / weights.square().sum(1)).mean()),
        coverage(randomised_ranks(x, s, *given, seed=seed + 3)),
        coverage(along),
        coverage(regions, central=False),
        uniformity(along),
        uniformity(regions).p_value,
        tarp,
        energy_score(x, s, log_weights)[0],
        crps(x, s, log_weights)[0],
    )


# ---------------------------------------------------------------- arguments


def _flat(truths: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
    """(P, K) and (P, L, K), float64 on the CPU."""
    if truths.ndim < 2 or samples.ndim != truths.ndim + 1 or (len(truths), *truths.shape[1:]) != (len(samples), *samples.shape[2:]):
        raise ValueError(f"truths (P, *) and samples (P, L, *) are needed, got {tuple(truths.shape)} and {tuple(samples.shape)}")
    if len(truths) < 2 or not samples.numel():
        raise ValueError(f"at least 2 problems and 1 sample of each are needed, got {len(truths)} and {samples.shape[1]}")
    found = truths.detach().cpu().double().flatten(1), samples.detach().cpu().double().flatten(2)
    for name, value in zip(("truths", "samples"), found, strict=True):
        bad = int((~torch.isfinite(value)).sum())
        if bad:
            raise ValueError(f"{name} hold {bad} NaN or infinite value(s) among {value.numel()}; finite numbers are needed")
    return found


def _weights(shape: Sequence[int], log_weights: Tensor | None, truth_log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
    """Weights (P, L) that sum to 1, and those of the truths (P,) in their unit."""
    problems, size = shape
    if log_weights is None:
        if truth_log_weights is not None:
            raise ValueError("truth_log_weights are in the unit of log_weights: give both or neither")
        return torch.full((problems, size), 1 / size, dtype=torch.float64), torch.full((problems,), 1 / size, dtype=torch.float64)
    if tuple(log_weights.shape) != (problems, size):
        raise ValueError(f"log_weights must be (P, L) = {(problems, size)}, got {tuple(log_weights.shape)}")
    logs = log_weights.detach().cpu().double()
    total = logs.logsumexp(1)
    if bool(logs.isnan().any()) or not bool(torch.isfinite(total).all()):
        raise ValueError("log_weights must be numbers below infinity (-inf is a weight of 0), some of each problem finite")
    weights = (logs - total[:, None]).exp()
    if truth_log_weights is None:
        return weights, weights.square().sum(1)
    if tuple(truth_log_weights.shape) != (problems,) or not bool(torch.isfinite(truth_log_weights).all()):
        raise ValueError(f"truth_log_weights must be ({problems},) finite numbers, got {tuple(truth_log_weights.shape)}")
    return weights, (truth_log_weights.detach().cpu().double() - total).exp()


def _ranks(ranks: Tensor) -> Tensor:
    """(P, K) in [0, 1]."""
    u = ranks.detach().cpu().double()
    if u.ndim != 2 or len(u) < 2 or not u.shape[1] or not bool(((u >= 0) & (u <= 1)).all()):
        raise ValueError(f"ranks must be (P, K) in [0, 1] of at least 2 problems, got {tuple(u.shape)}")
    return u
