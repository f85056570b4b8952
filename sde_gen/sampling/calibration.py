"""Pilot samples: where a converged flow takes them, and how far a solver's table ends from there."""

from __future__ import annotations

import torch
from torch import Tensor

from ..solvers import FixedStepSolver, ProbabilityFlow, Run, Update

TIGHT, LOOSE, ATTEMPTS = {torch.float32: 3e-6, torch.float64: 1e-7}, 10.0, 4000
"""Tolerance of the converged flow by the dtype of the states; in float32, for a network's sake, LOOSE steps^-5 up to 1e-4 where that is
larger; the cap on its steps."""
SMALLEST = 1e-24
"""Added to squared errors, so that their logarithm is finite."""


class Pilots:
    """Draws x (n, *) of the prior at t_max, with conditions, of which a half is fitted and the other half judges.

    The converged answers come from `ode`, never from the solver that is judged.
    """

    def __init__(self, run: Run, x: Tensor, steps: int) -> None:
        self.run, self.x = run, x
        self.start, self.end = run.model.sde.t_max, run.model.sde.t_min
        index = torch.arange(len(x), device=x.device)
        self.fitted, self.held_out = index[index % 2 == 0], index[index % 2 == 1]
        tolerance = max(TIGHT[x.dtype], min(1e-4, LOOSE * steps**-5.0) if x.dtype == torch.float32 else 0.0)
        self.flow = ProbabilityFlow(tolerance, tolerance)
        self.exact = x

    @torch.no_grad()
    def follow(self, times: Tensor) -> Tensor:
        """Where the flow has taken the pilots at each of `times` (K,), the last of them t_min: (K, n, *). ValueError where they are not
        finite."""
        states = self.flow.along(self.run, self.x, self.start, times, ATTEMPTS)
        self.exact = states[-1]
        lost = int((~torch.isfinite(self.exact).flatten(1).all(1)).sum())
        if lost:
            raise ValueError(f"the converged answer is not finite for {lost} of {len(self.x)} calibration samples")
        return states

    def part(self, which: Tensor) -> Run:
        """The run of the pilots `which` (indices) alone."""
        cond = {name: value[which] for name, value in self.run.cond.items()}
        return Run(self.run.model, self.run.noise, self.run.nfe[which], cond)

    @torch.no_grad()
    def widths(self, method: FixedStepSolver, times: Tensor) -> list[int]:
        """How many predictions each update of the solver's own table looks back to."""
        one = self.held_out[:1]
        run = self.part(one)
        updates = method.table(run, self.x[one], self.start, times)[1]
        self.run.nfe[one] = run.nfe
        return [len(update.b) for update in updates]

    def error(self, method: FixedStepSolver, times: Tensor, which: Tensor) -> Tensor:
        """The mean log error of the pilots `which` (indices) where the table of `method` ends, differentiable in times and shifts."""
        run = self.part(which)
        y = apply_table(run, *method.table(run, self.x[which], self.start, times))
        self.run.nfe[which] = run.nfe
        return log_errors(y, self.exact[which]).mean()


def log_errors(y: Tensor, exact: Tensor) -> Tensor:
    """The log of the root mean square over each sample's elements of y - exact, (n,), float64."""
    return 0.5 * torch.log((y - exact).double().flatten(1).square().mean(1) + SMALLEST)


def apply_table(run: Run, x: Tensor, updates: list[Update], history: tuple[Tensor, ...]) -> Tensor:
    """`run_updates` for tables of tensors: the same arithmetic, differentiable."""
    for update in updates:
        seen, history = predicted(run, x, update, history)
        x = moved(x, update, seen)
    return x


def predicted(run: Run, x: Tensor, update: Update, history: tuple[Tensor, ...]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """The predictions that `update` sees, the newest first, and those that the next ones will remember."""
    if update.t is None:
        return history, history
    denoised = run.predict(x, update.t).denoised
    if update.view is not None:
        denoised = x * update.view[0] + denoised * update.view[1]
    seen = (denoised, *history)
    return seen, seen if update.keep else history


def moved(x: Tensor, update: Update, seen: tuple[Tensor, ...]) -> Tensor:
    """a x + sum b D."""
    x = x * update.a
    for weight, value in zip(update.b, seen, strict=False):
        x = x + value * weight
    return x


def default_times(method: FixedStepSolver, pilots: Pilots, steps: int) -> Tensor:
    """The times of the solver's own grid."""
    return method.times(pilots.run, pilots.x, pilots.start, pilots.end, steps, method.default_grid)
