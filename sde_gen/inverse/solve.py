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


def positive_factor(matrix: Tensor, floor: Tensor) -> Tensor:
    """Cholesky factors of symmetric matrices (B, M, M); where one is not positive, of it with eigenvalues held at `floor` (B,) or above."""
    factor, failed = torch.linalg.cholesky_ex(matrix)
    broken = failed > 0
    if bool(broken.any()):
        values, vectors = torch.linalg.eigh(torch.nan_to_num(matrix.detach()[broken]))
        held = torch.maximum(values, floor[broken, None])
        mended = torch.linalg.cholesky(
            vectors @ torch.diag_embed(held) @ vectors.mT + torch.diag_embed(1e-6 * held.amax(1, keepdim=True).expand_as(held))
        )
        factor = factor.clone()
        factor[broken] = mended
    return factor
