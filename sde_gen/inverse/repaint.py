"""RePaint."""

from __future__ import annotations

import math
from dataclasses import replace

from torch import Tensor

from ..models.denoiser import Denoiser
from ..sdes import SDE
from ..solvers import FixedStepSolver, Run, Solver, Update, make_solver
from ..solvers.base import Table
from .measurement import Measurement
from .projection import Projected, Projection


class RePaint(Projection):
    """Projection whose every step is taken `rounds` times, with the forward noise back up in between, so that both parts come to agree.

        x_t = alpha_t/alpha_s x_s + sqrt(sigma_t^2 - (alpha_t/alpha_s)^2 sigma_s^2) z

    Not exact for finite rounds: in their limit the step is a chain that has forgotten its start. As many calls as steps times rounds. Made
    for masks without noise; linear operators. Solvers of single steps, such as ancestral and ddim.
    Lugmayr et al. 2022, arXiv:2201.09865 (jumps of one step; its 10 resamplings are the default).
    """

    def __init__(self, model: Denoiser, measurement: Measurement, rounds: int = 10) -> None:
        super().__init__(model, measurement)
        if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
            raise ValueError(f"rounds must be a whole number of at least 1, got {rounds!r}")
        self.rounds = rounds

    def loop(self, solver: str | Solver) -> Solver:
        single = make_solver("dpm_sde", order=1) if solver == "dpm_sde" else solver  # which are ancestral steps
        inner = super().loop(single)
        assert isinstance(inner, Projected)
        return _Repeated(inner.solver, self.rounds)


class _Repeated(Projected):
    def __init__(self, solver: FixedStepSolver, rounds: int) -> None:
        super().__init__(solver)
        self.rounds = rounds

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        plan = self.solver.plan(sde, times)
        if len(plan) != len(times) - 1 or any(len(update.b) != 1 or update.t is None for update in plan):
            raise ValueError(f"repaint needs a solver of single steps with one call, such as ancestral, got {type(self.solver).__name__}")
        alpha, sigma = (value.tolist() for value in sde.marginal(times))
        updates: list[Update] = []
        for k, update in enumerate(plan):
            ratio = alpha[k] / alpha[k + 1]
            up = Update(t=None, a=ratio, c=math.sqrt(max(0.0, sigma[k] ** 2 - (ratio * sigma[k + 1]) ** 2)))
            updates += [replace(update, s=None), up] * (self.rounds - 1) + [update]
        return updates

    def begin(self, run: Run, x: Tensor, t_start: float, times: Tensor) -> Table:
        return x, self.plan(run.model.sde, times), ()
