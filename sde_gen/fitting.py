"""Time grids and solver weights fitted to a model."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .randomness import NoiseStream
from .score import Denoiser
from .solvers import FixedStepSolver, Run, Update, make_solver

SEED = 0x5EED
"""Calibration samples have a seed of their own, so that no sample drawn later was seen by the fit (unless it asks for this)."""
REFERENCE_STEPS = 150
ITERATIONS = 120
SMALLEST = 1e-24
"""Added to squared errors, so that their logarithm is finite."""


@dataclass(frozen=True)
class FittedGrid:
    """What `fit_grid` found: `sample(model, ..., solver, steps)` uses it where solver and steps are these.

    times: (steps + 1,), the last is t_min; options: of the solver; shifts: added to its weights (see FixedStepSolver).
    error, default_error: geometric mean over held-out calibration samples of the root mean square error against the solver's
    own converged answer, fitted and with the default grid, in normalised units.
    """

    solver: str
    steps: int
    times: tuple[float, ...]
    options: dict[str, Any] = field(default_factory=dict)
    shifts: tuple[tuple[float, ...], ...] = ()
    error: float = float("nan")
    default_error: float = float("nan")

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> FittedGrid:
        """The inverse of `dataclasses.asdict` after a way through JSON; ValueError for a solver or numbers that make no sense."""
        times, shifts = tuple(map(float, config["times"])), tuple(tuple(map(float, row)) for row in config["shifts"])
        fitted = cls(**(config | {"times": times, "shifts": shifts}))
        if len(times) != fitted.steps + 1:
            raise ValueError(f"a fitted grid of {fitted.steps} steps has {len(times)} times")
        fitted.make()
        return fitted

    def make(self) -> FixedStepSolver:
        """The solver, ready to run along `times`."""
        solver = make_solver(self.solver, **self.options)
        assert isinstance(solver, FixedStepSolver)
        solver.shifts = self.shifts
        return solver

    @property
    def grid(self) -> Tensor:
        """The times as the solver takes them."""
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
    cond: dict[str, Tensor] | None = None,
    dtype: torch.dtype | None = None,
    **solver_options: Any,
) -> FittedGrid:
    """Find the times, and small shifts of the weights, with which `steps` steps of `solver` come closest to the flow.

        minimise over times and weights  mean_i log || x_i(fitted, steps) - x_i(converged) ||

    by gradient descent through the solver and the network: first the times (and the solver's `scale` where it has one), then
    both with the weights. Two thirds of the calibration samples are fitted, the others choose the best iterate. The result
    is stored in `model.fitted`, saved with the checkpoint and used by `sample` where solver and steps match.

    solver: a deterministic fixed-step one, with its options; shape: of one sample (None: that of the model's moments).
    samples, seed: the calibration draws of the prior; batch_size: of them in one iteration; iterations: of each phase (None: 120,
    fewer above 10 steps so that the cost stays the same); cond: conditions, first dimension `samples`.

    Raises ValueError for a solver that is stochastic or adaptive, a shape that is not known, or a score that cannot be
    differentiated. Tong et al. 2025, arXiv:2405.15506 (LD3); S4S, arXiv:2502.17423.
    """
    method = make_solver(solver, **solver_options)
    if not isinstance(method, FixedStepSolver) or method.stochastic:
        raise ValueError(f"fit_grid takes a deterministic fixed-step solver, got {solver!r}")
    iterations = ITERATIONS * 10 // max(10, steps) if iterations is None else iterations
    for label, number, least in (
        ("steps", steps, 2),
        ("samples", samples, 3),
        ("iterations", iterations, 1),
        ("batch_size", batch_size, 1),
    ):
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{label} must be a whole number of at least {least}, got {number!r}")
    if shape is None:
        if model.moments is None or model.moments.mean.ndim == 0:
            raise ValueError("the model does not know the shape of a sample: give shape")
        shape = tuple(model.moments.mean.shape)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    device = torch.device("cpu") if parameter is None else parameter.device
    dtype = dtype or (torch.float64 if parameter is None else parameter.dtype)
    training = model.training
    model.eval()
    try:
        noise = NoiseStream(seed, 0, samples, shape, dtype, device)
        run = Run(model, noise, torch.zeros(samples, dtype=torch.int64, device=device), cond or {})
        fit = _Fit(run, method, model.prior.from_noise(noise.draw()), steps)
        found = fit.find(iterations, batch_size)
    finally:
        model.train(training)
    result = FittedGrid(solver, steps, options=solver_options | found.pop("options"), **found)
    model.fitted[solver, steps] = result
    return result


class _Fit:
    """The calibration samples x at t_max, their converged answers, and the search."""

    def __init__(self, run: Run, method: FixedStepSolver, x: Tensor, steps: int) -> None:
        self.run, self.method, self.x, self.steps = run, method, x, steps
        sde = run.model.sde
        self.start, self.end = sde.t_max, sde.t_min
        with torch.no_grad():
            self.exact = make_solver("angle").solve(run, x, self.start, self.end, max(REFERENCE_STEPS, 6 * steps), "angle")
        finite = torch.isfinite(self.exact).flatten(1).all(1)
        if not bool(finite.all()):
            raise ValueError(f"the converged answer is not finite for {int((~finite).sum())} of {len(x)} calibration samples")
        index = torch.arange(len(x), device=x.device)
        self.fitted, self.held_out = index[index % 3 != 2], index[index % 3 == 2]

    def errors(self, method: FixedStepSolver, times: Tensor, which: Tensor) -> Tensor:
        """log of each sample's root mean square error, differentiable."""
        run = Run(self.run.model, self.run.noise, self.run.nfe[which], {name: value[which] for name, value in self.run.cond.items()})
        y = _apply(run, *method.table(run, self.x[which], self.start, times))
        return 0.5 * torch.log((y - self.exact[which]).double().flatten(1).square().mean(1) + SMALLEST)

    def find(self, iterations: int, batch_size: int) -> dict[str, Any]:
        first = self.method.times(self.run, self.x, self.start, self.end, self.steps, self.method.default_grid)
        sde, scale = self.run.model.sde, getattr(self.method, "scale", None)
        lambdas = sde.half_log_snr(torch.cat((torch.tensor([self.start], dtype=torch.float64), first)))
        gaps = lambdas.diff()
        free = gaps > 0  # a start that is fixed leaves no gap before the first time
        logits = torch.log(gaps[free]).requires_grad_()
        log_scale = torch.zeros((), dtype=torch.float64, requires_grad=True)
        with torch.no_grad():
            width = [len(update.b) for update in self.method.table(self.run, self.x, self.start, first)[1]]
            default_error = float(self.errors(self.method, first, self.held_out).mean())
        shifts = torch.zeros(sum(width), dtype=torch.float64, requires_grad=True)

        def build() -> tuple[FixedStepSolver, Tensor]:
            share = torch.zeros_like(gaps).masked_scatter(free, torch.softmax(logits, 0))
            target = lambdas[0] + (lambdas[-1] - lambdas[0]) * share.cumsum(0)
            method = copy.copy(self.method)
            if scale is not None:
                method.scale = scale * torch.exp(log_scale)  # type: ignore[attr-defined]
            if bool(shifts.detach().any()) or with_weights:
                method.shifts = [list(row.unbind()) for row in shifts.split(width)]
            return method, _time_of(sde, target, self.start, self.end)

        best = (default_error, self.method, first)
        for with_weights in (False, True):
            # The weights are moved by about a tenth of the error that is left, which is what a correction can mend.
            leaves, rates = [logits, log_scale], [0.05, 0.05]
            if with_weights:
                leaves, rates = [*leaves, shifts], [0.01, 0.01, 0.1 * math.exp(best[0])]
            optimizer = torch.optim.Adam([{"params": [leaf], "lr": rate} for leaf, rate in zip(leaves, rates, strict=True)])
            schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
            for iteration in range(iterations):
                with torch.enable_grad():
                    method, times = build()
                    chosen = self.fitted.roll(-iteration * batch_size)[:batch_size]
                    loss = self.errors(method, times, chosen).mean()
                    try:
                        slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
                    except RuntimeError as error:
                        raise ValueError(f"fit_grid needs a score that can be differentiated: {error}") from error
                if not all(slope is None or bool(torch.isfinite(slope).all()) for slope in slopes):
                    break
                for leaf, slope in zip(leaves, slopes, strict=True):
                    leaf.grad = slope
                optimizer.step()
                schedule.step()
                if iteration % 10 == 9 or iteration == iterations - 1:
                    with torch.no_grad():
                        method, times = build()
                        held_out = float(self.errors(method, times, self.held_out).mean())
                    if held_out < best[0]:
                        best = (held_out, method, times)
            if best[1] is not self.method:
                log_scale, logits, shifts = self._restart(best, scale, lambdas, free, shifts, width)
        smallest, method, times = best
        return {
            "times": tuple(times.tolist()),
            "options": {} if scale is None else {"scale": float(method.scale)},  # type: ignore[attr-defined]
            "shifts": tuple(tuple(float(torch.as_tensor(c).detach()) for c in row) for row in method.shifts),
            "error": math.exp(smallest),
            "default_error": math.exp(default_error),
        }

    def _restart(
        self,
        best: tuple[float, FixedStepSolver, Tensor],
        scale: float | None,
        lambdas: Tensor,
        free: Tensor,
        shifts: Tensor,
        width: list[int],
    ) -> tuple[Tensor, Tensor, Tensor]:
        """The parameters of the best iterate, to go on from."""
        _, method, times = best
        at = self.run.model.sde.half_log_snr(torch.cat((torch.tensor([self.start], dtype=torch.float64), times)))
        logits = torch.log(at.diff()[free].clamp_min(1e-9)).requires_grad_()
        log_scale = torch.zeros((), dtype=torch.float64)
        if scale is not None:
            log_scale = torch.log(torch.as_tensor(float(method.scale) / scale, dtype=torch.float64))  # type: ignore[attr-defined]
        return log_scale.requires_grad_(), logits, shifts


def _apply(run: Run, x: Tensor, updates: list[Update], history: tuple[Tensor, ...]) -> Tensor:
    """`run_updates` for tables of tensors: the same arithmetic, differentiable, nothing counted."""
    for update in updates:
        seen = history
        if update.t is not None:
            denoised = run.model.predict(x, update.t, **run.cond)[0]
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
