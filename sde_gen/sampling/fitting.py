"""Time grids and solver weights fitted to a model."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from ..models.denoiser import Denoiser
from ..randomness import NoiseStream
from ..solvers import FixedStepSolver, Run, Solver, Update, make_solver, solver_name
from ..unknown_numbers import number

SEED = 0x5EED
"""Calibration samples have a seed of their own, so that no sample drawn later was seen by the fit (unless it asks for this)."""
REFERENCE, REFERENCE_ATTEMPTS = {torch.float32: 1e-5, torch.float64: 1e-7}, 4000
"""Tolerance of the converged answer by the dtype of the states, and the cap on its steps. It comes from `ode`, never from the solver that
is judged."""
EVALUATIONS, EVALUATIONS_FREE = 750, 4000
"""Network evaluations of a batch in each phase where nothing is asked for; the second where the score has no parameters."""
FitKey = tuple[str, int, tuple[str, ...]]
"""Solver, steps and the sorted names of the conditions of a fitted grid."""
SMALLEST = 1e-24
"""Added to squared errors, so that their logarithm is finite."""


@dataclass(frozen=True)
class FittedGrid:
    """What `fit_grid` found: `sample(model, ..., solver, steps)` uses it where solver and steps are these.

    times: (steps + 1,), the last is t_min.
    options: of the solver.
    shifts: added to the solver's weights (see FixedStepSolver).
    error, default_error: geometric mean over held-out calibration samples of the root mean square error against the converged answer,
        fitted and with the default grid, in normalised units.
    conditions: names of the conditions under which it was fitted, sorted; it is used under these alone.
    """

    solver: str
    steps: int
    times: tuple[float, ...]
    options: dict[str, Any] = field(default_factory=dict)
    shifts: tuple[tuple[float, ...], ...] = ()
    error: float = float("nan")
    default_error: float = float("nan")
    conditions: tuple[str, ...] = ()

    @property
    def key(self) -> FitKey:
        """Under which a model keeps it."""
        return self.solver, self.steps, self.conditions

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FittedGrid:
        """The inverse of `dataclasses.asdict` after a way through JSON; ValueError for a solver or numbers that make no sense."""
        times, shifts = tuple(map(float, config["times"])), tuple(tuple(map(float, row)) for row in config["shifts"])
        known = {name: number(config.get(name)) for name in ("error", "default_error")}
        fitted = cls(**(config | known | {"times": times, "shifts": shifts, "conditions": tuple(config.get("conditions", ()))}))
        if len(times) != fitted.steps + 1:
            raise ValueError(f"a fitted grid of {fitted.steps} steps has {len(times)} times")
        fitted.make()
        return fitted

    def make(self) -> FixedStepSolver:
        """The solver, ready to run along `times`."""
        solver = make_solver(self.solver, **self.options)
        if not isinstance(solver, FixedStepSolver):
            raise ValueError(f"a fitted grid is for solvers of fixed steps, got {self.solver!r}")
        solver.shifts = self.shifts
        return solver

    @property
    def grid(self) -> Tensor:
        """The times as the solver takes them. `sample` runs them from t_max by itself; handed to it as a grid they would be taken
        to start at the first of them, without what the solver does in closed form before."""
        return torch.tensor(self.times, dtype=torch.float64)


def fit_grid(
    model: Denoiser,
    solver: str = "angle",
    steps: int = 10,
    shape: Sequence[int] | None = None,
    samples: int = 96,
    batch_size: int = 16,
    iterations: int | None = None,
    seed: int = SEED,
    cond: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    **solver_options: Any,
) -> FittedGrid:
    """Find the times, and small shifts of the weights, with which `steps` steps of `solver` come closest to the flow.

        minimise over times and weights  mean_i log || x_i(fitted, steps) - x_i(converged) ||

    by gradient descent through the solver and the network: first the times (and the solver's `scale` where it has one), then
    both with the weights. Two thirds of the calibration samples are fitted, the others choose the best iterate. The result
    is stored in `model.fitted`, saved with the checkpoint and used by `sample` where solver, steps and the conditions' names match.

    solver: a deterministic fixed-step one, with its options; shape: of one sample (None: that of the model's moments).
    samples, seed: the calibration draws of the prior; batch_size: of them in one iteration; iterations: of each phase (None: so
    many that the cost does not depend on steps); cond: conditions, first dimension `samples`.

    Raises ValueError for a solver that is stochastic or adaptive, a shape that is not known, or a converged
    answer that is not finite. Tong et al. 2025, arXiv:2405.15506 (LD3); S4S, arXiv:2502.17423.
    """
    solver = solver_name(solver)
    method = check_fit(solver, make_solver(solver, **solver_options), steps)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if iterations is None:
        iterations = max(20, min(400, (EVALUATIONS_FREE if parameter is None else EVALUATIONS) // max(1, steps)))
    for label, count, least in (
        ("samples", samples, 3),
        ("iterations", iterations, 1),
        ("batch_size", batch_size, 1),
    ):
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise ValueError(f"{label} must be a whole number of at least {least}, got {count!r}")
    if shape is None:
        if model.moments is None or model.moments.mean.ndim == 0:
            raise ValueError("the model does not know the shape of a sample: give shape")
        shape = tuple(model.moments.mean.shape)
    device = torch.device("cpu") if parameter is None else parameter.device
    dtype = dtype or (torch.float64 if parameter is None or parameter.dtype == torch.float64 else torch.float32)
    given = model.conditions(cond, samples, device)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        noise = NoiseStream(seed, 0, samples, shape, dtype, device)
        run = Run(model, noise, torch.zeros(samples, dtype=torch.int64, device=device), given)
        fit = _Fit(run, method, model.prior.from_noise(noise.draw()), steps)
        found = fit.find(iterations, batch_size)
    finally:
        for module in training:  # one by one: a network in evaluation mode may be inside a model that is not
            module.training = True
    result = FittedGrid(solver, steps, options=solver_options | found.pop("options"), conditions=tuple(sorted(given)), **found)
    model.fitted[result.key] = result
    return result


def check_fit(name: str, solver: Solver, steps: int | None) -> FixedStepSolver:
    """`solver` if a grid of so many steps (None: its default) can be fitted for it, else ValueError."""
    if not isinstance(solver, FixedStepSolver) or solver.stochastic:
        raise ValueError(f"a grid is fitted for deterministic fixed-step solvers only, got {name!r}")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 2):
        raise ValueError(f"a grid is fitted for 2 steps or more, got {steps!r}")
    return solver


@dataclass
class _Point:
    """Where the search stands: logarithms of the gaps between times in lambda and of the scale's change, shifts of the weights."""

    gaps: Tensor
    scale: Tensor
    shifts: Tensor

    def leaves(self, weights: bool) -> list[Tensor]:
        """The parameters to move, as leaves of the graph."""
        return [leaf.requires_grad_() for leaf in ([self.gaps, self.scale, self.shifts] if weights else [self.gaps, self.scale])]

    def copy(self) -> _Point:
        return _Point(*(value.detach().clone() for value in (self.gaps, self.scale, self.shifts)))


class _Fit:
    """The calibration samples x at t_max, their converged answers, and the search."""

    def __init__(self, run: Run, method: FixedStepSolver, x: Tensor, steps: int) -> None:
        self.run, self.method, self.x = run, method, x
        self.sde = run.model.sde
        self.start, self.end = self.sde.t_max, self.sde.t_min
        with torch.no_grad():
            tight = REFERENCE[x.dtype]
            self.exact = make_solver("ode", rtol=tight, atol=tight).solve(
                run, x, self.start, self.end, REFERENCE_ATTEMPTS, method.default_grid
            )
        lost = int((~torch.isfinite(self.exact).flatten(1).all(1)).sum())
        if lost:
            raise ValueError(f"the converged answer is not finite for {lost} of {len(x)} calibration samples")
        index = torch.arange(len(x), device=x.device)
        self.fitted, self.held_out = index[index % 3 != 2], index[index % 3 == 2]
        self.times = method.times(run, x, self.start, self.end, steps, method.default_grid)
        self.lambdas = self.sde.half_log_snr(torch.cat((torch.tensor([self.start], dtype=torch.float64), self.times)))
        self.free = self.lambdas.diff() > 0  # a first time that is the start itself leaves no gap before it
        with torch.no_grad():
            self.width = [len(update.b) for update in method.table(run, x[:1], self.start, self.times)[1]]

    def built(self, point: _Point) -> tuple[FixedStepSolver, Tensor]:
        """The solver and the times of `point`, differentiable in it."""
        share = torch.zeros(len(self.free), dtype=torch.float64).masked_scatter(self.free, torch.softmax(point.gaps, 0))
        lambdas = self.lambdas[0] + (self.lambdas[-1] - self.lambdas[0]) * share.cumsum(0)
        method = copy.copy(self.method)
        if hasattr(method, "scale"):
            method.scale = method.scale * torch.exp(point.scale)
        if point.shifts.requires_grad or bool(point.shifts.any()):
            method.shifts = [list(row.unbind()) for row in point.shifts.split(self.width)]
        return method, _time_of(self.sde, lambdas, self.start, self.end)

    def error(self, method: FixedStepSolver, times: Tensor, which: Tensor) -> Tensor:
        """The mean over samples of the log of the root mean square error, differentiable."""
        run = Run(self.run.model, self.run.noise, self.run.nfe[which], {name: value[which] for name, value in self.run.cond.items()})
        y = _apply(run, *method.table(run, self.x[which], self.start, times))
        return 0.5 * torch.log((y - self.exact[which]).double().flatten(1).square().mean(1) + SMALLEST).mean()

    @torch.no_grad()
    def held_out_error(self, point: _Point) -> float:
        found = float(self.error(*self.built(point), self.held_out))
        return found if math.isfinite(found) else math.inf

    def find(self, iterations: int, batch_size: int) -> dict[str, Any]:
        gaps = torch.log(self.lambdas.diff()[self.free])
        start = _Point(gaps, torch.zeros((), dtype=torch.float64), torch.zeros(sum(self.width), dtype=torch.float64))
        default = self.held_out_error(start)
        best = (default, start)
        for weights in (False, True):
            best = self.descend(best, weights, iterations, batch_size)
        method, times = self.built(best[1].copy())
        return {
            "times": tuple(times.tolist()),
            "options": {"scale": float(method.scale)} if hasattr(method, "scale") else {},
            "shifts": tuple(tuple(map(float, row)) for row in method.shifts),
            "error": math.exp(best[0]),
            "default_error": math.exp(default),
        }

    def descend(self, best: tuple[float, _Point], weights: bool, iterations: int, batch_size: int) -> tuple[float, _Point]:
        """Adam from the best point so far; the best of what it passes, by the held-out samples."""
        point = best[1].copy()
        leaves = point.leaves(weights)
        # Shifts go by about a tenth of the error that is left, which is what they can mend.
        rates = [0.01, 0.01, 0.1 * math.exp(best[0])] if weights else [0.05, 0.05]
        optimizer = torch.optim.Adam([{"params": [leaf], "lr": rate} for leaf, rate in zip(leaves, rates, strict=True)])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
        for iteration in range(iterations):
            with torch.enable_grad():
                loss = self.error(*self.built(point), self.fitted.roll(-iteration * batch_size)[:batch_size])
            slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
            if not all(slope is None or bool(torch.isfinite(slope).all()) for slope in slopes):
                break
            for leaf, slope in zip(leaves, slopes, strict=True):
                leaf.grad = slope
            optimizer.step()
            schedule.step()
            if iteration % 10 == 9 or iteration == iterations - 1:
                found = self.held_out_error(point)
                if found < best[0]:
                    best = (found, point.copy())
        return best


def _apply(run: Run, x: Tensor, updates: list[Update], history: tuple[Tensor, ...]) -> Tensor:
    """`run_updates` for tables of tensors: the same arithmetic, differentiable, nothing counted."""
    for update in updates:
        seen = history
        if update.t is not None:
            denoised = run.model.predict(x, update.t, **run.cond).denoised
            if update.view is not None:
                denoised = x * update.view[0] + denoised * update.view[1]
            seen = (denoised, *history)
            if update.keep:
                history = seen
        x = x * update.a
        for weight, value in zip(update.b, seen, strict=False):
            x = x + value * weight
    return x


def _time_of(sde: Any, lambdas: Tensor, start: float, end: float) -> Tensor:
    """t(lambda), differentiable whatever the SDE's own inverse is: its value by the inverse, its slope by that of lambda(t)."""
    with torch.no_grad():
        times = sde.time_of(lambdas).clamp(end, start)
        times[-1] = end
        slope = sde.slopes(times)[1]
    return times + (lambdas - lambdas.detach()) / slope
