"""A loss that means something: by noise level, over that of the zero network."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..data import rows_drawn
from ..models.denoiser import only_valid
from ..models.moments import Moments
from ..models.score import ScoreModel

LEVELS = 16
MOST_SAMPLES = 128


@dataclass(frozen=True)
class Validation:
    """Held-out items with noise that never changes, at `LEVELS` values of the half log-SNR across the SDE's range.

    `measure` gives, for each level, the squared error of the denoised data over that of a zero network (which is 1.00 by
    definition), over valid entries; `linear` is the same for the best linear denoiser that knows no conditions, exact for Gaussian data.
    """

    x_0: Tensor
    times: list[float]
    levels: list[float]
    zero: list[float]
    linear: list[float]
    cond: dict[str, Tensor]
    seed: int = 0

    @classmethod
    def prepare(cls, model: ScoreModel, x_0: Tensor, moments: Moments, cond: dict[str, Tensor] | None = None, seed: int = 0) -> Validation:
        """Held-out data `x_0` (N, *) in normalised units, at most `MOST_SAMPLES` of them drawn by `seed`, with its baselines.

        moments: those of the training data.
        cond: the conditions (N, *) of these items, which the model is given with them.
        """
        sde = model.sde
        rows = rows_drawn(len(x_0), MOST_SAMPLES, seed)
        x_0 = x_0[rows]
        cond = {name: value[rows].to(x_0.device) for name, value in (cond or {}).items()}
        high, low = float(sde.half_log_snr(sde.t_min)), float(sde.half_log_snr(sde.t_max))
        lambdas = torch.linspace(low, high, LEVELS, dtype=torch.float64)
        times = sde.time_of(lambdas).clamp(sde.t_min, sde.t_max).tolist()
        x_0 = only_valid(x_0, model.valid(cond))
        start = cls(x_0, times, lambdas.tolist(), [], [], cond, seed)
        zero, linear = [], []
        moments = moments.to(x_0.device)
        for t, x, alpha, sigma in start._noised(model):
            skip = float(model.scales(torch.tensor(t, dtype=torch.float64)).skip)
            zero.append(float((skip * x - x_0).square().mean()))
            linear.append(float(only_valid(moments.denoise(x, alpha, sigma) - x_0, model.valid(cond)).square().mean()) / zero[-1])
        return cls(x_0, times, lambdas.tolist(), zero, linear, cond, seed)

    def _noised(self, model: ScoreModel) -> Iterator[tuple[float, Tensor, float, float]]:
        generator = torch.Generator(self.x_0.device).manual_seed(self.seed)
        for t in self.times:
            alpha, sigma = (float(value) for value in model.sde.marginal(torch.tensor(t, dtype=torch.float64)))
            noise = torch.randn(self.x_0.shape, generator=generator, device=self.x_0.device, dtype=self.x_0.dtype)
            yield t, only_valid(alpha * self.x_0 + sigma * noise, model.valid(self.cond)), alpha, sigma

    @torch.no_grad()
    def measure(self, model: ScoreModel, items: int | None = None) -> list[float]:
        """The model's squared error over the zero network's at each level; the model should be in evaluation mode.

        items: both of so many items alone, spread over all. None: all, whose zero network's errors are known already.
        """
        count = len(self.x_0)
        items = count if items is None else min(items, count)
        rows = torch.arange(items, device=self.x_0.device) * count // items  # they may lie sorted by class
        x_0, cond = self.x_0[rows], {name: value[rows] for name, value in self.cond.items()}
        ratios = []
        for (t, x, _, _), zero in zip(self._noised(model), self.zero, strict=True):
            error = float((model.denoise(x[rows], t, **cond) - x_0).square().mean())
            if items < count:
                skip = float(model.scales(torch.tensor(t, dtype=torch.float64)).skip)
                zero = float((skip * x[rows] - x_0).square().mean())
            ratios.append(error / zero)
        return ratios

    @torch.no_grad()
    def measure_each(self, model: ScoreModel) -> Tensor:
        """The terms of the means that `measure` gives, one for each item: (levels, n), float64."""
        states = zip(self._noised(model), self.zero, strict=True)
        rows = [(model.denoise(x, t, **self.cond) - self.x_0).double().square().flatten(1).mean(1) / zero for (t, x, _, _), zero in states]
        return torch.stack(rows)
