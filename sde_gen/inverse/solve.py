"""Linear systems of one sample each: what one of them needs is not touched by the others of its batch."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..shapes import expand_as


def dot(a: Tensor, b: Tensor) -> Tensor:
    """The inner product of each sample, (B, *) and (B, *) to (B,)."""
    return (a * b).flatten(1).sum(1)


def conjugate_gradients(product: Callable[[Tensor], Tensor], b: Tensor, iterations: int, tolerance: float) -> Tensor:
    """u with product(u) = b for a symmetric product that is positive where b lies, (B, *); Hestenes and Stiefel 1952.

    Each sample stops by itself once |b - product(u)| <= tolerance |b|, or where the product turns out not to be positive.
    """
    u, rest = torch.zeros_like(b), b
    along, size = rest, dot(rest, rest)
    enough = tolerance**2 * size
    for _ in range(iterations):
        going = size > enough
        if not bool(going.any()):
            break
        image = product(along)
        curve = dot(along, image)
        going = going & (curve > 0)
        step = torch.where(going, size / torch.where(going, curve, 1), 0)
        u = u + expand_as(step, b) * along
        rest = rest - expand_as(step, b) * image
        now = dot(rest, rest)
        along = torch.where(expand_as(going, b), rest + expand_as(now / size.clamp_min(torch.finfo(b.dtype).tiny), b) * along, along)
        size = torch.where(going, now, 0)  # a sample that has stopped goes on standing still
    return u


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
