"""Patches as channels: space to depth and back, for 1-D, 2-D and 3-D data of any size."""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor
from torch.nn import functional as F


def patch_grid(size: Sequence[int], patch: int) -> list[int]:
    """How many patches of edge `patch` cover each axis, the last one perhaps in part."""
    return [-(-n // patch) for n in size]


def fold(x: Tensor, patch: int) -> Tensor:
    """Space to depth, (B, C, *size) -> (B, C patch^axes, *patch_grid(size, patch)).

    Sizes that `patch` does not divide are padded with zeros at their end. The new channels run over C first, then over the
    place in the patch, its last axis fastest (Shi et al. 2016, arXiv:1609.05158, the other way).
    """
    if patch == 1:
        return x
    axes = x.dim() - 2
    grid = patch_grid(x.shape[2:], patch)
    padding = [n * patch - size for n, size in zip(grid, x.shape[2:], strict=True)]
    if any(padding):
        x = F.pad(x, [amount for pad in reversed(padding) for amount in (0, pad)])
    for axis, n in enumerate(grid):
        x = x.unflatten(2 + 2 * axis, (n, patch))
    # (B, C, n_1, p_1, n_2, p_2, ...) -> (B, C, p_1, p_2, ..., n_1, n_2, ...)
    counts, edges = range(2, 2 + 2 * axes, 2), range(3, 3 + 2 * axes, 2)
    return x.permute(0, 1, *edges, *counts).flatten(1, 1 + axes)


def unfold(h: Tensor, patch: int, size: Sequence[int]) -> Tensor:
    """Depth to space, the inverse of `fold`: (B, C patch^axes, *patch_grid(size, patch)) -> (B, C, *size), the padding cropped."""
    if patch == 1:
        return h
    axes = len(size)
    h = h.unflatten(1, (-1, *[patch] * axes))
    # (B, C, p_1, p_2, ..., n_1, n_2, ...) -> (B, C, n_1, p_1, n_2, p_2, ...)
    h = h.permute(0, 1, *[place for axis in range(axes) for place in (2 + axes + axis, 2 + axis)])
    for axis, length in enumerate(size):
        h = h.flatten(2 + axis, 3 + axis).narrow(2 + axis, 0, length)
    return h
