"""Time grids: where a fixed-step solver places its steps."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from ..registry import lookup
from ..sdes import SDE

KARRAS_RHO = 7.0


def _time(sde: SDE, start: Tensor, end: Tensor, u: Tensor) -> Tensor:
    return start + (end - start) * u


def _half_log_snr(sde: SDE, start: Tensor, end: Tensor, u: Tensor) -> Tensor:
    first, last = sde.half_log_snr(start), sde.half_log_snr(end)
    return sde.time_of(first + (last - first) * u)


def _karras(sde: SDE, start: Tensor, end: Tensor, u: Tensor) -> Tensor:
    # (sigma/alpha)^(1/rho) = exp(-lambda/rho) in equal steps.
    first, last = (torch.exp(-sde.half_log_snr(t) / KARRAS_RHO) for t in (start, end))
    return sde.time_of(-KARRAS_RHO * torch.log(first + (last - first) * u))


def _quadratic(sde: SDE, start: Tensor, end: Tensor, u: Tensor) -> Tensor:
    return (torch.sqrt(start) + (torch.sqrt(end) - torch.sqrt(start)) * u) ** 2


GRIDS: dict[str, Callable[[SDE, Tensor, Tensor, Tensor], Tensor]] = {
    "time": _time,
    "half_log_snr": _half_log_snr,
    "karras": _karras,
    "quadratic": _quadratic,
}
"""time: even in t; half_log_snr: even in lambda (Lu et al. 2022, arXiv:2206.00927); karras: even in (sigma/alpha)^(1/7)
(Karras et al. 2022, arXiv:2206.00364); quadratic: even in sqrt(t) (Song et al. 2021, arXiv:2010.02502)."""


def make_grid(sde: SDE, name: str, t_start: float, t_end: float, steps: int) -> Tensor:
    """The times t_start = t_0, ..., t_steps = t_end, in either direction: (steps + 1,) in float64 on the CPU.

    Raises ValueError for an unknown name or fewer than one step.
    """
    rule = lookup(GRIDS, "grid", name)
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}")
    start, end = torch.tensor(t_start, dtype=torch.float64), torch.tensor(t_end, dtype=torch.float64)
    times = rule(sde, start, end, torch.linspace(0.0, 1.0, steps + 1, dtype=torch.float64))
    times[0], times[-1] = start, end  # the ends are exact, whatever a round trip through lambda loses
    return times
