"""Convolutions over one to three axes, of which some may be circles."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

CONV: dict[int, type[nn.Conv1d | nn.Conv2d | nn.Conv3d]] = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
AXES = {1: "L", 2: "HW", 3: "DHW"}
"""The letters of the axes of space, by their number."""


def periodic_axes(spatial: int, periodic: Sequence[str]) -> tuple[int, ...]:
    """The axes of space, numbered from 0, that these letters name. Raises ValueError for a letter that names none, or twice."""
    letters = AXES[spatial]
    given = list(periodic)
    if any(letter not in letters for letter in given) or len(set(given)) < len(given):
        allowed = ", ".join(letters)
        raise ValueError(f"periodic must name axes among {allowed} of data with {spatial} of space, each once, got {given}")
    return tuple(sorted(letters.index(letter) for letter in given))


def convolution(spatial: int, channels: int, out_channels: int, stride: int = 1, periodic: Sequence[int] = ()) -> nn.Module:
    """A convolution of 3 along each of `spatial` axes, which keeps the size at stride 1: beyond the ends of the `periodic` axes lies what
    is at the other end, beyond those of the others zeros."""
    if not periodic:
        return CONV[spatial](channels, out_channels, 3, stride=stride, padding=1)
    return _CIRCULAR[spatial](channels, out_channels, stride, periodic)


class _Circular:
    """What the convolutions below share: a rim of one along the periodic axes in the place of padding."""

    periodic: tuple[int, ...]

    def __init__(self, channels: int, out_channels: int, stride: int, periodic: Sequence[int]) -> None:
        padding = tuple(0 if axis in periodic else 1 for axis in range(self.axes))
        super().__init__(channels, out_channels, 3, stride=stride, padding=padding)  # type: ignore[call-arg]
        self.periodic = tuple(periodic)

    axes: int

    def forward(self, x: Tensor) -> Tensor:
        for axis in self.periodic:
            size = x.shape[axis + 2]
            x = torch.cat((x.narrow(axis + 2, size - 1, 1), x, x.narrow(axis + 2, 0, 1)), axis + 2)
        found: Tensor = super().forward(x)  # type: ignore[misc]
        return found


class Circular1d(_Circular, nn.Conv1d):
    axes = 1


class Circular2d(_Circular, nn.Conv2d):
    axes = 2


class Circular3d(_Circular, nn.Conv3d):
    axes = 3


_CIRCULAR: dict[int, Any] = {1: Circular1d, 2: Circular2d, 3: Circular3d}
