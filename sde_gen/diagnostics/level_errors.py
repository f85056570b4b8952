"""Errors of denoisers by noise level on noised items, and the share of what can be learned that a denoiser has learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..exact.empirical import EmpiricalDenoiser
from ..metrics import Estimate
from ..models.denoiser import Denoiser
from ..models.moments import Moments
from .finding import std_error

LEVELS = 16
ITEMS, REFERENCE = 256, 2048
"""At most so many items are measured on, and so many others make the best simple denoisers."""
MOST = 10.0
"""An error counts as at most so many times the zero network's: one item that explodes must not stand for all."""
LEAST_LEARNABLE = 0.05
Denoise = Callable[[Tensor, float], Tensor]


@dataclass(frozen=True)
class Learned:
    """What a denoiser has learned, and what can be learned, of each of n items, as means over the noise levels.

    learned: the part of the zero network's error that is gone, (n,).
    learnable: the part that the best simple denoiser takes away, (n,).
    by_level: the denoiser's error over the zero network's at each level.
    """

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
        """The share of what can be learned that is learned, with its standard error over the items.

        It is 1 for the best simple denoiser, 0 for a network that answers 0, and negative for a worse one.
        """
        value = float(self.learned.mean()) / self.scale
        return Estimate(value, std_error(self.learned - value * self.learnable) / self.scale)


class LevelErrors:
    """Measures errors of denoisers on the same noised items, at `LEVELS` half log-SNRs spread evenly over the SDE's range.

    Beside a model's error stand those of two simple denoisers made of other items: the best linear one, and the optimal one of a
    finite data set (`EmpiricalDenoiser`). At each level the smaller of the two errors is what is known to be learnable.

    model: gives the SDE; its own errors are not measured yet.
    items: (n, *) in normalised units, best not trained on.
    reference: (m, *) others of the same distribution, without the items.
    labels: of items (n,) and of reference (m,), which models and simple denoisers then know too, or None.
    seed: seeds the noise, which is the same at every call.
    """

    def __init__(
        self, model: Denoiser, items: Tensor, reference: Tensor, labels: tuple[Tensor, Tensor] | None = None, seed: int = 0
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

        simple = (self.errors(self.linear_by_class()), self.errors(nearest))
        smaller = (simple[0].mean(1) <= simple[1].mean(1))[:, None]
        self.best = torch.where(smaller, *simple)

    def _groups(self) -> list[tuple[Tensor, Tensor]]:
        """Masks of the reference and of the items that belong together: those of one label, or all."""
        every = [torch.ones(len(part), dtype=torch.bool, device=part.device) for part in (self.reference, self.items)]
        if self.labels is None:
            return [(every[0], every[1])]
        groups = [(self.labels[1] == label, self.labels[0] == label) for label in self.labels[0].unique()]
        return groups if all(bool(of_reference.any()) for of_reference, _ in groups) else [(every[0], every[1])]

    def thinned(self, items: int, every: int) -> LevelErrors:
        """The same with the first `items` items and one in `every` levels: for many questions at a lower price."""
        part = object.__new__(LevelErrors)
        part.__dict__ |= self.__dict__
        part.items, part.lambdas, part.times = self.items[:items], self.lambdas[::every], self.times[::every]
        part.labels = None if self.labels is None else (self.labels[0][:items], self.labels[1])
        part.best = self.best[::every, :items]
        return part

    def marginal(self, t: float) -> tuple[float, float]:
        """alpha and sigma at `t`."""
        alpha, sigma = self.sde.marginal(torch.tensor(t, dtype=torch.float64))
        return float(alpha), float(sigma)

    def linear(self, x: Tensor, t: float) -> Tensor:
        """The best linear denoiser of the reference."""
        return self.moments.denoise(x, *self.marginal(t))

    def linear_by_class(self) -> Denoise:
        """The best linear denoiser of the reference that knows the items' labels: a mean for each class, one covariance for all."""
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
        """The time and the noised items of each level."""
        for t in self.times:
            alpha, sigma = self.marginal(t)
            generator = torch.Generator().manual_seed(self.seed + round(t * 1e6))
            noise = torch.randn(self.items.shape, generator=generator, dtype=torch.float64).to(self.items)
            yield t, alpha * self.items + sigma * noise

    @torch.no_grad()
    def errors(self, denoise: Denoise) -> Tensor:
        """The mean over dimensions of |denoise(x_t, t) - x_0|^2: (levels, n), float64, on the CPU."""
        rows = [(denoise(x, t) - self.items).double().square().flatten(1).mean(1) for t, x in self.states()]
        return torch.stack(rows).cpu()

    def denoiser(self, model: Denoiser, labels: Tensor | None = None) -> Denoise:
        """The model's denoiser, given `labels`; None gives the items' own, where there are any."""
        given = self.labels[0] if labels is None and self.labels is not None else labels
        cond = {} if given is None else {"label": given}
        return lambda x, t: model.denoise(x, t, **cond)

    def learned(self, model: Denoiser) -> Learned:
        """What `model` has learned.

        The unit at each level is the error of a network that answers 0 in the model's place, so that models of different predictions
        are each measured in the units of what they predict. A Denoiser without `scales` of its own is measured as one that predicts
        the data.
        """
        errors = self.errors(self.denoiser(model))
        scales = getattr(model, "scales", None)
        times = torch.tensor(self.times, dtype=torch.float64)
        skips = (torch.zeros_like(times) if scales is None else scales(times).skip).tolist()
        skip_at = dict(zip(self.times, skips, strict=True))
        zero = self.errors(lambda x, t: x * skip_at[t]).mean(1, keepdim=True)
        part = 1 - (errors / zero).nan_to_num(MOST, MOST).clamp_max(MOST)
        return Learned(part.mean(0), (1 - (self.best / zero).clamp_max(MOST)).mean(0), (errors.mean(1) / zero[:, 0]).tolist())
