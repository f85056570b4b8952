"""Features of a table's rows with new draws in every cell, so that a training does not learn the draws of one encoding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_gen.data.columns.codec import Codec
from sde_gen.data.columns.gaps import Apart
from sde_gen.data.columns.kinds import RING, Angle, Category, Fraction, Integer, Kind, ZeroInflated

LEAST = 2.0**-54
"""In the place of a uniform draw of 0, whose normal score is infinite."""


class Redraw:
    """Other features of the same rows: `redraw(x, u)` draws anew what `Codec.encode` drew, from uniform numbers that it is given.

    x: features (B, D) as `Codec.encode` gives them. u: (B, D) of [0, 1), of x's dtype and device; an entry of the result depends on those
    of its own column alone. Features that are no draws stay to the last bit; cosine and sine of an angle keep their direction.
    """

    def __init__(self, codec: Codec) -> None:
        self.below, self.above = torch.full((codec.width,), -math.inf), torch.full((codec.width,), math.inf)
        """A feature is in a cell of width 1 where it is less than the first or at least the second."""
        self.fill = torch.ones(codec.width, dtype=torch.float64)
        """The share of its cell in which it is drawn."""
        self.angles: list[tuple[int, float | None]] = []  # place of the cosine; arcs in a turn
        self.apart: list[tuple[int, Apart]] = []  # place of the feature that says whether the value stands apart
        for kind, place in zip(codec.kinds, codec.places, strict=True):
            self._add(kind, place.start)

    def _add(self, kind: Kind, first: int) -> None:
        if isinstance(kind, Apart):
            self.above[first], self.fill[first] = -math.inf, kind.fill
            self.apart.append((first, kind))
            self._add(kind.inner, first + 1)
        elif isinstance(kind, Integer | Category):
            self.above[first : first + kind.width] = -math.inf
            if isinstance(kind, Category):
                self.fill[first : first + kind.width] = kind.fill
        elif isinstance(kind, ZeroInflated):
            self.below[first] = 0.0
        elif isinstance(kind, Fraction):
            self.below[first] = 0.0 if kind.ends[0] else -math.inf
            self.above[first] = 1.0 if kind.ends[1] else math.inf
        elif isinstance(kind, Angle):
            self.angles.append((first, None if kind.step is None else kind.period / kind.step))

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        below, above, fill = self.below.to(x), self.above.to(x), self.fill.to(x)
        found = torch.where((x < below) | (x >= above), x.floor() + ((1 - fill) / 2 + fill * u), x)
        normal = torch.special.ndtri(u.clamp_min(LEAST))
        for first, arcs in self.angles:
            turn = torch.atan2(x[:, first + 1], x[:, first]) / (2 * math.pi) % 1.0
            turn = turn if arcs is None else ((turn * arcs).floor() + u[:, first]) / arcs
            radius = torch.exp(RING * normal[:, first + 1])
            found[:, first], found[:, first + 1] = radius * torch.cos(2 * math.pi * turn), radius * torch.sin(2 * math.pi * turn)
        for first, kind in self.apart[::-1]:  # the innermost first
            place, drawn = slice(first + 1, first + kind.width), []
            for k, (domain, mean, std) in enumerate(zip(kind.drawn, kind.mean, kind.std, strict=True)):
                y = mean + std * normal[:, first + 1 + k]
                drawn.append(y if domain == "line" else torch.exp(y) if domain == "positive" else torch.sigmoid(y))
            found[:, place] = torch.where(x[:, first, None] >= 1, torch.stack(drawn, 1), found[:, place])
        return found
