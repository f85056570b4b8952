"""Multistep in the angle between data and noise, started from the Gaussian part of the score."""

from __future__ import annotations

from dataclasses import replace
from functools import lru_cache

import torch
from torch import Tensor

from ..models.moments import Moments
from ..sdes import SDE
from ..sdes.base import check_positive
from .base import FixedStepSolver, Run, Table, Update
from .dpm import check_order
from .exponential import data_multistep
from .grids import angle_times, make_grid

FEW_POINTS, MOST_ORDER, SEVERAL, MANY = 4, 5, 15, 25
"""Predictions that a step looks back to: the first number, or the second from so many steps to so many."""
MANY_SCALES, LAMBDA_SHARE = (1.0, 0.15), 0.15
"""Of the grid from MANY steps on: its two scales in units of the data's spreads, and the weight of lambda beside their angles. Chosen, as
the scale and the orders, on mixtures and the digits network."""
NOISE_ALONE = 0.1
"""The start is taken from the Gaussian part where alpha s/sigma is below this, s the data's largest standard deviation."""


def signal_fraction(lambda_: Tensor, scale: float | Tensor) -> Tensor:
    """alpha s/sqrt(alpha^2 s^2 + sigma^2), the cosine of the angle atan(sigma/(alpha s)); shape of `lambda_`."""
    return of_ratio(torch.exp(lambda_) * torch.as_tensor(scale, dtype=lambda_.dtype))


def of_ratio(ratio: Tensor) -> Tensor:
    """The signal fraction where alpha s/sigma is `ratio`, odd in it; shape of `ratio`."""
    return ratio / torch.sqrt(1 + ratio**2)


class AngleMultistep(FixedStepSolver):
    """Exponential multistep with a corrector, its polynomials in the signal fraction, its start in closed form: one call a step.

        x_s = sigma_s/sigma_t x + alpha_s int_{lambda_t}^{lambda_s} exp(u - lambda_s) P(c(u)) du,
        c = alpha s/sqrt(alpha^2 s^2 + sigma^2)

    P interpolates the last `order` predictions E[x_0|x], fewer than there are steps. In c the prediction is a straight line for
    Gaussian data of standard deviation s, smooth at c = 0 (pure noise) and at c = 1 (data), so that high orders are safe over long
    steps, where polynomials in lambda are not. Every state is corrected by its own prediction as in UniPC.

    From pure noise the method starts at full order: the score is nearly Gaussian
    there, and the predictions that the first steps look back to are those of that Gaussian (mean and covariance), continued
    past c = 0 and shifted to agree with the first call; a model that was not given its data's moments is asked for them first
    (`moments_of`: once for a model, up to 256 dimensions, not counted in nfe). Without a condition, the first fraction of a step is the
    Gaussian's exact flow, so that no call is spent where it says nothing. Elsewhere (from another time, or towards noise) the
    first steps are of lower order.

    order: predictions that P looks back to; None: 4 below 15 steps, 5 from there on, and 4 again from 25, where the polynomials of a
        network's predictions lose more by its roughness than they win.
    scale: s in units of the model's larger spread.
    The default grid is "angle"; from 25 steps on its scales are larger and 0.15 lambda is added to its angles, since a network's error
    at small noise is smoother in lambda. Runs in both directions; towards noise the polynomials
    are those in lambda, and the method is UniPC. Zhao et al. 2023,
    arXiv:2302.04867 (the corrector); Wang and Vastola 2024, arXiv:2412.09726 (the Gaussian part of the score); the variable,
    the continuation through pure noise and the grid are this package's own.
    """

    default_steps = 20
    default_grid = "angle"

    order: int

    def __init__(self, order: int | None = None, scale: float = 0.7) -> None:
        self.points = None if order is None else check_order(order, MOST_ORDER)
        self.order = (FEW_POINTS if self.points is None else self.points) + 1
        self.scale = check_positive("scale", scale)

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        return self._updates(sde, times, self.scale)

    def _points(self, steps: int) -> int:
        if self.points is not None:
            return self.points
        return MOST_ORDER if SEVERAL <= steps < MANY else FEW_POINTS

    def _updates(self, sde: SDE, times: Tensor, scale: float | Tensor, before: Tensor | None = None) -> list[Update]:
        # With as many points as steps most of them would be imagined ones: on a network that was seen to run away.
        points = min(self._points(len(times) - 1), max(2, len(times) - 2))
        if times.requires_grad or isinstance(scale, Tensor):
            return updates_along(sde, times, points, scale, before)
        earlier = None if before is None else tuple(before.tolist())
        return list(_angle_updates(sde, tuple(times.tolist()), points, scale, earlier))

    def times(self, run: Run, x: Tensor, t_start: float, t_end: float, steps: int, grid: str | Tensor) -> Tensor:
        if t_end > t_start and isinstance(grid, str) and grid == self.default_grid:
            grid = "half_log_snr"  # towards noise, where the method is UniPC
        spread, skip = run.spread(x), self.skipped(run, x, t_start, t_end, steps)
        if isinstance(grid, str) and grid == self.default_grid and steps >= MANY:
            scales = (MANY_SCALES[0] * spread[0], MANY_SCALES[1] * spread[1])
            return angle_times(run.model.sde, t_start, t_end, steps, scales, LAMBDA_SHARE, skip)
        return make_grid(run.model.sde, grid, t_start, t_end, steps, spread, skip)

    def skipped(self, run: Run, x: Tensor, t_start: float, t_end: float, steps: int) -> float:
        return min(0.8, 4 / steps) if t_end < t_start and _moments(run, x, t_start) is not None and not run.cond else 0.0

    def begin(self, run: Run, x: Tensor, t_start: float, times: Tensor) -> Table:
        sde, scale = run.model.sde, self.scale * run.spread(x)[0]
        moments = _moments(run, x, t_start) if times[-1] < t_start else None
        if moments is None:
            return x, self._updates(sde, times, scale), ()
        if float(times[0].detach()) != t_start:
            x = moments.flow(x, *sde.marginal(torch.cat((torch.tensor([t_start], dtype=times.dtype), times[:1]))))
        mirrored = mirror(sde, times, self._points(len(times) - 1) - 1)
        first, *later = self._updates(sde, times, scale, of_ratio(mirrored * scale))
        # The imagined predictions are shifted to agree with the first call, so that wrong moments cost accuracy, not truth.
        denoised = run.predict(x, times[0] if times.requires_grad else float(times[0])).denoised
        imagined = moments.continued(x, denoised, *sde.marginal(times[0]), mirrored)
        return x, [replace(first, t=None), *later], (denoised, *reversed(imagined))


