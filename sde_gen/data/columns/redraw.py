"""Features of a table's rows with new draws in every cell, so that a training does not learn the draws of one encoding."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sde_gen.data.columns.codec import Codec
from sde_gen.data.columns.gaps import Gaps
from sde_gen.data.columns.kinds import RING, Angle, Category, Fraction, Integer, Kind, ZeroInflated

LEAST = 2.0**-54
"""In the place of a uniform draw of 0, whose normal score is infinite."""


class Redraw:
    """Other features of the same rows: `redraw(x, u)` draws anew what `Codec.encode` drew, from uniform numbers that it is given.

    x: features (B, D) as `Codec.encode` gives them. u: (B, D) of [0, 1), of x's dtype and device; an entry of the result depends on those
    of its own column alone. Values that are no draws stay to the last bit but for the cosine and sine of an angle, which keep its direction.
    """

    def __init__(self, codec: Codec) -> None:
        self.below, self.above = torch.full((codec.width,), -math.inf), torch.full((codec.width,), math.inf)
        """A feature is in a cell of width 1 where it is less than the first or at least the second."""
        self.angles: list[tuple[int, float | None]] = []  # place of the cosine; arcs in a turn
        self.gaps: list[tuple[int, Gaps]] = []  # place of the feature that says whether the value is there
        for kind, place in zip(codec.kinds, codec.places, strict=True):
            self._add(kind, place.start)

    def _add(self, kind: Kind, first: int) -> None:
        if isinstance(kind, Gaps):
            self.above[first] = -math.inf
            self.gaps.append((first, kind))
            self._add(kind.inner, first + 1)
        elif isinstance(kind, Integer | Category):
            self.above[first : first + kind.width] = -math.inf
        elif isinstance(kind, ZeroInflated):
            self.below[first] = 0.0
        elif isinstance(kind, Fraction):
            self.below[first] = 0.0 if kind.ends[0] else -math.inf
            self.above[first] = 1.0 if kind.ends[1] else math.inf
        elif isinstance(kind, Angle):
            self.angles.append((first, None if kind.step is None else kind.period / kind.step))

    def __call__(self, x: Tensor, u: Tensor) -> Tensor:
        below, above = self.below.to(x), self.above.to(x)
        found = torch.where((x < below) | (x >= above), x.floor() + u, x)
        normal = torch.special.ndtri(u.clamp_min(LEAST))
        for first, arcs in self.angles:
            turn = torch.atan2(x[:, first + 1], x[:, first]) / (2 * math.pi) % 1.0
            turn = turn if arcs is None else ((turn * arcs).floor() + u[:, first]) / arcs
            radius = torch.exp(RING * normal[:, first + 1])
            found[:, first], found[:, first + 1] = radius * torch.cos(2 * math.pi * turn), radius * torch.sin(2 * math.pi * turn)
        for first, kind in self.gaps:
            drawn = x.new_tensor(kind.mean) + x.new_tensor(kind.std) * normal[:, first + 1 : first + kind.width]
            if kind.inner.domain != "line":
                drawn = torch.exp(drawn) if kind.inner.domain == "positive" else torch.sigmoid(drawn)
            place = slice(first + 1, first + kind.width)
            found[:, place] = torch.where(x[:, first, None] >= 1, drawn, found[:, place])
        return found
