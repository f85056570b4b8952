"""Frechet distance of many features to moments that others may have published: its error in closed form, its bias by extrapolation.

All in float64 on the CPU. `frechet_distance` is the same distance between two sets of a few features, with errors from half-samples.
"""

from __future__ import annotations

import math
import os
import zipfile
import zlib
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sde_gen.metrics.estimate import Estimate, check_count, half_samples, matrix

_MOST_ROWS = 8192  # items whose influence is worked out: the variance of a mean does not need more of them
_NEGLIGIBLE = 1e-14  # eigenvalues below this part of the largest are rounding
_MOST_WIDTH = 1 << 14
_HEADER = 1 << 12  # bytes beside the numbers of an array in a file
_ARCHIVE_FAULTS = (zipfile.BadZipFile, zlib.error, MemoryError)
LEAST_TIMES = 4
"""Items over features from which on the bias is taken to fall as one over the number of items."""


@dataclass(frozen=True, eq=False)
class Moments:
    """Mean (D,) and covariance (D, D) of features in float64, of so many items; None where that is not known.

    source: where they are from, in words.
    """

    mean: Tensor
    covariance: Tensor
    count: int | None = None
    source: str = ""

    @classmethod
    def of(cls, features: Tensor, source: str = "") -> Moments:
        """Those of features (N, D), N >= 2; the covariance is that of N - 1 degrees of freedom.

        Raises:
            ValueError: fewer than two items, or values that are not finite.
        """
        x = matrix("features", features)
        mean = x.mean(0)
        centred = x - mean
        return cls(mean, centred.T @ centred / (len(x) - 1), len(x), source)

    @classmethod
    def read(cls, path: str | os.PathLike[str]) -> Moments:
        """The moments in an .npz file with arrays `mu` (D,) and `sigma` (D, D), as EDM, guided-diffusion and pytorch-fid publish them.

        `count` is read where `write` left it. Nothing in the file is executed.

        Raises:
            ValueError: one line, for a file that is not there, is no such archive, or holds moments of no distribution.
        """
        path = Path(path)
        try:
            sizes = _sizes(path)
            _check_size(sizes, "mu", _MOST_WIDTH)
            _check_size(sizes, "count", 1)
            with np.load(path, allow_pickle=False) as file:
                if "mu" not in file or "sigma" not in file:
                    raise ValueError(f"it holds {', '.join(file) or 'nothing'}, not mu and sigma")
                mean = file["mu"]
                _check_size(sizes, "sigma", mean.size**2)
                covariance = file["sigma"]
                count = int(file["count"]) if "count" in file else None
        except (OSError, ValueError, EOFError, LookupError, TypeError, ArithmeticError, RuntimeError, *_ARCHIVE_FAULTS) as error:
            reason = "no such file" if isinstance(error, FileNotFoundError) else " ".join(str(error).split())[:200]
            raise ValueError(f"{path}: no moments can be read ({reason}); an .npz of mu (D,) and sigma (D, D) is needed") from error
        width = mean.shape[0] if mean.ndim == 1 else 0
        if not 1 <= width <= _MOST_WIDTH or covariance.shape != (width, width) or {mean.dtype.kind, covariance.dtype.kind} != {"f"}:
            found = f"mu is {mean.dtype} {mean.shape} and sigma {covariance.dtype} {covariance.shape}"
            raise ValueError(f"{path}: {found}; floating-point numbers (D,) and (D, D) are needed")
        if count is not None and count < 2:
            raise ValueError(f"{path}: count is {count}; moments are of at least 2 items")
        mu, sigma = (torch.from_numpy(value.astype(np.float64)) for value in (mean, covariance))
        if not bool(torch.isfinite(mu).all() and torch.isfinite(sigma).all()):
            raise ValueError(f"{path}: mu or sigma holds NaN or infinite values; finite numbers are needed")
        scale = float(sigma.diagonal().abs().max())
        if float((sigma - sigma.T).abs().max()) > 1e-6 * scale or float(sigma.diagonal().min()) < -1e-6 * scale:
            raise ValueError(f"{path}: sigma is no covariance: it is not symmetric or has a negative variance")
        return cls(mu, (sigma + sigma.T) / 2, count, str(path))

    def write(self, path: str | os.PathLike[str]) -> None:
        """An .npz of `mu`, `sigma` and, where it is known, `count`, which pytorch-fid and EDM read too."""
        count: dict[str, Any] = {} if self.count is None else {"count": np.int64(self.count)}
        with Path(path).open("wb") as file:
            np.savez(file, mu=self.mean.numpy(), sigma=self.covariance.numpy(), **count)

    @property
    def width(self) -> int:
        """D."""
        return len(self.mean)

    @cached_property
    def roots(self) -> tuple[Tensor, Tensor]:
        """Square roots of the eigenvalues (D,) of the covariance, and its eigenvectors (D, D)."""
        values, vectors = torch.linalg.eigh(self.covariance)
        return values.clamp(min=0).sqrt(), vectors

    @cached_property
    def root(self) -> Tensor:
        """S^(1/2), (D, D)."""
        values, vectors = self.roots
        return (vectors * values) @ vectors.T


