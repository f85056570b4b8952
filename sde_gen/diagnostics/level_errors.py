"""Errors of denoisers by noise level on noised items, and the share of what can be learned that a denoiser has learned."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
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
LEAST_LEARNABLE = 0.01
ATOMS, MOST_COLUMNS, HELD = 512, 1024, 1 << 22
"""Quantiles that stand for a column's distribution, fewer for many columns; the most columns that are looked at one by one; and the
numbers held meanwhile."""
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

    Beside a model's error stand those of simple denoisers made of other items: the best linear one, the optimal one of a finite data
    set (`EmpiricalDenoiser`) and, where asked for, the optimal one of each entry on its own, as if entries were independent. At each
    level the smallest of these errors is what is known to be learnable.

    model: gives the SDE; its own errors are not measured yet.
    items: (n, *) in normalised units, best not trained on.
    reference: (m, *) others of the same distribution, without the items.
    cond: conditions of the items, (n, *) each by name, which models are told, and of the reference, (m, *) each; simple denoisers know of
        them the "label".
    seed: seeds the noise, which is the same at every call.
    """

    def __init__(
        self,
        model: Denoiser,
        items: Tensor,
        reference: Tensor,
        cond: tuple[Mapping[str, Tensor], Mapping[str, Tensor]] = ({}, {}),
        seed: int = 0,
    ) -> None:
        sde = model.sde
        self.sde, self.items, self.reference, self.seed = sde, items, reference, seed
        self.cond = dict(cond[0])
        self.labels = (cond[0]["label"], cond[1]["label"]) if all("label" in part for part in cond) else None
        high, low = float(sde.half_log_snr(sde.t_min)), float(sde.half_log_snr(sde.t_max))
        self.lambdas = torch.linspace(high, low, LEVELS, dtype=torch.float64)
        self.times: list[float] = sde.time_of(self.lambdas).clamp(sde.t_min, sde.t_max).tolist()
        self.moments = Moments.fit(reference)
        groups = self._groups()
        nearest = [_nearest(EmpiricalDenoiser(reference[of_reference], sde).to(items.device)) for of_reference, _ in groups]
        errors = [self.errors(self.linear_by_class()), self.errors(self._by_group(nearest))]
        self.best = self.best_with_columns = _smallest(errors)
        if items[0].numel() <= MOST_COLUMNS:
            columns = [self._by_column(reference[of_reference]) for of_reference, _ in groups]
            self.best_with_columns = _smallest([*errors, self.errors(self._by_group(columns))])

    def _by_group(self, denoisers: list[Denoise]) -> Denoise:
        """Each item's denoised state by the denoiser of its group."""
        groups = self._groups()

        def denoise(x: Tensor, t: float) -> Tensor:
            denoised = torch.empty_like(x)
            for denoiser, (_, mine) in zip(denoisers, groups, strict=True):
                denoised[mine] = denoiser(x[mine], t)
            return denoised

        return denoise

    def _by_column(self, reference: Tensor) -> Denoise:
        """E[x_0j | x_tj] of each entry j on its own, of the distribution of that entry in `reference`, which quantiles stand for."""
        flat = reference.flatten(1)
        count = min(len(flat), max(32, ATOMS * 64 // max(64, flat.shape[1])))
        middles = (torch.arange(count, dtype=flat.dtype, device=flat.device) + 0.5) / count
        atoms = torch.quantile(flat, middles, dim=0).T  # (D, count)

        def denoise(x: Tensor, t: float) -> Tensor:
            alpha, sigma = self.marginal(t)
            states, parts = x.flatten(1), []
            for columns in torch.arange(len(atoms)).split(max(1, HELD // (len(x) * count))):
                values = atoms[columns]
                weight = (-((states[:, columns, None] - alpha * values) ** 2) / (2 * sigma**2)).softmax(2)
                parts.append((weight * values).sum(2))
            return torch.cat(parts, 1).reshape(x.shape)

        return denoise

    def _groups(self) -> list[tuple[Tensor, Tensor]]:
        """Masks of the reference and of the items that belong together: those of one label, or all."""
        every = [torch.ones(len(part), dtype=torch.bool, device=part.device) for part in (self.reference, self.items)]
        if self.labels is None:
            return [(every[0], every[1])]
        groups = [(self.labels[1] == label, self.labels[0] == label) for label in self.labels[0].unique()]
        return groups if all(bool(of_reference.any()) for of_reference, _ in groups) else [(every[0], every[1])]

    def thinned(self, items: int, every: int) -> LevelErrors:
        """The same with `items` of the items, evenly spaced as they may be sorted, and one in `every` levels: for many questions at a
        lower price."""
        part = object.__new__(LevelErrors)
        part.__dict__ |= self.__dict__
        count = min(items, len(self.items))
        rows = torch.arange(count) * len(self.items) // count
        on_device = rows.to(self.items.device)
        part.items, part.lambdas, part.times = self.items[on_device], self.lambdas[::every], self.times[::every]
        part.cond = {name: value[on_device] for name, value in self.cond.items()}
        part.labels = None if self.labels is None else (self.labels[0][on_device], self.labels[1])
        part.best, part.best_with_columns = self.best[::every, rows], self.best_with_columns[::every, rows]
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

    def denoiser(self, model: Denoiser, **changed: Tensor) -> Denoise:
        """The model's denoiser, told the items' conditions, or others in the place of those that are `changed`."""
        cond = self.cond | changed
        return lambda x, t: model.denoise(x, t, **cond)

    def learned(self, model: Denoiser, columns: bool = False) -> Learned:
        """What `model` has learned; `columns`: beside what simple denoisers know that look at each entry on its own too.

        The unit at each level is the error of a network that answers 0 in the model's place, so that models of different predictions
        are each measured in the units of what they predict. A Denoiser without `scales` of its own is measured as one that predicts
        the data.
        """
        errors = self.errors(self.denoiser(model))
        scales = getattr(model, "scales", None)
        times = torch.tensor(self.times, dtype=torch.float64)
        skips = (torch.zeros_like(times) if scales is None else scales(times).skip).tolist()
        skip_at = dict(zip(self.times, skips, strict=True))
        zeros = self.errors(lambda x, t: x * skip_at[t])
        zero = zeros.mean(1, keepdim=True)
        simple = _smallest([self.best_with_columns, zeros]) if columns else self.best  # those of few items can be worse than none
        # Each item against its own, so that what is hard for both does not count as doubt.
        own, best = (zeros / zero - (value / zero).nan_to_num(MOST, MOST).clamp_max(MOST) for value in (errors, simple))
        return Learned(own.mean(0), best.mean(0), (errors.mean(1) / zero[:, 0]).tolist())


def _smallest(errors: Sequence[Tensor]) -> Tensor:
    """Of errors (levels, n), at each level those of the smallest mean."""
    every = torch.stack(list(errors))
    return every[every.mean(2).argmin(0), torch.arange(every.shape[1])]


def _nearest(denoiser: EmpiricalDenoiser) -> Denoise:
    return lambda x, t: denoiser(x, x.new_full((len(x),), t, dtype=torch.float64))
