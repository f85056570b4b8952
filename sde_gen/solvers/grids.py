"""Time grids: where a fixed-step solver places its steps."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from ..registry import lookup
from ..sdes import SDE

KARRAS_RHO = 7.0
Spread = tuple[float, float]
NORMAL: Spread = (1.0, 1.0)
Rule = Callable[[SDE, Tensor, Tensor, Tensor, Spread], Tensor]


def _time(sde: SDE, start: Tensor, end: Tensor, u: Tensor, spread: Spread) -> Tensor:
    return start + (end - start) * u


def _half_log_snr(sde: SDE, start: Tensor, end: Tensor, u: Tensor, spread: Spread) -> Tensor:
    first, last = sde.half_log_snr(start), sde.half_log_snr(end)
    return sde.time_of(first + (last - first) * u)


def _karras(sde: SDE, start: Tensor, end: Tensor, u: Tensor, spread: Spread) -> Tensor:
    # (sigma/alpha)^(1/rho) = exp(-lambda/rho) in equal steps.
    first, last = (torch.exp(-sde.half_log_snr(t) / KARRAS_RHO) for t in (start, end))
    return sde.time_of(-KARRAS_RHO * torch.log(first + (last - first) * u))


def _quadratic(sde: SDE, start: Tensor, end: Tensor, u: Tensor, spread: Spread) -> Tensor:
    return (torch.sqrt(start) + (torch.sqrt(end) - torch.sqrt(start)) * u) ** 2


COARSE, FINE = 0.7, 0.11
"""The two scales of the angle grid, in units of the data's larger and of its overall standard deviation; chosen on Gaussian
mixtures in 2 to 48 dimensions."""


def _angle(sde: SDE, start: Tensor, end: Tensor, u: Tensor, spread: Spread) -> Tensor:
    return _even_in_angles(sde, start, end, u, (COARSE * spread[0], FINE * spread[1]), 0.0)


def _even_in_angles(sde: SDE, start: Tensor, end: Tensor, u: Tensor, scales: Spread, share: float) -> Tensor:
    # Even in atan(s_1 alpha/sigma) + atan(s_2 alpha/sigma) + share lambda, inverted by bisection in lambda.
    logs = [math.log(scale) for scale in scales]

    def angle(lambda_: Tensor) -> Tensor:
        return sum((torch.atan(torch.exp(lambda_ + log)) for log in logs), start=share * lambda_)

    first, last = sde.half_log_snr(start), sde.half_log_snr(end)
    target = angle(first) + (angle(last) - angle(first)) * u
    low, high = (torch.minimum(first, last).expand_as(u), torch.maximum(first, last).expand_as(u))
    for _ in range(60):
        middle = 0.5 * (low + high)
        below = angle(middle) < target
        low, high = torch.where(below, middle, low), torch.where(below, high, middle)
    return sde.time_of(0.5 * (low + high))


GRIDS: dict[str, Rule] = {
    "time": _time,
    "half_log_snr": _half_log_snr,
    "karras": _karras,
    "quadratic": _quadratic,
    "angle": _angle,
}
"""time: even in t; half_log_snr: even in lambda (Lu et al. 2022, arXiv:2206.00927); karras: even in (sigma/alpha)^(1/7)
(Karras et al. 2022, arXiv:2206.00364); quadratic: even in sqrt(t) (Song et al. 2021, arXiv:2010.02502); angle: even in the
sum of atan(s alpha/sigma) over two scales s, 0.7 of the data's larger spread and 0.11 of its standard deviation."""


def make_grid(sde: SDE, grid: str | Tensor, t_start: float, t_end: float, steps: int, spread: Spread = NORMAL, skip: float = 0.0) -> Tensor:
    """The times t_start = t_0, ..., t_steps = t_end, in either direction: (steps + 1,) in float64 on the CPU.

    grid: a name in GRIDS; times themselves are handed back. spread: the data's standard deviations (see `Moments.spread`), which
    "angle" uses; skip: the share of a step, in [0, 1),
    that is left out at the start. Raises ValueError for an unknown name or fewer than one step.
    """
    if isinstance(grid, Tensor):
        return grid
    return _along(sde, lookup(GRIDS, "grid", grid), t_start, t_end, steps, spread, skip)


def angle_times(sde: SDE, t_start: float, t_end: float, steps: int, scales: Spread, share: float = 0.0, skip: float = 0.0) -> Tensor:
    """As `make_grid`, even in atan(s_1 alpha/sigma) + atan(s_2 alpha/sigma) + share lambda with scales s_1, s_2 of the caller's own."""

    def rule(sde: SDE, start: Tensor, end: Tensor, u: Tensor, spread: Spread) -> Tensor:
        return _even_in_angles(sde, start, end, u, spread, share)

    return _along(sde, rule, t_start, t_end, steps, scales, skip)


def _along(sde: SDE, rule: Rule, t_start: float, t_end: float, steps: int, spread: Spread, skip: float) -> Tensor:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}")
    start, end = torch.tensor(t_start, dtype=torch.float64), torch.tensor(t_end, dtype=torch.float64)
    u = (torch.arange(steps + 1, dtype=torch.float64) + skip) / (steps + skip)
    times = rule(sde, start, end, u, spread)
    times[-1] = end  # the ends are exact, whatever a round trip through lambda loses
    if not skip:
        times[0] = start
    return times