def updates_along(sde: SDE, times: Tensor, points: int, scale: float | Tensor, before: Tensor | None) -> list[Update]:
    """The table; before: the signal fractions of predictions known before the first call, oldest first."""
    if times[-1] > times[0]:
        # From the data on the fractions lie so close that a polynomial in them runs away over the next step; in lambda it does not.
        return data_multistep(sde, times, points, corrector=True, before=before)
    return data_multistep(sde, times, points, corrector=True, variable=lambda u: signal_fraction(u, scale), before=before)


@lru_cache(maxsize=32)
def _angle_updates(sde: SDE, times: tuple[float, ...], points: int, scale: float, before: tuple[float, ...] | None) -> list[Update]:
    # Batches and repeated calls need the same table.
    earlier = None if before is None else torch.tensor(before, dtype=torch.float64)
    return updates_along(sde, torch.tensor(times, dtype=torch.float64), points, scale, earlier)


def _moments(run: Run, x: Tensor, t_start: float) -> Moments | None:
    """The moments of the data where their principal axes are known and t_start is so noisy that they say all."""
    clear = float(signal_fraction(run.model.sde.half_log_snr(t_start), run.spread(x)[0])) > NOISE_ALONE
    moments = None if clear else run.moments(x)
    return moments if moments is not None and moments.has_axes else None


def mirror(sde: SDE, times: Tensor, count: int) -> Tensor:
    """alpha/sigma at `times`' next points, mirrored at the first one: where predictions are imagined before the start, the
    oldest first; negative values lie beyond pure noise."""
    ratio = torch.exp(sde.half_log_snr(times[: 1 + min(count, len(times) - 1)]))
    return (2 * ratio[0] - ratio[1:]).flip(0)
