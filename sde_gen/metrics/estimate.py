"""A number with its standard error, and how the metrics resample."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

NORMAL_95 = 1.96  # half the width of the normal law's central 95 %


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error: the spread that the value would have over fresh draws of the same sizes, or more where this
    spread is skewed, so that value +- 1.96 std_error covers what the value is on average (see `skewed_error`). What is
    not known of them is NaN, and `reason` says why."""

    value: float
    std_error: float
    reason: str = ""

    def __str__(self) -> str:
        """`2.31 +- 0.05`: the error to one significant digit (two if it begins with 1), the value to the same place."""
        if not math.isfinite(self.std_error) or not math.isfinite(self.value) or self.std_error <= 0:
            return f"{self.value:.4g} +- {self.std_error:.2g}"
        magnitude = math.floor(math.log10(self.std_error))
        places = -magnitude + (1 if self.std_error / 10.0**magnitude < 1.95 else 0)
        if places > 5 or magnitude > 5:
            return f"{self.value:.4g} +- {self.std_error:.2g}"
        return f"{self.value:.{max(0, places)}f} +- {self.std_error:.{max(0, places)}f}"


def binomial_error(fraction: float, count: int) -> float:
    """The standard error of a share of `count` items."""
    # With one success and one failure added (Agresti and Coull 1998): none of 1,000 is not known to be zero exactly.
    smoothed = (fraction * count + 1) / (count + 2)
    return math.sqrt(smoothed * (1 - smoothed) / (count + 2))


def share(right: Tensor) -> Estimate:
    """The share of a Boolean tensor (N,) that is true, N > 0, with its binomial standard error."""
    value = float(right.double().mean())
    return Estimate(value, binomial_error(value, len(right)))


def matrix(name: str, values: Tensor, least: int = 2) -> Tensor:
    """(N, *shape) as finite float64 (N, D) on the CPU; ValueError that names the argument if it cannot be."""
    if values.ndim < 2 or len(values) < least or values.numel() == 0:
        raise ValueError(f"{name} of shape {tuple(values.shape)}; (N, *shape) with N >= {least} is needed")
    flat = values.detach().cpu().double().flatten(1)
    bad = int((~torch.isfinite(flat)).sum())
    if bad:
        raise ValueError(f"{name} holds {bad} NaN or infinite value(s) among {flat.numel()}; finite numbers are needed")
    return flat


def matrices(name_a: str, a: Tensor, name_b: str, b: Tensor, least: int = 2) -> tuple[Tensor, Tensor]:
    """Two `matrix` of one width."""
    left, right = matrix(name_a, a, least), matrix(name_b, b, least)
    if left.shape[1] != right.shape[1]:
        raise ValueError(f"{name_a} has {left.shape[1]} values an item and {name_b} {right.shape[1]}; the same number is needed")
    return left, right


def check_count(name: str, value: int, least: int) -> None:
    """ValueError unless the argument is an integer of at least `least`."""
    if not isinstance(value, int) or value < least:
        raise ValueError(f"{name} {value!r}; an integer >= {least} is needed")


