"""Pictures moved about a little, so that a tower does not learn them by heart."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F


@dataclass(frozen=True)
class Jitter:
    """Random moves of images, each image's own, uniform between plus and minus these; what comes in from outside is the rim's colour.

    shift: of the edge. scale: of the size, a factor 1 +- scale. turn: degrees. contrast: a factor 1 +- contrast about each channel's mean.
    """

    shift: float = 0.1
    scale: float = 0.15
    turn: float = 10.0
    contrast: float = 0.0

    def __call__(self, x: Tensor, mirrored: Tensor | None = None) -> Tensor:
        """Images (B, C, H, W) moved, drawn from torch's global generator.

        mirrored: (B,) Boolean, those that may be turned left to right, half of the time; None: none."""
        count = len(x)

        def drawn(size: float, *shape: int) -> Tensor:
            return size * (2 * torch.rand(count, *shape, device=x.device) - 1)

        angle, factor = drawn(math.radians(self.turn)), 1 / (1 + drawn(self.scale))
        flip = torch.ones(count, device=x.device)
        if mirrored is not None:
            flip = torch.where(mirrored & (torch.rand(count, device=x.device) < 0.5), -1.0, 1.0)
        rows = (
            torch.stack([angle.cos() * flip, -angle.sin(), angle.sin() * flip, angle.cos()], 1).reshape(count, 2, 2) * factor[:, None, None]
        )
        moves = torch.cat([rows, drawn(2 * self.shift, 2, 1)], dim=2)
        moved = F.grid_sample(x, F.affine_grid(moves, list(x.shape), align_corners=False), padding_mode="border", align_corners=False)
        if self.contrast > 0:
            mean = moved.mean((2, 3), keepdim=True)
            moved = mean + (moved - mean) * (1 + drawn(self.contrast, 1, 1, 1))
        return moved
