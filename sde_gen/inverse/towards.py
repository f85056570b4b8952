"""A step of the reverse SDE towards a measurement."""

from __future__ import annotations

import torch
from torch import Tensor

from .moment_matched import MomentMatched
from .tangents import rows


class Towards:
    """The solver's step p(x_s | x_t) = N(m, c^2 I) tilted by what the twist at s will be, as far as it is known at t.

        psi(x_s) = N(rest; J (x_s - m), noise + mu),   J = (b/c^2) diag(mu)^(1/2) G:   q = N(m + Q J^T (noise + mu)^-1 rest, Q)
        Q = (I/c^2 + J^T (noise + mu)^-1 J)^-1

    since D moves by (b/c^2) V (x_s - m), with V = G^T G along what is measured; see `MomentMatched` for G, mu and rest. The weights
    p/q are those of the solver's own steps, whatever V is: it makes them even, not right.

    columns: G, (B, k, D), or (P, k, D) where each block of B/P states shares it; slopes: (mu/(noise + mu))^(1/2), likewise;
    aim: rest/(noise + mu)^(1/2), (B, k). lead: what m moves by besides, times b, of the state's shape, or None.
    """

    def __init__(self, columns: Tensor, slopes: Tensor, aim: Tensor, lead: Tensor | None) -> None:
        self.columns, self.slopes, self.aim, self.lead = columns, slopes, aim, lead

    @classmethod
    def of(cls, found: MomentMatched) -> Towards:
        total = found.noise + found.mu
        slopes, blocks = (found.mu / total).sqrt(), len(found.columns)
        return cls(found.columns.flatten(2), slopes[:: len(slopes) // blocks], found.rest / total.sqrt(), found.lead)

    def taken(self, order: Tensor) -> Towards:
        # A block holds whole groups of particles, in which they are resampled.
        shared = len(self.columns) < len(self.aim)
        columns, slopes = (value if shared else value[order] for value in (self.columns, self.slopes))
        return Towards(columns, slopes, self.aim[order], None if self.lead is None else self.lead[order])

    def move(self, b: float, c: float, z: Tensor) -> tuple[Tensor, Tensor]:
        """What is added to m + c z for it to be a draw of q, of z's shape, and log p/q of that draw, (B,)."""
        steep, flat = b / c * self.slopes[..., None] * self.columns, z.flatten(1)
        values, vectors = torch.linalg.eigh(steep @ steep.mT)
        values = values.clamp_min(0)  # of J^T (noise + mu)^-1 J in units of 1/c^2
        along, aim = rows(vectors.mT, rows(steep, flat)), rows(vectors.mT, self.aim)
        values = values.repeat_interleave(len(z) // len(values), 0)
        root = torch.sqrt(1 + values)
        extra = rows(steep.mT, rows(vectors, aim / (1 + values) - along / (root * (1 + root))))
        if self.lead is not None:
            extra = extra + b / c * self.lead.flatten(1)
        gained = (extra * (2 * flat + extra)).double().sum(1) + torch.log1p(values).double().sum(1)
        return (c * extra).reshape(z.shape), -0.5 * gained
