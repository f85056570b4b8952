"""Which solver `solver="auto"` stands for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from ..models.denoiser import Denoiser
from ..solvers import make_solver
from .fitted import FittedGrid, law_of

AUTO, FLOW, NOISY = "auto", "angle", "dpm_sde"
"""Of the flow, `angle` was nearest to the exact one at every number of calls from 5 to 50 (benchmarks/solver_error.py, solver_quality.py);
of the solvers with noise of their own `dpm_sde` needs the fewest calls."""


@dataclass(frozen=True)
class Choice:
    """The solver that "auto" stands for, its steps, the grid that it was fitted with (None: its own), and why it is this one."""

    solver: str
    steps: int
    fitted: FittedGrid | None
    why: str

    def __str__(self) -> str:
        grid = " on a fitted grid" if self.fitted is not None else ""
        return f"{self.solver}, {self.steps} steps{grid}: {self.why}"


def choose_solver(
    model: Denoiser,
    steps: int | None = None,
    conditions: Iterable[str] = (),
    options: Mapping[str, Any] | None = None,
    particles: bool = False,
    own_grid: bool = True,
) -> Choice:
    """The solver for so many steps, each one call of the model; steps None: as many as the solver takes by default.

    - Particles, and models corrected by a measurement: `dpm_sde`, a solver of the reverse SDE, as `sde_gen.posterior` takes.
    - Else a solver that `fit_grid` has fitted to this model for so many steps under the conditions of these names, the one with the least
      error; not where own_grid is False, as for a grid or ends of the caller's own.
    - Else `angle`.

    Raises ValueError for options, which belong to a solver that is named.
    """
    flow_solver(AUTO, options)
    noisy = "particles need the reverse SDE" if particles else "a measurement's corrections follow no flow" if _measured(model) else None
    if noisy is not None:
        return Choice(NOISY, make_solver(NOISY).default_steps if steps is None else steps, None, noisy)
    number = make_solver(FLOW).default_steps if steps is None else steps
    names = tuple(sorted(conditions))
    known = [fit for key, fit in model.fitted.items() if own_grid and key[1:3] == (number, names)]
    if known:
        law = law_of(model)
        fit = min((fit for fit in known if fit.law == law), key=lambda fit: fit.error, default=None)
        if fit is not None:
            return Choice(fit.solver, number, fit, f"fitted to this model, {fit.error:.2g} from its flow")
    return Choice(FLOW, number, None, "the nearest to the flow at 5 to 50 calls")


def flow_solver(name: str, options: Mapping[str, Any] | None = None) -> str:
    """`name`, or what "auto" stands for where nothing is known of a model yet; ValueError for options of "auto"."""
    if name == AUTO and options:
        raise ValueError(f"solver 'auto' has no options, got {', '.join(options)}: they belong to a solver given by name")
    return FLOW if name == AUTO else name


def _measured(model: Denoiser) -> bool:
    """Whether a measurement corrects the model or one that it is made of (`sde_gen.inverse`, which this room may not know)."""
    return any(getattr(part, "measurement", None) is not None for part in model.modules())
