"""The reverse SDE with a step size of its own for every sample."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..reverse import coefficients
from ..sdes.base import check_positive
from ..shapes import expand_as
from .base import Run, Solver
from .grids import make_grid
from .ode import WATCHED, rms

SAFETY, EXPONENT, FIRST_STEP = 0.9, 0.9, 0.01


class AdaptiveSDE(Solver):
    """Stochastic improved Euler with an embedded Euler-Maruyama step, adaptive for each sample: two calls an attempt.

        x'  = x + h drift(x, t) + sqrt(h) g(t) z,   x~ = x + h drift(x', t - h) + sqrt(h) g(t - h) z
        x'' = (x' + x~)/2,   error = rms((x' - x'') / max(atol, rtol max(|x'|, |x'_last|)))

    An attempt with error at most 1 moves to x''; the next step is 0.9 h error^-0.9. A refused attempt draws new noise, as in
    the paper, so that paths with large increments are somewhat too rare. `steps` caps the attempts of a sample.
    Jolicoeur-Martineau et al. 2021, arXiv:2105.14080, algorithm 1.
    """

    weak_order = 1.0
    stochastic = True
    adaptive = True
    default_steps = 5000

    def __init__(self, rtol: float = 0.02, atol: float = 0.01) -> None:
        self.rtol, self.atol = check_positive("rtol", rtol), check_positive("atol", atol)

    @property
    def calls(self) -> int | None:
        return None

    def solve(self, run: Run, x: Tensor, t_start: float, t_end: float, steps: int, grid: str) -> Tensor:
        count, device = x.shape[0], x.device
        x, last = x.clone(), x.clone()
        t = torch.full((count,), t_start, dtype=torch.float64, device=device)
        h = torch.full_like(t, min(FIRST_STEP, t_start - t_end))
        attempts = torch.zeros(count, dtype=torch.int64, device=device)
        stops = [t_end] if run.observer is None else make_grid(run.model.sde, grid, t_start, t_end, WATCHED)[1:].tolist()
        for stop in stops:
            self._advance(run, x, last, t, h, attempts, stop, steps)
            if run.observer is not None:
                denoised = run.model.predict(x, stop, **run.cond)[0]
                run.nfe += 1
                if run.observer(stop, x, denoised):
                    break
        return x

    def _advance(self, run: Run, x: Tensor, last: Tensor, t: Tensor, h: Tensor, attempts: Tensor, stop: float, steps: int) -> None:
        """Take every sample to the time `stop`, in place; one that cannot get there is left as NaN."""
        check_every = 1 if x.device.type == "cpu" else 4
        lost = ~torch.isfinite(x).flatten(1).all(1)
        active = torch.nonzero((t > stop) & ~lost)[:, 0]
        attempt = 0
        while active.numel():
            z = run.noise.draw()[active]
            here, now = x[active], t[active]
            remaining = (now - stop).clamp_min(0.0)
            step = torch.minimum(h[active], remaining)
            euler = self._euler(run, here, here, now, step, z, active)
            improved = 0.5 * (euler + self._euler(run, here, euler, now - step, step, z, active))
            scale = torch.maximum(euler.abs(), last[active].abs()).mul_(self.rtol).clamp_min_(self.atol)
            error = rms((euler - improved) / scale).double()
            accepted = error <= 1.0
            arrived = accepted & (step >= remaining)
            x[active] = torch.where(expand_as(accepted, x), improved, here)
            last[active] = torch.where(expand_as(accepted, x), euler, last[active])
            t[active] = torch.where(arrived, stop, torch.where(accepted, now - step, now))
            grown = step * (SAFETY * error.clamp_min(1e-6) ** -EXPONENT).clamp(0.1, 10.0).nan_to_num(0.1)
            h[active] = torch.where(arrived, h[active], grown)
            attempts[active] += 1
            lost[active] |= ~arrived & (attempts[active] >= steps) | ~accepted & (step < 1e-10)
            attempt += 1
            if attempt % check_every == 0:
                active = active[((t > stop) & ~lost)[active]]
        x[lost] = math.nan
        t[lost] = stop

    @staticmethod
    def _euler(run: Run, base: Tensor, at: Tensor, t: Tensor, step: Tensor, z: Tensor, active: Tensor) -> Tensor:
        """base + step drift(at, t) + sqrt(step) g(t) z, time running down."""
        cond = {name: value[active] for name, value in run.cond.items()}
        run.nfe[active] += 1
        a, b, c = coefficients(run.model.sde, t)
        parts = (-step * a, -step * b, torch.sqrt(step) * c)
        drift, pull, noise = (expand_as(value.to(base), base) for value in parts)
        return base + drift * at + pull * run.model.predict(at, t, **cond)[0] + noise * z
