"""A measurement y = A(x) + noise: its likelihood, and its simulation."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..randomness import NoiseStream, check_seed
from .noise import Noise
from .operators import Operator

MEASURED = "measured"
"""The name under which a measurement y (B, *) goes among the conditions: sample(method, ..., cond={"measured": y})."""


class Measurement:
    """An operator and its noise: p(y | x) for data x (B, *data shape) in their own units and measurements y (B, *measured shape).

    Entries of y that are NaN, and those that the operator does not measure, are gaps: they count nowhere.

    Raises TypeError where operator or noise are none.
    """

    def __init__(self, operator: Operator, noise: Noise) -> None:
        if not isinstance(operator, Operator):
            raise TypeError(f"operator must be an Operator such as Mask, Matrix or Function, got {type(operator).__name__}")
        if not isinstance(noise, Noise):
            raise TypeError(f"noise must be a Noise such as Gaussian(0.1), got {type(noise).__name__}")
        self.operator, self.noise = operator, noise

    def clean(self, x: Tensor) -> Tensor:
        """A(x), (B, *measured shape), checked.

        Raises TypeError where the operator gives no tensor of x's dtype, ValueError where its first dimension is not x's.
        """
        found = self.operator(x)
        name = type(self.operator).__name__
        if not isinstance(found, Tensor) or found.dtype != x.dtype:
            kind = str(found.dtype) if isinstance(found, Tensor) else type(found).__name__
            raise TypeError(f"the operator {name} must give a tensor of its argument's dtype, {x.dtype}, got {kind}")
        if found.ndim < 2 or len(found) != len(x):
            raise ValueError(f"the operator {name} must give (B, *measured shape) with B = {len(x)}, got {tuple(found.shape)}")
        return found

    def seen(self, y: Tensor, shape: Sequence[int]) -> Tensor:
        """Which entries of y (B, *measured shape) of data of this sample shape are measured, bool, as y."""
        kept = self.operator.kept(shape)
        return ~torch.isnan(y) if kept is None else ~torch.isnan(y) & kept.to(y.device)

    def log_prob(self, y: Tensor, x: Tensor) -> Tensor:
        """log p(y | x) in nats, (B,), over the entries that are measured; differentiable in x."""
        clean = self.clean(x)
        if y.shape != clean.shape:
            raise ValueError(f"y must have shape {tuple(clean.shape)}, as the operator gives, got {tuple(y.shape)}")
        seen = self.seen(y, x.shape[1:])
        # Gaps hold 0 on both sides, so that no NaN reaches a gradient.
        each = self.noise.log_prob(torch.where(seen, y, 0).to(clean.dtype), torch.where(seen, clean, 0))
        return torch.where(seen, each, 0).flatten(1).sum(1)

    def simulate(self, x: Tensor, seed: int = 0, index_offset: int = 0) -> Tensor:
        """A measurement of each sample, (B, *measured shape), NaN where the operator does not measure.

        seed, index_offset: the noise of sample i is a function of (seed, index_offset + i) alone.
        """
        clean = self.clean(x.detach())
        stream = NoiseStream(check_seed(seed) ^ _OF_SIMULATION, index_offset, len(x), clean.shape[1:], clean.dtype, x.device)
        y = self.noise.simulate(clean, stream.draw())
        kept = self.operator.kept(x.shape[1:])
        return y if kept is None else torch.where(kept.to(y.device), y, torch.nan)


_OF_SIMULATION = 0x51D6A7E5
"""Told from the seed of samples, so that a sample and its measurement's noise have no number in common."""
