"""Metrics of nearest neighbours: coverage of the data, memorised samples, shares of a mixture's modes."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from sde_gen.metrics.estimate import Estimate, binomial_error, check_count, half_difference_error, half_samples, matrices

ALL_COPIES = "every held-out item is a training item"
_CHUNK = 1 << 23  # distances held at a time
_CANCELLED = 1e-10  # a squared distance of so small a part of the norms has six right digits or fewer


def precision_recall(samples: Tensor, reference: Tensor, k: int = 3, bootstrap: int = 25, seed: int = 0) -> tuple[Estimate, Estimate]:
    """Precision: the fraction of samples inside the reference's manifold. Recall: that of the reference inside the samples'.

    The manifold of a set is the union of the balls around its points that reach to their k-th nearest neighbour in the set
    (Kynkaanniemi et al. 2019, arXiv:1904.06991). Both depend on the number of points: compare at equal counts. Standard errors
    cover both sets; they come from half-samples (a bootstrap with replacement would put points at distance zero of
    themselves; `half_difference_error`, since each point's answer hangs on few neighbours) and are at least binomial. In simulations of 150
    to 500 points they are 0.95 to 1.3 times the spread over fresh draws, and value +- 1.96 std_error covers 0.90 to 0.99.

    Args:
        samples: (N, D) features of the samples; other shapes (N, *shape) are flattened.
        reference: (M, D) features of real data.
        k: which neighbour, at least 1; both sets need 2 k + 2 points.
        bootstrap: number of random splits into halves, at least 2. Time is O(bootstrap N M), memory is bounded.
        seed: of the splits.

    Raises:
        ValueError: too few points, different widths, or values that are not finite.
    """
    check_count("k", k, 1)
    check_count("bootstrap", bootstrap, 2)
    samples, reference = matrices("samples", samples, "reference", reference, least=2 * k + 2)
    subsets_s, subsets_r = [torch.arange(len(samples))], [torch.arange(len(reference))]
    for split in half_samples(len(samples), len(reference), bootstrap, seed):
        subsets_s += [half[0] for half in split]
        subsets_r += [half[1] for half in split]
    radii_s, radii_r = _radii(samples, subsets_s, k), _radii(reference, subsets_r, k)
    precision = _coverage(samples, subsets_s, reference, radii_r)
    recall = _coverage(reference, subsets_r, samples, radii_s)
    return _fraction(precision, len(samples)), _fraction(recall, len(reference))


def _fraction(values: Tensor, count: int) -> Estimate:
    value = float(values[0])
    return Estimate(value, max(half_difference_error(values[1:].view(-1, 2)), binomial_error(value, count)))


def _radii(points: Tensor, subsets: list[Tensor], k: int) -> Tensor:
    """(S, N): the distance of each point of a subset to its k-th neighbour in the subset; -1 for points outside it."""
    # Enough neighbours that every half has k of them: fewer than k of 8 k + 32 fall into a half with probability below 1e-6.
    near = min(len(points) - 1, 8 * k + 32)
    distance, index = _nearest(points, points, near + 1, skip_self=True)
    radii = torch.full((len(subsets), len(points)), -1.0, dtype=torch.float64)
    for row, subset in zip(radii, subsets, strict=True):
        member = torch.zeros(len(points), dtype=torch.bool)
        member[subset] = True
        reached = member[index].cumsum(1) >= k
        # argmax finds the first True, and the farthest neighbour at hand is taken where there is none.
        place = torch.where(reached[:, -1], reached.int().argmax(1), near - 1)
        row[member] = distance.gather(1, place[:, None])[:, 0][member]
    return radii


def _coverage(queries: Tensor, subsets: list[Tensor], points: Tensor, radii: Tensor) -> Tensor:
    """(S,): the fraction of each subset of the queries that lies inside at least one ball of the same subset's radii."""
    inside = torch.zeros(len(subsets), len(queries), dtype=torch.bool)
    for start, distance in _distances(queries, points):
        for s in range(len(subsets)):
            inside[s, start : start + len(distance)] = (distance <= radii[s]).any(1)
    return torch.stack([row[subset].double().mean() for row, subset in zip(inside, subsets, strict=True)])


def nearest_distances(queries: Tensor, points: Tensor) -> Tensor:
    """Euclidean distance from each query to its nearest point: (N, *shape) and (M, *shape) give (N,) float64.

    Raises:
        ValueError: empty sets, different shapes, or values that are not finite.
    """
    queries, points = matrices("queries", queries, "points", points, least=1)
    return _nearest(queries, points, 1)[0][:, 0]


def memorised_fraction(
    samples: Tensor, train: Tensor, held_out: Tensor, quantile: float = 0.05, bootstrap: int = 200, seed: int = 0
) -> Estimate:
    """Fraction of samples at least as near to a training item as the nearest `quantile` of held-out items are.

    With d(x) = min_i |x - train_i| and tau the quantile of d over the held-out items, the fraction of samples with
    d <= tau. New draws from the data's distribution score `quantile`, copies of the training data score 1. The standard
    error has two parts: binomial over samples, and the bootstrap of tau over the held-out items.

    Args:
        samples: (N, *shape), in the space where nearness is meant (the data's own units, say).
        train: (M, *shape).
        held_out: (K, *shape), not trained on.
        quantile: in (0, 1).
        bootstrap: number of resamples of the held-out items, at least 2.
        seed: of the resamples.

    Raises:
        ValueError: empty sets, different shapes, values that are not finite, or a quantile outside (0, 1).
    """
    check_count("bootstrap", bootstrap, 2)
    if not 0 < quantile < 1:
        raise ValueError(f"quantile {quantile!r}; a number between 0 and 1 is needed")
    flat_samples, flat_train = matrices("samples", samples, "train", train, least=1)
    flat_held_out, _ = matrices("held_out", held_out, "train", train, least=2)
    near, baseline = (nearest_distances(x, flat_train) for x in (flat_samples, flat_held_out))
    return memorised_of(near, baseline, quantile, bootstrap, seed)


def memorised_of(near: Tensor, held_out: Tensor, quantile: float = 0.05, bootstrap: int = 200, seed: int = 0) -> Estimate:
    """`memorised_fraction` from the `nearest_distances` to the training items of samples (N,) and of held-out items (K,). Unknown where
    that quantile of the held-out items is training items themselves: samples that are copies could not be told from new ones."""
    if float(torch.quantile(held_out, quantile)) == 0:
        share = float((held_out == 0).double().mean())
        return Estimate(math.nan, math.nan, ALL_COPIES if share == 1 else f"{share:.0%} of the held-out items are training items")
    near = near.sort().values
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randint(len(held_out), (bootstrap, len(held_out)), generator=generator)
    thresholds = torch.cat([torch.quantile(held_out, quantile)[None], torch.quantile(held_out[drawn], quantile, dim=1)])
    fractions = torch.searchsorted(near, thresholds, right=True).double() / len(near)
    value = float(fractions[0])
    return Estimate(value, math.hypot(binomial_error(value, len(near)), float(fractions[1:].std())))


def neighbour_ratio(near: Tensor, held_out: Tensor) -> Estimate:
    """Nearest-neighbour ratio: mean over samples of min_i |x - train_i| over the same mean over held-out items.

    1: samples are as far from the training data as new data is; towards 0: they are copies of it; above 1: they stray from the data, or
    are blurred or noisy. A network that copies some and strays with others can have 1: `memorised_fraction` looks at the nearest alone.
    The standard error covers samples and held-out items, by the delta method, for the training items as they are.

    Args:
        near, held_out: (N,) and (K,), the `nearest_distances` to the training items of samples and of held-out items.

    Raises:
        ValueError: none of either, or values that are not finite.
    """
    means, errors = [], []
    for name, values in (("near", near), ("held_out", held_out)):
        if values.ndim != 1 or not len(values) or not bool(torch.isfinite(values).all()):
            raise ValueError(f"{name} of shape {tuple(values.shape)}; finite distances (N,), N >= 1, are needed")
        means.append(float(values.double().mean()))
        errors.append(float(values.double().std()) / math.sqrt(len(values)) if len(values) > 1 else math.nan)
    if means[1] == 0:  # every held-out item is a training item: there is nothing to compare with
        return Estimate(math.nan, math.nan, ALL_COPIES)
    ratio = means[0] / means[1]
    error = math.hypot(errors[0], ratio * errors[1]) / means[1]
    return Estimate(ratio, error, "one item has no spread" if math.isnan(error) else "")


def mode_fractions(samples: Tensor, centres: Tensor, radius: float | None = None) -> list[Estimate]:
    """For each centre, the fraction of all samples that are nearest to it, with its binomial standard error.

    Args:
        samples: (N, D); other shapes (N, *shape) are flattened.
        centres: (K, D).
        radius: samples farther than this from every centre count for none, so that the fractions need not add to one; None
            counts all.

    Raises:
        ValueError: empty sets, different widths, values that are not finite, or a radius that is not positive.
    """
    if radius is not None and not radius > 0:
        raise ValueError(f"radius {radius!r}; None or a positive number is needed")
    samples, centres = matrices("samples", samples, "centres", centres, least=1)
    distance, index = _nearest(samples, centres, 1)
    kept = index[:, 0] if radius is None else index[:, 0][distance[:, 0] <= radius]
    shares = (torch.bincount(kept, minlength=len(centres)).double() / len(samples)).tolist()
    return [Estimate(share, binomial_error(share, len(samples))) for share in shares]


def _distances(queries: Tensor, points: Tensor) -> Iterator[tuple[int, Tensor]]:
    """(first row, distances (rows, M)) a chunk of queries at a time."""
    centre = points.mean(0)  # |x|^2 + |y|^2 - 2 x.y loses digits where the points lie far from the origin
    queries, points = queries - centre, points - centre
    norms = points.square().sum(1)
    step = max(1, _CHUNK // len(points))
    for start in range(0, len(queries), step):
        part = queries[start : start + step]
        scale = norms + part.square().sum(1, keepdim=True)
        square = torch.addmm(scale, part, points.T, alpha=-2)
        # What is small beside the norms is the rounding of their difference: a copy's distance has to be 0.
        for pairs in torch.nonzero(square <= _CANCELLED * scale).split(max(1, _CHUNK // part.shape[1])):
            square[pairs[:, 0], pairs[:, 1]] = (part[pairs[:, 0]] - points[pairs[:, 1]]).square().sum(1)
        yield start, square.clamp_(min=0).sqrt_()


def _nearest(queries: Tensor, points: Tensor, count: int, skip_self: bool = False) -> tuple[Tensor, Tensor]:
    """Distances and indices (N, count) of the nearest points, nearest first; without the query itself if the sets are one."""
    distances, indices = [], []
    for start, distance in _distances(queries, points):
        if skip_self:
            local = torch.arange(len(distance))
            distance[local, start + local] = math.inf
        near = distance.topk(count - skip_self, dim=1, largest=False)
        distances.append(near.values)
        indices.append(near.indices)
    return torch.cat(distances), torch.cat(indices)
