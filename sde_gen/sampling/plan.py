"""What a run of a solver is, worked out and checked before it starts."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..models.denoiser import Denoiser
from ..models.flow_map import FlowMap
from ..registry import lookup
from ..sdes import SDE
from ..solvers import GRIDS, Solver, make_solver, solver_name
from .automatic import AUTO, choose_solver
from .fitted import find_fitted, why_not_fitted
from .jumps import JUMPS, Jumps

DEFAULT_SOLVER = "pc"


@dataclass(frozen=True)
class Plan:
    """What is run: the solver under its name, its times, and what is made of the state at the end; picked: what "auto" says of it."""

    name: str
    method: Solver
    steps: int
    grid: str | Tensor
    start: float
    end: float
    final: str
    fitted: bool
    picked: str | None = None


def plan_run(
    model: Denoiser,
    solver: str | Solver | None,
    steps: int | None,
    grid: str | Tensor | None,
    t_start: float | None,
    t_end: float | None,
    final: str | None,
    cond: Mapping[str, Any] | None,
    options: dict[str, Any],
) -> Plan:
    """The plan of a `sample` with these arguments. ValueError or TypeError where they do not fit together."""
    if isinstance(model, FlowMap):
        told = {"solver": None if solver == JUMPS else solver, "t_start": t_start, "t_end": t_end} | options
        strange = [name for name, value in told.items() if value is not None]
        if strange:
            raise ValueError(f"a flow map is sampled by its own jumps, so many steps or the times in grid: leave {', '.join(strange)} out")
        return _plan_jumps(model, steps, grid, final)
    fitted, picked = None, None
    solver = DEFAULT_SOLVER if solver is None else solver
    if isinstance(solver, str) and solver == AUTO:
        if steps is None and isinstance(grid, Tensor) and grid.ndim == 1:
            steps = len(grid) - 1
        own_grid = (grid is t_start is t_end is None) or (isinstance(grid, str) and grid == "fitted")
        choice = choose_solver(model, steps, cond if isinstance(cond, Mapping) else (), options, own_grid=own_grid)
        solver, picked = choice.solver, str(choice)
    if isinstance(solver, str):
        name = solver_name(solver)
        method = make_solver(name, **options)
        number = method.default_steps if steps is None else steps
        asked = isinstance(grid, str) and grid == "fitted"
        if not options and (asked or grid is t_start is t_end is None):
            fitted = find_fitted(model, name, number, cond if isinstance(cond, Mapping) else ())
        if asked and options:
            raise ValueError(f"a fitted grid has options of its own: leave out {', '.join(options)}")
        if asked and fitted is None:
            raise ValueError(why_not_fitted(model, name, number, cond if isinstance(cond, Mapping) else ()))
        if asked and (t_start not in (None, model.sde.t_max) or t_end not in (None, model.sde.t_min)):
            ends = f"[{model.sde.t_min:.6g}, {model.sde.t_max:.6g}]"
            raise ValueError(f"a fitted grid runs from t_max to t_min, {ends}: leave out t_start and t_end, got {t_start!r} and {t_end!r}")
        if fitted is not None:
            method, grid = fitted.make(), fitted.grid
    elif isinstance(solver, Solver):
        if options:
            raise ValueError(f"options {', '.join(options)} belong to a solver given by name")
        name, method = type(solver).__name__, solver
    else:
        raise TypeError(f"solver must be a name or a Solver, got {solver!r}")
    if steps is None:
        counted = isinstance(grid, Tensor) and grid.ndim == 1 and len(grid) > 1 and not method.adaptive
        steps = len(grid) - 1 if counted else method.default_steps  # type: ignore[arg-type]
    _check_steps(steps)
    grid = method.default_grid if grid is None else grid
    given = t_end is not None
    if not isinstance(grid, Tensor):
        lookup(GRIDS, "grid", grid)
    elif not _is_grid(grid, None if method.adaptive else steps):
        raise ValueError(f"times must be {steps + 1} numbers that only rise or only fall, got shape {tuple(grid.shape)}")
    elif fitted is None:
        if t_start is not None or t_end is not None:
            raise ValueError("t_start and t_end are the ends of the times in grid: leave them out")
        grid = _inside(model.sde, grid.detach().to("cpu", torch.float64))
        t_start, t_end = float(grid[0]), float(grid[-1])
    sde = model.sde
    start, end = (sde.t_max if t_start is None else float(t_start)), (sde.t_min if t_end is None else float(t_end))
    for label, value in (("t_start", start), ("t_end", end)):
        if not sde.t_min <= value <= sde.t_max:
            raise ValueError(f"{label} must be in [t_min, t_max] = [{sde.t_min:.6g}, {sde.t_max:.6g}], got {value!r}")
    if start == end:
        raise ValueError(f"t_start and t_end must differ, both are {start!r}")
    if start < end and method.stochastic:
        raise ValueError(f"solver {name!r} runs from noise to data only: t_end must be below t_start, got {start!r} to {end!r}")
    if final is None:
        final = "denoise" if end < start and not given else "state"
    choose("final", final, ("denoise", "raw", "state"))
    return Plan(name, method, steps, grid, start, end, final, fitted is not None, picked)


def _plan_jumps(model: FlowMap, steps: int | None, grid: str | Tensor | None, final: str | None) -> Plan:
    """The plan of so many jumps (None: as many as `grid` has, or `Jumps.default_steps`)."""
    _check_steps(1 if steps is None else steps)
    if isinstance(grid, str):
        raise ValueError(
            f"a flow map jumps between the times that it was trained at, or those in grid; a grid by name is for solvers, got {grid!r}"
        )
    if grid is None:
        times = model.grid(Jumps.default_steps if steps is None else steps)
    elif _is_grid(grid, steps) and bool(grid[0] > grid[-1]):
        times = _inside(model.sde, grid.detach().to("cpu", torch.float64))
    else:
        many = "at least two" if steps is None else str(steps + 1)
        raise ValueError(f"the times of a flow map's jumps must be {many} numbers that fall, got shape {tuple(grid.shape)}")
    final = ("raw" if grid is None else "state") if final is None else final
    if final == "denoise":
        raise ValueError("a flow map ends in the data and knows no E[x_0 | x_t] to denoise by: final must be raw or state")
    choose("final", final, ("raw", "state"))
    return Plan(JUMPS, Jumps(), len(times) - 1, times, float(times[0]), float(times[-1]), final, False)


def _check_steps(steps: int) -> None:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ValueError(f"steps must be a whole number of at least 1, got {steps!r}")


def _is_grid(times: Tensor, steps: int | None) -> bool:
    """Whether these are times of so many steps (None: of at least one), that only rise or only fall."""
    if times.ndim != 1 or len(times) < 2 or not times.is_floating_point() or steps not in (None, len(times) - 1):
        return False
    return bool((times.diff() * (times[-1] - times[0]) > 0).all())


def _inside(sde: SDE, times: Tensor) -> Tensor:
    """`times` with ends that lie beyond the SDE's by no more than float32's rounding moved there."""
    held = times.clamp(sde.t_min, sde.t_max)
    return torch.where((held - times).abs() <= 1e-6, held, times)


def alpha_at(sde: SDE, t: float) -> float:
    """alpha(t), worked out in float64."""
    return float(sde.marginal(torch.tensor(t, dtype=torch.float64))[0])


def check_shape(shape: Sequence[int]) -> tuple[int, tuple[int, ...]]:
    """N and the data shape of `shape` = (N, *data shape). TypeError or ValueError for another."""
    try:
        numbers = tuple(operator.index(n) for n in shape)
    except TypeError:
        raise TypeError(f"shape must be (N, *data shape) in whole numbers, got {shape!r}") from None
    if len(numbers) < 2 or min(numbers) < 1:
        raise ValueError(f"shape must be (N, *data shape) with positive entries, got {tuple(shape)}")
    return numbers[0], numbers[1:]


def choose(what: str, value: str, allowed: Sequence[str]) -> None:
    """ValueError unless `value` is among the `allowed`."""
    if value not in allowed:
        raise ValueError(f"unknown {what} {value!r}; choose from {', '.join(allowed)}")


def check_choices(trajectory: str | None, on_failure: str, x_init_units: str) -> None:
    """ValueError for a word that `sample` does not know."""
    choose("on_failure", on_failure, ("raise", "mask"))
    choose("x_init_units", x_init_units, ("normalised", "data"))
    if trajectory not in (None, "states", "denoised"):
        raise ValueError(f"unknown trajectory {trajectory!r}; choose from None, states, denoised")


def device_and_dtype(
    model: Denoiser, x_init: Tensor | None, device: torch.device | str | None, dtype: torch.dtype | None
) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of the states: the model's own, at least float32."""
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    like = x_init if parameter is None else parameter
    own = torch.device("cpu") if like is None else like.device
    chosen = own if device is None else torch.device(device)
    if parameter is not None and (chosen.type, chosen.index or 0) != (own.type, own.index or 0):
        raise ValueError(f"the model is on {own} and its states are there too: move it, model.to({str(chosen)!r}), or leave device out")
    if dtype is None:
        dtype = torch.float64 if like is not None and like.dtype == torch.float64 else torch.float32
    if dtype not in (torch.float32, torch.float64):
        raise TypeError(f"states are float32 or float64, whatever the network's dtype, got {dtype}")
    return chosen if parameter is None else own, dtype
