"""The statistics of quality.py: Frechet distances at equal sample counts, and the ratio of their excess over real images.

Every error bar comes from half-samples without replacement (sde_gen.metrics.estimate.half_sample_error): a bootstrap with
replacement repeats points, which inflates a Frechet distance. A ratio has two. With the real images fixed it is the spread over
fresh samples of the same networks: what "nearer to these images" needs. With their own sampling it also covers another draw of
the reference and of the few real images that the excess is taken over, which can be the larger part. Several training runs of
each model add their spread to both; a single run cannot know it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sde_gen.metrics import Estimate, frechet_distance
from sde_gen.metrics.estimate import half_sample_error, halves

SUBSETS = 50  # random subsets for means at equal counts
SPLITS = 50  # random splits into halves for error bars


@dataclass(frozen=True)
class Score:
    """A Frechet distance at an equal sample count.

    runs: its mean over random subsets, for each training run; spread: standard deviation over subsets.
    pairs: (splits, 2) mean over runs at half the counts, on both halves of random splits of items and reference.
    fixed: (splits, 2) the same with the whole reference each time.
    """

    runs: list[float]
    spread: float
    pairs: Tensor
    fixed: Tensor

    @property
    def value(self) -> float:
        """The mean over training runs."""
        return sum(self.runs) / len(self.runs)

    @property
    def std_error(self) -> float:
        """From sampling of items and reference, and from training runs where there are several."""
        return math.hypot(half_sample_error(self.pairs), self.between_runs)

    @property
    def between_runs(self) -> float:
        """Standard error of the mean over training runs; 0 for one run, whose spread cannot be known."""
        return float(torch.tensor(self.runs).std()) / math.sqrt(len(self.runs)) if len(self.runs) > 1 else 0.0


def subsets(count: int, size: int, number: int, seed: int) -> Iterator[Tensor]:
    """Indices of `number` random subsets of `size` out of `count`, without replacement; of all, once, if size is count.

    Raises:
        ValueError: a size below 1 or above count.
    """
    if not 1 <= size <= count:
        raise ValueError(f"subsets of {size} out of {count}; between 1 and {count} are possible")
    generator = torch.Generator().manual_seed(seed)
    for _ in range(1 if size == count else number):
        yield torch.randperm(count, generator=generator)[:size]


def equal_count_score(features: list[Tensor], reference: Tensor, size: int, splits: int = SPLITS) -> Score:
    """The Frechet distance of `size` items to the reference, for the features (N, D) of each training run."""
    runs, spreads, pairs, fixed = [], [], [], []
    for seed, x in enumerate(features):
        values = torch.tensor([_distance(x[index], reference) for index in subsets(len(x), size, SUBSETS, seed)])
        runs.append(float(values.mean()))
        spreads.append(float(values.std()) if len(values) > 1 else 0.0)
        pairs.append(_half_pairs(x, reference, size, splits, seed, halve_reference=True))
        fixed.append(_half_pairs(x, reference, size, splits, seed, halve_reference=False))
    return Score(runs, sum(spreads) / len(spreads), torch.stack(pairs).mean(0), torch.stack(fixed).mean(0))


def excess_ratio(ours: Score, peer: Score, floor: Score, real_images_fixed: bool = False) -> Estimate:
    """(ours - floor) / (peer - floor) with its standard error.

    The error is that of ours - floor - ratio (peer - floor), all resampled together, over the peer's excess: the usual
    linearisation for a ratio, which unlike a spread of resampled ratios has no heavy tail.

    Raises:
        ValueError: the peer has no excess over the floor.
    """
    excess = peer.value - floor.value
    if not excess > 0:
        raise ValueError(f"whose distance {peer.value:.3f} is not above that of real images, {floor.value:.3f}")
    ratio = (ours.value - floor.value) / excess
    sampled = ours.pairs - floor.pairs - ratio * (peer.pairs - floor.pairs)
    residual = ours.fixed - ratio * peer.fixed if real_images_fixed else sampled
    error = math.hypot(half_sample_error(residual), ours.between_runs, ratio * peer.between_runs)
    return Estimate(ratio, error / excess)


def _distance(a: Tensor, b: Tensor) -> float:
    return frechet_distance(a, b, bootstrap=2).value  # the fewest splits: its own error bar is not wanted here


def _half_pairs(x: Tensor, reference: Tensor, size: int, splits: int, seed: int, halve_reference: bool) -> Tensor:
    """(splits, 2): distances at size // 2 from either half of `x` to either half of the reference, or to all of it.

    Each is a mean over as many disjoint blocks as the half holds. The reference's halves are the same whatever `seed`, so that
    its noise is shared by all that is compared.
    """
    of_reference, of_x = torch.Generator().manual_seed(0), torch.Generator().manual_seed(seed + 1)
    block = size // 2
    pairs = torch.zeros(splits, 2, dtype=torch.float64)
    for row in pairs:
        others = [reference[index] for index in halves(len(reference), of_reference)] if halve_reference else [reference] * 2
        for side, mine in enumerate(halves(len(x), of_x)):
            blocks = mine[: len(mine) // block * block].split(block)
            row[side] = sum(_distance(x[part], others[side]) for part in blocks) / len(blocks)
    return pairs