def _sizes(path: Path) -> dict[str, int]:
    """Bytes that each array of an .npz claims: a compressed one may claim more than there is memory."""
    if not path.is_file():
        raise FileNotFoundError
    with zipfile.ZipFile(path) as archive:
        return {info.filename: info.file_size for info in archive.infolist()}


def _check_size(sizes: dict[str, int], name: str, numbers: int) -> None:
    if (found := sizes.get(f"{name}.npy", 0)) > _HEADER + 16 * numbers:
        raise ValueError(f"{name} claims {found} bytes, more than {numbers} numbers")


@dataclass(frozen=True)
class Frechet:
    """A Frechet distance at a number of items.

    value: at `size` items, its standard error over fresh draws of them, and of the reference where that is a sample as well.
    unbiased: extrapolated to infinitely many items; NaN with a reason where there are too few.
    size: number of items.
    """

    value: Estimate
    unbiased: Estimate
    size: int


def frechet_to(features: Tensor, reference: Moments | Tensor, splits: int = 2, seed: int = 0, drawn: Tensor | None = None) -> Frechet:
    """Frechet distance of features to a reference's moments, with the error and the bias of so few items.

        d(S) = |mu - mu_r|^2 + tr(S + S_r - 2 (S_r^(1/2) S S_r^(1/2))^(1/2))

    (Heusel et al. 2017, arXiv:1706.08500, who take a network's features.) The standard error is that of the infinitesimal jackknife:
    an item x moves d by (phi(x) - mean phi)/N with

        phi(x) = 2 (mu - mu_r) (x - mu) + |x - mu|^2 - (x - mu)' S_r^(1/2) (S_r^(1/2) S S_r^(1/2))^(-1/2) S_r^(1/2) (x - mu).

    d at N items is too large by an amount that falls as 1/N, so that the value at N and the mean of those at random halves give the one at
    infinitely many: 2 d(N) - d(N/2) (Chong and Forsyth 2020, arXiv:1911.07023, fit the same line to more sizes). The bias of a reference
    of few items stays in both. Below N = 4 D the law does not hold, and nothing is said.

    Time: two decompositions of D x D and one for each half, and 6 N D^2 operations and more: seconds for D = 2,048. Measured by
    benchmarks/frechet_error.py: the value +- 1.96 std_error covers its mean in 0.92 to 1.0 (at zero distance the error is up to 1.5 times
    too wide), but in 0.63 for 48 items of a t law of four degrees of freedom; extrapolation leaves 6 to 9 % of the bias at N = 4 D and
    1 % at 16 D.

    Args:
        features: (N, D), N >= 4.
        reference: its moments, taken as exact; or its own features (M, D), whose error is then added.
        splits: number of random splits into halves, at least 1.
        seed: of the splits.
        drawn: where the reference is moments of a sample of known `count`: features (M, D) of some of its items, which tell its error.

    Raises:
        ValueError: fewer than four items, other widths, or values that are not finite.
    """
    check_count("splits", splits, 1)
    x = matrix("features", features, least=4)
    theirs = drawn if isinstance(reference, Moments) else reference
    theirs = None if theirs is None else matrix("reference", theirs, least=4)
    moments = reference if isinstance(reference, Moments) else Moments.of(reference)
    n, width = x.shape
    if width != moments.width:
        where = f" of {moments.source}" if moments.source else ""
        raise ValueError(f"the features have {width} numbers an item and the reference{where} {moments.width}; the same number is needed")
    mean = x.mean(0)
    centred, gap = x - mean, mean - moments.mean
    del x  # of 50,000 items of 2,048 features each copy is 0.8 GB
    # The roots of the eigenvalues of S_r^(1/2) S S_r^(1/2) are the singular values of these rows over (N - 1)^(1/2).
    projected = centred @ moments.root
    value, variance = _with_variance(centred, gap, projected, moments, theirs)
    error = math.sqrt(variance)
    if n < LEAST_TIMES * width:
        reason = f"{n} items; {LEAST_TIMES * width}, {LEAST_TIMES} times the number of features, are needed to tell the bias of so few"
        return Frechet(Estimate(value, error), Estimate(math.nan, math.nan, reason), n)
    whole, means = projected.T @ projected, []
    for (first, _), (second, _) in half_samples(n, 2, splits, seed):
        half = projected[first].T @ projected[first]
        rest = whole - half - sum(torch.outer(projected[k], projected[k]) for k in _neither(n, first, second))
        pair = zip((first, second), (half, rest), strict=True)
        means.append(sum(_of_rows(centred[rows], gap, projected[rows], gram, moments) for rows, gram in pair) / 2)
    # The halves' mean carries no linear part of its own: over splits it scatters by the quadratic one, which enters once more.
    spread = float(torch.tensor(means).std()) if splits > 1 else 0.0
    return Frechet(Estimate(value, error), Estimate(2 * value - sum(means) / splits, math.hypot(error, spread)), n)


