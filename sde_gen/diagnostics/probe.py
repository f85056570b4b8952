"""How much of what can be learned of some data a score model has learned, with error bars, whatever its output stands for."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..exact.empirical import EmpiricalDenoiser
from ..metrics import Estimate
from ..models.moments import Moments
from ..models.score import ScoreModel
from .findings import std_error

LEVELS = 16
ITEMS, REFERENCE = 256, 2048
"""Items that errors are measured on, and others that the best simple denoisers are made of."""
MOST = 10.0
"""An error counts as at most so many times the zero network's: one item that explodes must not stand for all."""
LEAST_LEARNABLE = 0.05
Denoise = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Learned:
    """Of each item, as means over the noise levels: `learned`, the part of the zero network's error that is gone, and `learnable`, the
    part that the best simple denoiser takes away, both (n,); by_level: the errors over the zero network's."""

    learned: Tensor
    learnable: Tensor
    by_level: list[float]

    @property
    def excess(self) -> Tensor:
        """The error above the best simple denoiser's, (n,)."""
        return self.learnable - self.learned

    @property
    def scale(self) -> float:
        """The mean of `learnable`, or `LEAST_LEARNABLE` where there is next to nothing to learn."""
        return max(float(self.learnable.mean()), LEAST_LEARNABLE)

    @property
    def share(self) -> Estimate:
        """1: as good as the best simple denoiser; 0: as a network that answers 0; below: worse. With the error over items."""
        value = float(self.learned.mean()) / self.scale
        return Estimate(value, std_error(self.learned - value * self.learnable) / self.scale)


class Probe:
    """Items of a data set with noise that never changes, at levels of the half log-SNR across the SDE's range.

    items: (n, *) in normalised units, best not trained on; reference: (m, *), others of the same distribution, without the items;
    labels: of both, which the baselines then know too, or None. Beside a model's error stand those of the best linear denoiser and of
    the optimal denoiser of `reference` (`EmpiricalDenoiser`); at each level the smaller of the two is what is known to be learnable.
    """

    def __init__(
        self, model: ScoreModel, items: Tensor, reference: Tensor, labels: tuple[Tensor, Tensor] | None = None, seed: int = 0
    ) -> None:
        sde = model.sde
        self.sde, self.items, self.reference, self.labels, self.seed = sde, items, reference, labels, seed
        high, low = float(sde.half_log_snr(sde.t_min)), float(sde.half_log_snr(sde.t_max))
        self.lambdas = torch.linspace(high, low, LEVELS, dtype=torch.float64)
        self.times: list[float] = sde.time_of(self.lambdas).clamp(sde.t_min, sde.t_max).tolist()
        self.moments = Moments.fit(reference)
        groups = self._groups()
        denoisers = [EmpiricalDenoiser(reference[of_reference], sde).to(items.device) for of_reference, _ in groups]

        def nearest(x: Tensor, t: float) -> Tensor:
            denoised = torch.empty_like(x)
            for denoiser, (_, mine) in zip(denoisers, groups, strict=True):
                denoised[mine] = denoiser(x[mine], x.new_full((int(mine.sum()),), t, dtype=torch.float64))
            return denoised

        known = (self.errors(self.told_linear()), self.errors(nearest))
        smaller = (known[0].mean(1) <= known[1].mean(1))[:, None]
        self.best = torch.where(smaller, *known)

    def _groups(self) -> list[tuple[Tensor, Tensor]]:
        """Which of the reference and of the items belong together: those of one label, or all."""
        every = [torch.ones(len(part), dtype=torch.bool, device=part.device) for part in (self.reference, self.items)]
        if self.labels is None:
            return [(every[0], every[1])]
        groups = [(self.labels[1] == label, self.labels[0] == label) for label in self.labels[0].unique()]
        return groups if all(bool(of_reference.any()) for of_reference, _ in groups) else [(every[0], every[1])]

    def thinned(self, items: int, every: int) -> Probe:
        """The same with the first `items` items and every so many of the levels: for many questions at a lower price."""
        part = object.__new__(Probe)
        part.__dict__ |= self.__dict__
        part.items, part.lambdas, part.times = self.items[:items], self.lambdas[::every], self.times[::every]
        part.labels = None if self.labels is None else (self.labels[0][:items], self.labels[1])
        part.best = self.best[::every, :items]
        return part

    def marginal(self, t: float) -> tuple[float, float]:
        """alpha and sigma."""
        alpha, sigma = self.sde.marginal(torch.tensor(t, dtype=torch.float64))
        return float(alpha), float(sigma)

    def linear(self, x: Tensor, t: float) -> Tensor:
        """The best linear denoiser of the reference."""
        return self.moments.denoise(x, *self.marginal(t))

    def told_linear(self) -> Denoise:
        """The best linear denoiser of the reference that knows the items' labels, with one covariance for all classes."""
        groups = self._groups()
        own, centred = torch.empty_like(self.items), self.reference.clone()
        for of_reference, mine in groups:
            mean = self.reference[of_reference].mean(0)
            own[mine] = mean
            centred[of_reference] -= mean
        within = Moments.fit(centred[torch.stack([of_reference for of_reference, _ in groups]).any(0)])

        def denoise(x: Tensor, t: float) -> Tensor:
            alpha, sigma = self.marginal(t)
            return own + within.denoise(x - alpha * own, alpha, sigma)

        return denoise

    def states(self) -> Iterator[tuple[float, Tensor]]:
        """Each level's time and noised items."""
        for t in self.times:
            alpha, sigma = self.marginal(t)
            generator = torch.Generator().manual_seed(self.seed + round(t * 1e6))
            noise = torch.randn(self.items.shape, generator=generator, dtype=torch.float64).to(self.items)
            yield t, alpha * self.items + sigma * noise

    @torch.no_grad()
    def errors(self, denoise: Denoise) -> Tensor:
        """Mean over dimensions of |denoise(x_t, t) - x_0|^2: (levels, n) float64 on the CPU."""
        rows = [(denoise(x, t) - self.items).double().square().flatten(1).mean(1) for t, x in self.states()]
        return torch.stack(rows).cpu()

    def denoiser(self, model: ScoreModel, labels: Tensor | None = None) -> Denoise:
        """The model's, told `labels` (None: the items' own, where the model takes any)."""
        given = self.labels[0] if labels is None and self.labels is not None else labels
        cond = {} if given is None else {"label": given}
        return lambda x, t: model.denoise(x, t, **cond)

    def learned(self, model: ScoreModel, labels: Tensor | None = None) -> Learned:
        """What `model` has learned. The unit at each level is the error of a network that answers 0 in the model's place, so that models
        of different predictions are each measured in the units of what they predict."""
        return self.compare(model, self.errors(self.denoiser(model, labels)))

    def compare(self, model: ScoreModel, errors: Tensor) -> Learned:
        """`errors` (levels, n) in the units of `model`'s zero network."""
        skips = model.scales(torch.tensor(self.times, dtype=torch.float64)).skip.tolist()
        skip_at = dict(zip(self.times, skips, strict=True))
        zero = self.errors(lambda x, t: x * skip_at[t]).mean(1, keepdim=True)
        part = 1 - (errors / zero).nan_to_num(MOST, MOST).clamp_max(MOST)
        return Learned(part.mean(0), (1 - (self.best / zero).clamp_max(MOST)).mean(0), (errors.mean(1) / zero[:, 0]).tolist())
