"""What is ranked to judge posterior samples, and the ranks of truths among them (see `calibration`)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from ..randomness import check_seed

PROJECTIONS = 20


def projections(truths: Tensor, samples: Tensor, count: int = PROJECTIONS, seed: int = 0) -> tuple[Tensor, Tensor]:
    """Truths (P, *) and samples (P, L, *) along `count` random directions of unit length: (P, count) and (P, L, count), float64.

    All entries count alike: bring them to one unit first, as `model.normalizer.encode` does.
    """
    x, s = flat(truths, samples)
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
    x, s = flat(truths, samples)
    weights, own = sample_weights(s.shape[:2], log_weights, truth_log_weights)
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
    x, s = flat(truths, samples)
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
    x, s = flat(truths, samples)
    weights, own = sample_weights(s.shape[:2], log_weights, truth_log_weights)
    uniform = torch.rand(x.shape, generator=torch.Generator().manual_seed(check_seed(seed)), dtype=torch.float64)
    below = torch.einsum("pl,plk->pk", weights, (s < x[:, None]).double())
    tied = torch.einsum("pl,plk->pk", weights, (s == x[:, None]).double())
    return (below + uniform * (tied + own[:, None])) / (1 + own[:, None])


def flat(truths: Tensor, samples: Tensor) -> tuple[Tensor, Tensor]:
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


def sample_weights(shape: Sequence[int], log_weights: Tensor | None, truth_log_weights: Tensor | None) -> tuple[Tensor, Tensor]:
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
