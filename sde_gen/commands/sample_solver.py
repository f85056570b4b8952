"""How samples of a network are drawn: the solver, steps and grid that flags and the run's configuration come to."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from ..models.denoiser import Denoiser
from ..models.flow_map import STRENGTH, FlowMap
from ..models.score import ScoreModel
from ..sampling.automatic import AUTO, choose_solver
from ..sampling.fitted import find_fitted
from ..sampling.jumps import JUMPS, Jumps
from ..solvers import GRIDS, make_solver
from .config import SamplingConfig, registered_solver


def solver_of(
    model: ScoreModel, drawn: Denoiser, own: SamplingConfig, solver: str | None, steps: int | None, grid: str | None, rule: str | None
) -> dict[str, Any]:
    """How samples of `drawn` are drawn, `model` or a guided one: the keys solver, options, steps, grid, fitted (None where no grid is) and
    auto (what it stands for in a line, else None).

    own: the run's configuration, which says what is None, of steps and grid where its solver is the same. rule: of the guidance.
    ValueError, one line, for what does not fit together.
    """
    name = own.solver if solver is None else registered_solver(solver)
    same = name == own.solver
    options = own.options if same else {}
    count = own.steps if steps is None and same else steps
    chosen = own.grid if grid is None and same else grid
    picked = None
    if name == AUTO:
        choice = choose_solver(drawn, count, model.encoders, options, own_grid=chosen in (None, "fitted"))
        name, picked = choice.solver, str(choice)
    method = make_solver(name, **options)
    if method.adaptive and getattr(drawn, "by_steps", False):
        raise ValueError(f"--rule {rule} depends on the solver's steps, which {name!r} chooses as it runs; ddim or dpm have them")
    if method.needs_variance and model.variance is None:
        raise ValueError(f"solver {name!r} with these options needs a network that learns the variance, which this one does not")
    check_steps(count)
    if chosen not in (None, "fitted", *GRIDS):
        raise ValueError(f"unknown grid {chosen!r}; choose from {', '.join(GRIDS)}, fitted")
    number = method.default_steps if count is None else count
    fitted = find_fitted(drawn, name, number, model.encoders) if not options and chosen in (None, "fitted") else None
    if chosen == "fitted" and fitted is None and drawn is not model and grid is None:
        chosen = None  # the run's grid is fitted to the network as it is, not to a guided one
    if chosen == "fitted" and fitted is None:
        raise ValueError(f"no grid is fitted for {name!r} at {number} steps; sde-gen run --grid fitted with these fits one")
    kept = None if fitted is None else asdict(fitted)
    return {"solver": name, "options": options, "steps": count, "grid": chosen, "fitted": kept, "auto": picked}


def jumps_of(
    flow: FlowMap, solver: str | None, steps: int | None, grid: str | None, guidance: float | None, rule: str | None
) -> dict[str, Any]:
    """The same of a flow map, whose own jumps take a number of steps and nothing else."""
    for flag, value in (("solver", solver if solver != JUMPS else None), ("grid", grid)):
        if value is not None:
            raise ValueError(f"--{flag} {value}: a flow map is sampled by its own jumps, and takes --steps alone")
    check_steps(steps)
    flow.grid(steps or Jumps.default_steps)
    if rule not in (None, "cfg"):
        raise ValueError(f"--rule {rule}: the guidance that is distilled into a flow map is cfg")
    if guidance is not None:
        try:
            flow.conditions({STRENGTH: guidance}, 1, next(flow.parameters()).device)
        except ValueError as error:
            raise ValueError(f"--guidance {guidance:g}: {error}") from None
    return {"solver": JUMPS, "options": {}, "steps": steps, "grid": None, "fitted": None, "auto": None}


def check_steps(steps: int | None) -> None:
    """ValueError for a number of steps that is none."""
    if steps is not None and steps < 1:
        raise ValueError(f"--steps must be at least 1, got {steps}")
