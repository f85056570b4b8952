"""A number with its standard error, and how the metrics resample."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Estimate:
    """A value and its standard error: the spread that the value would have over fresh draws of the same sizes."""

    value: float
    std_error: float

    def __str__(self) -> str:
        """`2.31 +- 0.05`: the error to one significant digit (two if it begins with 1), the value to the same place."""
        if not math.isfinite(self.std_error) or not math.isfinite(self.value) or self.std_error <= 0:
            return f"{self.value:.4g} +- {self.std_error:.2g}"
        magnitude = math.floor(math.log10(self.std_error))
        places = -magnitude + (1 if self.std_error / 10.0**magnitude < 1.95 else 0)
        if places > 5 or magnitude > 5:
            return f"{self.value:.4g} +- {self.std_error:.2g}"
        return f"{self.value:.{max(0, places)}f} +- {self.std_error:.{max(0, places)}f}"


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
    linear = ((pairs[:, 0] - pairs[:, 1]) / 2).square().mean()
    quadratic = ((pairs[:, 0] + pairs[:, 1]) / 2).var()
    return float(torch.maximum(linear - quadratic, quadratic).sqrt())
