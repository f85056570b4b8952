"""Data of whole numbers: what bounds on their likelihood share, of the flow and of the chain, and which data are such."""

from __future__ import annotations

import math

import torch
from torch import Tensor

_ROWS = 65_536  # at a time, so that no second copy of the data is made
_CERTAIN = 2.0**23  # float32 numbers beyond are whole whatever was measured


def check_levels(images: Tensor, levels: int | None) -> int:
    """The number of values that integer `images` (B, *) may take, 0 .. levels - 1 (None: 256, for uint8); ValueError where they
    cannot be such data."""
    check_batch(images)
    if levels is None:
        if images.dtype != torch.uint8:
            raise ValueError(f"levels must be given for {images.dtype}: how many values there are")
        levels = 256
    if isinstance(levels, bool) or not isinstance(levels, int) or levels < 2:
        raise ValueError(f"levels must be a whole number of at least 2, got {levels!r}")
    low, high = int(images.min()), int(images.max())
    if low < 0 or high >= levels:
        raise ValueError(f"values must be in 0 .. {levels - 1}, got {low} .. {high}")
    return levels


def check_batch(images: Tensor) -> None:
    """ValueError unless `images` is (B, *data shape) with at least one image."""
    if images.ndim < 2 or images.numel() == 0:
        raise ValueError(f"images must be (B, *data shape) with at least one image, got shape {tuple(images.shape)}")


def short(value: float) -> str:
    """A part of an error bar, to three places."""
    return "unknown" if math.isnan(value) else f"{value:.3f}" if abs(value) >= 0.001 or value == 0 else "< 0.001"


def whole_numbers(train: Tensor) -> tuple[bool, ...]:
    """Whether items are whole numbers: (D,) for vectors, else one answer. Large float32 numbers that could not be anything else do
    not count."""
    vectors = train.ndim == 2
    yes = torch.ones(train.shape[1] if vectors else 1, dtype=torch.bool)
    least = torch.full((len(yes),), math.inf, dtype=torch.float64)
    for first in range(0, len(train), _ROWS):
        rows = train[first : first + _ROWS].cpu()
        rows = rows if vectors else rows.reshape(-1, 1)
        yes &= (rows == rows.round()).all(0)
        least = torch.minimum(least, rows.abs().amin(0).double())
        if not bool(yes.any()):
            break
    certain = (least < _CERTAIN) | torch.tensor(train.dtype == torch.float64)
    return tuple((yes & certain).tolist())
