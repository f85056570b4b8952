"""Time grids and solver weights fitted to a model."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..models.denoiser import Denoiser
from ..randomness import NoiseStream
from ..solvers import FixedStepSolver, Run, Solver, make_solver, solver_name
from .calibration import Pilots, default_times
from .descent import Descent
from .fitted import FittedGrid, law_of
from .plan import choose
from .regression import regress

SEED = 0x5EED
"""Calibration samples have a seed of their own, so that no sample drawn later was seen by the fit (unless it asks for this)."""
EVALUATIONS, EVALUATIONS_FREE = 750, 4000
"""Network evaluations of a batch in each phase of the descent where nothing is asked for; the second where the score has no parameters."""
NUMBERS, FEWEST, MOST = 8192, 96, 512
"""Pilots where nothing is asked for: so many that they hold this many numbers, between these."""
BATCH_NUMBERS = 1024
"""As many numbers are in one batch of the descent, and 16 pilots at least."""
METHODS = ("regression", "descent", "best")


def fit_grid(
    model: Denoiser,
    solver: str = "angle",
    steps: int = 10,
    shape: Sequence[int] | None = None,
    samples: int | None = None,
    batch_size: int | None = None,
    iterations: int | None = None,
    seed: int = SEED,
    cond: Mapping[str, Any] | None = None,
    dtype: torch.dtype | None = None,
    method: str = "regression",
    **solver_options: Any,
) -> FittedGrid:
    """Find the times and the weights with which `steps` steps of `solver` come closest to the flow.

        minimise over times and weights  mean_i log || x_i(fitted, steps) - x_i(converged) ||

    Pilot samples are led once along the flow by `ode`. A half of them is fitted, the other half chooses. The result is stored in
    `model.fitted`, saved with the checkpoint, and used by `sample` where solver, steps, the conditions' names and the model are these:
    its weights, process and guidance (see `law_of`).

    solver: a deterministic fixed-step one, with its options.
    shape: of one sample; None: that of the model's moments.
    samples: how many pilots, draws of the prior; None: 96 to 512, as their size asks for. seed: of these.
    cond: conditions, first dimension `samples`.
    method: "regression": the weights of each step in closed form (see `regress`), on the best of a few grids: seconds.
        "descent": by gradients through solver and network, first the times (and the solver's `scale` where it has one), then both.
        "best": the descent starts from the regression, and the held-out pilots choose among all that was found: minutes for a network.
    batch_size: pilots in one iteration of the descent (None: 16, or more of few dimensions).
    iterations: of each phase of the descent; None: so many that the cost does not depend on steps.

    Raises ValueError for a solver that is stochastic or adaptive, a shape that is not known, or a converged
    answer that is not finite. Tong et al. 2025, arXiv:2405.15506 (LD3); S4S, arXiv:2502.17423; the regression is this package's own.
    """
    solver = solver_name(solver)
    rule = check_fit(solver, make_solver(solver, **solver_options), steps)
    choose("method", method, METHODS)
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if iterations is None:
        iterations = max(20, min(400, (EVALUATIONS_FREE if parameter is None else EVALUATIONS) // max(1, steps)))
    if shape is None:
        if model.moments is None or model.moments.mean.ndim == 0:
            raise ValueError("the model does not know the shape of a sample: give shape")
        shape = tuple(model.moments.mean.shape)
    samples = min(MOST, max(FEWEST, NUMBERS // max(1, math.prod(shape)))) if samples is None else samples
    batch_size = max(16, BATCH_NUMBERS // max(1, math.prod(shape))) if batch_size is None else batch_size
    for label, count, least in (
        ("samples", samples, 4),
        ("iterations", iterations, 1),
        ("batch_size", batch_size, 1),
    ):
        if isinstance(count, bool) or not isinstance(count, int) or count < least:
            raise ValueError(f"{label} must be a whole number of at least {least}, got {count!r}")
    device = torch.device("cpu") if parameter is None else parameter.device
    dtype = dtype or (torch.float64 if parameter is None or parameter.dtype == torch.float64 else torch.float32)
    given = model.conditions(cond, samples, device)
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        noise = NoiseStream(seed, 0, samples, shape, dtype, device)
        run = Run(model, noise, torch.zeros(samples, dtype=torch.int64, device=device), given)
        with torch.no_grad():
            pilots = Pilots(run, model.prior.from_noise(noise.draw()), steps)
        found = _find(pilots, rule, steps, method, iterations, batch_size)
    finally:
        for module in training:  # one by one: a network in evaluation mode may be inside a model that is not
            module.training = True
    options = solver_options | found.pop("options")
    conditions = tuple(sorted(given))
    result = FittedGrid(solver, steps, options=options, conditions=conditions, law=law_of(model), nfe=int(run.nfe.sum()), **found)
    model.fitted[result.key] = result
    return result


def _find(pilots: Pilots, rule: FixedStepSolver, steps: int, method: str, iterations: int, batch_size: int) -> dict[str, Any]:
    """What a FittedGrid holds beside its key, by `method`."""
    with torch.no_grad():
        times = default_times(rule, pilots, steps)
    if method == "descent":
        pilots.follow(times[-1:])
        fitted = None
    else:
        fitted = regress(pilots, rule, steps)
    plain = Descent(pilots, rule, times)
    default = plain.best[0]
    found = {"default": plain} if fitted is None else {"default": plain, "regression": Descent(pilots, rule, *fitted)}
    if method != "regression":
        start = min(found.values(), key=lambda search: search.best[0])
        found["descent"] = Descent(pilots, rule, *fitted) if start is found.get("regression") and fitted else Descent(pilots, rule, times)
        for weights in (False, True) if start is plain else (True,):
            found["descent"].run(weights, iterations, batch_size)
    chosen = min(found, key=lambda name: found[name].best[0])
    return found[chosen].found() | {"error": math.exp(found[chosen].best[0]), "default_error": math.exp(default), "method": chosen}


def check_fit(name: str, solver: Solver, steps: int | None) -> FixedStepSolver:
    """`solver` if a grid of so many steps (None: its default) can be fitted for it, else ValueError."""
    if not isinstance(solver, FixedStepSolver) or solver.stochastic:
        raise ValueError(f"a grid is fitted for deterministic fixed-step solvers only, got {name!r}")
    if steps is not None and (isinstance(steps, bool) or not isinstance(steps, int) or steps < 2):
        raise ValueError(f"a grid is fitted for 2 steps or more, got {steps!r}")
    return solver
