"""Linear systems of one sample each: what one of them needs is not touched by the others of its batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor

from ..shapes import expand_as


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, (B, *) and (B, *) to (B,)."""
    return (a * b).flatten(1).sum(1)


def _approached(product: Callable[[Tensor], Tensor], b: Tensor, tolerance: float) -> Iterator[tuple[Tensor, Tensor]]:
    """The iterates u of conjugate gradients for product(u) = b, and which samples are not there yet, (B,); Hestenes and Stiefel 1952.

    A sample that is there stands still: |b - product(u)| <= tolerance |b|, or the product turned out not to be positive.
    """
    u, rest = torch.zeros_like(b), b
    along, size = rest, dot(rest, rest)
    enough = tolerance**2 * size
    while True:
        going = size > enough
        yield u, going
        image = product(along)
        curve = dot(along, image)
        going = going & (curve > 0)
        step = torch.where(going, size / torch.where(going, curve, 1), 0)
        u = u + expand_as(step, b) * along
        rest = rest - expand_as(step, b) * image
        now = dot(rest, rest)
        along = torch.where(expand_as(going, b), rest + expand_as(now / size.clamp_min(torch.finfo(b.dtype).tiny), b) * along, along)
        size = torch.where(going, now, 0)  # a sample that has stopped goes on standing still


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float) -> Tensor:
    """u with product(u) = b for a symmetric product that is positive where b lies, (B, *).

    Each sample stops by itself once |b - product(u)| <= tolerance |b|. The number of iterations is fixed: nothing waits for a device.
    """
    approached = _approached(product, b, tolerance)
    u, _ = next(approached)
    for _ in range(iterations):
        u, _ = next(approached)
    return u


def iterations_needed(product: Callable[[Tensor], Tensor], b: Tensor, most: int, tolerance: float) -> int:
    """After how many iterations all samples of `conjugate_gradients` have stopped, at most `most`. It asks the device each time: a plan."""
    for count, (_, going) in zip(range(most), _approached(product, b, tolerance), strict=False):
        if not bool(going.any()):
            return count
    return most


def krylov(along: Callable[[Tensor], tuple[Tensor, Tensor]], start: Tensor, size: int) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """Orthonormal directions (B, size, M) of the Krylov space of start (B, M) under the product along(u)[1], and along(u) of each.

    A direction is 0 where a sample's space has ended. Lanczos 1950, with full orthogonalisation.
    """
    basis: list[Tensor] = []
    pairs: list[tuple[Tensor, Tensor]] = []
    u, scale = start, start.norm(dim=1, keepdim=True)
    for _ in range(size):
        length = u.norm(dim=1, keepdim=True)
        ended = length <= 1e-5 * scale
        u = torch.where(ended, 0, u / torch.where(ended, 1, length))
        basis.append(u)
        pairs.append(along(u))
        u = pairs[-1][1]
        scale = u.norm(dim=1, keepdim=True)
        for _ in range(2):
            for known in basis:
                u = u - (u * known).sum(1, keepdim=True) * known
    return torch.stack(basis, 1), pairs
