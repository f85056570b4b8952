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
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..metrics import Estimate
from .finding import std_error
from .ranks import PROJECTIONS, flat, nearest_radii, projections, randomised_ranks, reference_distances, sample_weights
from .uniformity import ALPHA, Coverage, Uniformity, coverage, ks_p_value, uniformity


def energy_score(truths: Tensor, samples: Tensor, log_weights: Tensor | None = None) -> tuple[Estimate, Tensor]:
    """E|X - x| - E|X - X'|/2 for X, X' of the posterior and x the truth, averaged over problems: a proper score, smallest for the true
    posterior, that rewards sharpness beyond calibration (Gneiting and Raftery 2007, JASA 102:359).

    Unbiased in the number of samples L >= 2. truths (P, *), samples (P, L, *), in the units of which it is; log_weights (P, L).
    Returns the mean with its standard error over problems, and each problem's (P,).
    """
    x, s = flat(truths, samples)
    weights, _ = sample_weights(s.shape[:2], log_weights, None)
    spread = torch.stack([w @ torch.cdist(points, points) @ w for w, points in zip(weights, s, strict=True)])
    return _scored((weights * (s - x[:, None]).norm(dim=2)).sum(1), spread, weights)


def crps(truths: Tensor, samples: Tensor, log_weights: Tensor | None = None) -> tuple[Estimate, Tensor]:
    """The continuous ranked probability score, the energy score of each entry by itself, averaged over entries and problems; arguments
    and results as in `energy_score`."""
    x, s = flat(truths, samples)
    weights, _ = sample_weights(s.shape[:2], log_weights, None)
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
    x, s = flat(truths, samples)
    weights, _ = sample_weights(s.shape[:2], log_weights, None)
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
