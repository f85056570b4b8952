"""Projection of the state onto the measurement, noised to its level."""

from __future__ import annotations

from torch import Tensor

from ..models.denoiser import PlannedTime, Prediction
from ..sdes import SDE
from ..solvers import FixedStepSolver, Run, Solver, Update, make_solver, run_updates
from ..solvers.base import Table
from .conditioned import Conditioned, Observed
from .measurement import MEASURED


class Projection(Conditioned):
    """The measured part of the state is drawn anew before each call of the network, from the measurement noised to the state's level.

        x' = x + H^+ (alpha y + sigma H z - H x),   then the solver's step from x'

    Never exact: what is not measured learns of y by the network alone, one step late. The measurement's own noise is not looked at.
    Linear operators; fixed-step solvers.

    Song et al. 2021, arXiv:2011.13456, appendix I.4; Song et al. 2022, arXiv:2111.08005.
    """

    linear = True

    def correct(self, x: Tensor, t: Tensor | float, observed: Observed, cond: dict[str, Tensor]) -> Prediction:
        return self.model.predict(x, t, **cond)

    def loop(self, solver: str | Solver) -> Solver:
        method = make_solver(solver) if isinstance(solver, str) else solver
        if not isinstance(method, FixedStepSolver):
            raise ValueError(f"{type(self).__name__} needs a fixed-step solver such as ancestral or ddim, got {solver!r}")
        return Projected(method)


class Projected(FixedStepSolver):
    """`solver` with its states projected before each call of the network."""

    stochastic = True

    def __init__(self, solver: FixedStepSolver) -> None:
        self.solver, self.needs_variance = solver, solver.needs_variance
        self.default_steps, self.default_grid = solver.default_steps, solver.default_grid

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        return self.solver.plan(sde, times)

    def begin(self, run: Run, x: Tensor, t_start: float, times: Tensor) -> Table:
        return self.solver.begin(run, x, t_start, times)

    def solve(self, run: Run, x: Tensor, t_start: float, t_end: float, steps: int, grid: str | Tensor) -> Tensor:
        run.population = _Projector(run)
        try:
            return run_updates(run, *self.table(run, x, t_start, self.times(run, x, t_start, t_end, steps, grid)))
        finally:
            run.population = None


class _Projector:
    """Stands where particles would, between the states of a run and its network."""

    def __init__(self, run: Run) -> None:
        self.run = run

    def step(
        self, model: Conditioned, x: Tensor, t: PlannedTime | float, history: tuple[Tensor, ...], cond: dict[str, Tensor]
    ) -> tuple[Tensor, Prediction, tuple[Tensor, ...]]:
        alpha, sigma = model.levels(x, t)
        observed = model.observed(x, t, cond[MEASURED])
        noised = sigma * observed.forward(self.run.noise.draw()) + alpha * observed.residual(0 * x) - observed.forward(x)
        x = x + observed.adjoint(observed.solve(noised, 1.0, noise=0.0))
        return x, model.predict(x, t, **cond), history

    def moved(self, update: Update, z: Tensor) -> None:
        return None