def _neither(count: int, *parts: Tensor) -> list[int]:
    """The item that an odd number leaves over."""
    return sorted(set(range(count)).difference(*(part.tolist() for part in parts))) if count % 2 else []


def _of_rows(centred: Tensor, gap: Tensor, projected: Tensor, gram: Tensor, moments: Moments) -> float:
    """The distance of some of the items, from their rows, which stand around the mean of all, and the sum of their outer products."""
    n = len(centred)
    mean, shift = centred.mean(0), projected.mean(0)
    square = centred.square().sum() - n * mean.square().sum()
    roots = torch.linalg.eigvalsh(gram - n * torch.outer(shift, shift)).clamp(min=0).sqrt() / math.sqrt(n - 1)
    return _squared(gap + mean, square / (n - 1), moments, roots)


def _squared(gap: Tensor, total: Tensor, moments: Moments, roots: Tensor) -> float:
    """|gap|^2 + tr S + tr S_r - 2 tr (S_r^(1/2) S S_r^(1/2))^(1/2); rounding alone can make it negative."""
    return max(0.0, float(gap.square().sum() + total + moments.covariance.trace() - 2 * roots.sum()))


def _with_variance(centred: Tensor, gap: Tensor, projected: Tensor, moments: Moments, theirs: Tensor | None) -> tuple[float, float]:
    """The distance of all items and its variance."""
    n, width = centred.shape
    small = n <= width  # of the two matrices of products that have the same eigenvalues the smaller one
    squares, vectors = torch.linalg.eigh(projected @ projected.T if small else projected.T @ projected)
    kept = squares > _NEGLIGIBLE * squares[-1]
    roots, vectors = squares[kept].sqrt(), vectors[:, kept]
    value = _squared(gap, centred.square().sum() / (n - 1), moments, roots / math.sqrt(n - 1))
    directions = projected.T @ vectors / roots if small else vectors
    rows = _spaced(n)
    # Each item's share of the trace of the root: the squares of its left singular vectors, weighed.
    pulled = math.sqrt(n - 1) * ((projected[rows] @ directions).square() @ (1 / roots))
    influence = 2 * (centred[rows] @ gap) + centred[rows].square().sum(1) - pulled
    variance = float(influence.var()) / n
    if theirs is not None:
        rows = _spaced(len(theirs))
        y = theirs[rows] - moments.mean
        values, basis = moments.roots
        solid = values > math.sqrt(_NEGLIGIBLE) * values[-1]
        white = (y @ basis[:, solid] / values[solid]) @ basis[:, solid].T
        pulled = ((white @ directions).square() @ roots) / math.sqrt(n - 1)
        influence = -2 * (y @ gap) + y.square().sum(1) - pulled
        variance += float(influence.var()) / (moments.count or len(theirs))
    return value, variance


def _spaced(count: int) -> slice:
    return slice(None, None, -(-count // _MOST_ROWS))