def halves(count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Indices of two random disjoint halves of `count` items, each of count // 2."""
    order = torch.randperm(count, generator=generator)
    return order[: count // 2], order[count // 2 : 2 * (count // 2)]


def half_samples(count_a: int, count_b: int, splits: int, seed: int) -> Iterator[tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """For each split: ((half of a, half of b), (the other half of a, the other half of b)), as indices."""
    generator = torch.Generator().manual_seed(seed)
    for _ in range(splits):
        a, b = halves(count_a, generator), halves(count_b, generator)
        yield (a[0], b[0]), (a[1], b[1])


def parts_of(name: str, count: int, size: int | None, seed: int, most: int = 8) -> list[Tensor]:
    """Disjoint random parts of `size` among `count` items, as indices, at most so many; all of them as one part where size is None."""
    if size is None:
        return [torch.arange(count)]
    check_count("size", size, 4)
    if size > count:
        raise ValueError(f"size {size}; {name} has {count} items only")
    order = torch.randperm(count, generator=torch.Generator().manual_seed(seed))
    return list(order.split(size)[: min(most, count // size)])


def resampled(
    value_of: Callable[[Tensor, Tensor], float], parts: list[Tensor], count_b: int, splits: int, seed: int
) -> tuple[float, float]:
    """A squared distance with its standard error: the mean of value_of(part of a, all of b) over disjoint parts of a.

    value_of takes indices into a and b. With one part the error is that of `half_sample_distance_error`, over a and b. With K parts it is
    sqrt(V_b + (V - V_b)/K) with V that of one part and V_b what b alone contributes, which the parts share, both from half-samples.
    """
    whole = torch.arange(count_b)
    values = [value_of(part, whole) for part in parts]
    share = splits if len(parts) == 1 else max(2, -(-splits // len(parts)))
    total, common = [], []
    for k, (part, value) in enumerate(zip(parts, values, strict=True)):
        halves_of = list(half_samples(len(part), count_b, share, seed + k))
        pairs = [[value_of(part[i], j) for i, j in split] for split in halves_of]
        total.append(half_sample_distance_error(torch.tensor(pairs, dtype=torch.float64), value) ** 2)
        if len(parts) > 1:
            alone = [[value_of(part, j) for _, j in split] for split in halves_of]
            common.append(half_sample_distance_error(torch.tensor(alone, dtype=torch.float64), value) ** 2)
    variance = sum(total) / len(total)
    if common:
        shared = min(sum(common) / len(common), variance)
        variance = shared + (variance - shared) / len(parts)
    return sum(values) / len(values), math.sqrt(variance)


def half_sample_error(pairs: Tensor) -> float:
    """Standard error of a statistic of the full sets from its values on the two halves of random splits.

    Half-sampling (balanced bootstrap without replacement; Efron 1982, "The Jackknife, the Bootstrap and Other Resampling
    Plans", chapter 8). With theta = L + Q + ..., linear and quadratic in the empirical weights, the difference of the two
    halves carries L alone and their mean Q alone. Var((theta_1 - theta_2)/2) estimates Var L + 2 Var Q (the gradient is taken
    at the sample, not at the truth) and Var((theta_1 + theta_2)/2) estimates Var Q, so that

        Var theta = Var((theta_1 - theta_2)/2) - Var((theta_1 + theta_2)/2),

    which holds also where L vanishes: for a distance between two sets of one distribution, where the ordinary bootstrap is
    sqrt(3) too wide. It is kept from falling below Var Q, which at zero distance leaves it 1.0 to 1.4 times too wide (the
    fewer directions dominate, the wider).

    Args:
        pairs: (splits, 2) float64.
    """
    linear, quadratic = _parts(pairs)
    return math.sqrt(max(linear - quadratic, quadratic))


def half_sample_distance_error(pairs: Tensor, value: float) -> float:
    """`half_sample_error` of a squared distance with this value of the full sets, widened where it is skewed (`skewed_error`)."""
    linear, quadratic = _parts(pairs)
    # The halves' mean is larger than the value by the mean of Q, for Q falls as one over the number of items.
    return max(half_sample_error(pairs), skewed_error(max(linear - 2 * quadratic, 0.0), quadratic, float(pairs.mean()) - value))


def half_difference_error(pairs: Tensor) -> float:
    """Standard error of a mean of local terms, each settled by a few neighbours: the root of the mean of (theta_1 - theta_2)^2/4.

    The two halves of a split are independent and such a mean has variance c/N at every N, its non-linear part included, so that nothing
    is to be taken away; `half_sample_error` holds for statistics whose non-linear part falls as 1/N^2.

    Args:
        pairs: (splits, 2) float64, the values on the two halves of random splits.
    """
    return math.sqrt(_parts(pairs)[0])


def _parts(pairs: Tensor) -> tuple[float, float]:
    return float(((pairs[:, 0] - pairs[:, 1]) / 2).square().mean()), float(((pairs[:, 0] + pairs[:, 1]) / 2).var())


def skewed_error(linear: float, quadratic: float, mean: float) -> float:
    """Standard error of a squared distance from the variances of its linear and its quadratic part.

    A square of d ~ N(delta, s^2) has an error in proportion to |d| itself: a draw that falls too near to zero states too small an
    error as well, and value +- 1.96 sqrt(Var L + Var Q) covers 0.78 to 0.83 at delta = 2 s. The interval of 95 % is (|d| +- 1.96 s)^2,
    whose upper half is longer by 1.96/sqrt(2) standard deviations of Q in units of the error, which are added here. A quadratic
    part that many directions share is a sum of squares of 2 mean^2/Var Q degrees of freedom, which is close to normal: from two degrees
    of freedom down the whole is added, above them the share (2/freedom)^(3/2).

    Args:
        linear, quadratic: variances of the two parts.
        mean: the mean of the quadratic part.
    """
    plain = math.sqrt(linear + quadratic)
    if quadratic <= 0:
        return plain
    freedom = 2 * max(mean, 0.0) ** 2 / quadratic
    share = 1.0 if freedom <= 2 else (2 / freedom) ** 1.5
    return plain + share * NORMAL_95 / math.sqrt(2) * math.sqrt(quadratic)
