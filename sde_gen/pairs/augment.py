"""Pictures moved about a little and captions said in fewer words, so that no tower learns them by heart."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from ..conditions.tokenizer import words_of


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


SIDED = frozenset(
    ("left", "right", "clockwise", "anticlockwise", "counterclockwise", "east", "west", "clock", "oclock", "arrow", "arrows", "keycap")
    + ("button", "symbol", "sign", "mark", "letter", "letters", "number", "numbers", "flag", "input", "abc", "japanese", "moon")
)
"""Words of captions whose pictures say something else in a mirror."""


def may_be_mirrored(caption: str) -> bool:
    """Whether none of a caption's words is about sides or signs (`SIDED`)."""
    return not SIDED & set(words_of(caption))


def shorter(caption: str, count: int, seed: int = 0) -> list[str]:
    """Variants of a caption of several phrases with commas between: the caption itself, the one of its first and last phrase alone, and
    count - 2 in which some of the others stand between these, drawn by the seed and in a random order."""
    first, *middle = [phrase.strip() for phrase in caption.split(",")]
    last = [middle.pop()] if middle else []
    generator = random.Random(f"{seed} {caption}")
    chosen = [middle, [], *(generator.sample(middle, generator.randint(0, len(middle))) for _ in range(count - 2))]
    return [", ".join([first, *some, *last]) for some in chosen[:count]]
