"""Decoupled annealing."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from ..models.denoiser import Denoiser, Prediction
from ..solvers import Run, Solver
from ..solvers.grids import make_grid
from .conditioned import Conditioned, Observed
from .measurement import MEASURED, Measurement


class DAPS(Conditioned):
    """At each level the data are drawn given state and measurement, and noised anew to the next level: states forget one another.

        x_0 ~ N(D_ode(x_t), rho^2 I) times p(y | x_0),   x_s = alpha_s x_0 + sigma_s z,   rho = sigma/alpha

    D_ode is where `inner` DDIM steps of the flow lead; the draw is exact for a linear operator and Gaussian noise, as which other noise is
    taken. Not exact: p(x_0 | x_t) is no such Gaussian; the error goes with the steps' number and the data's smoothness.
    Linear operators. `inner` calls a step. It has a loop of its own and takes no other solver: `solver` is not looked at.
    Zhang et al. 2024, arXiv:2407.01521, algorithm 1.
    """

    linear = True

    def __init__(self, model: Denoiser, measurement: Measurement, inner: int = 5) -> None:
        super().__init__(model, measurement)
        if isinstance(inner, bool) or not isinstance(inner, int) or inner < 1:
            raise ValueError(f"inner must be a whole number of at least 1, got {inner!r}")
        self.inner = inner

    def correct(self, x: Tensor, t: Tensor | float, observed: Observed, cond: dict[str, Tensor]) -> Prediction:
        alpha, sigma = self.levels(x, t)
        found = self.model.predict(x, t, **cond)
        return Prediction(found.denoised + observed.pulled(found.denoised, (sigma / alpha) ** 2), found.variance_fraction)

    def loop(self, solver: str | Solver) -> Solver:
        return _Decoupled(self.inner)


class _Decoupled(Solver):
    stochastic = True

    def __init__(self, inner: int) -> None:
        self.inner = inner

    def solve(self, run: Run, x: Tensor, t_start: float, t_end: float, steps: int, grid: str | Tensor) -> Tensor:
        sde, wrapper = run.model.sde, run.model
        assert isinstance(wrapper, DAPS)
        cond = {name: value for name, value in run.cond.items() if name != MEASURED}
        times = make_grid(sde, grid, t_start, t_end, steps)
        alpha, sigma = (value.tolist() for value in sde.marginal(times))
        observed = Observed(wrapper, run.cond[MEASURED], x)
        for k, (t, s) in enumerate(pairwise(times.tolist())):
            state, down = x, make_grid(sde, "half_log_snr", t, t_end, self.inner)
            levels = list(zip(down.tolist(), *(value.tolist() for value in sde.marginal(down)), strict=True))
            for (now, a, b), (_, a_next, b_next) in pairwise(levels):
                denoised = wrapper.model.predict(state, now, **cond).denoised
                run.nfe += wrapper.model.cost_at(now)
                state = a_next * denoised + b_next / b * (state - a * denoised)
            rho = sigma[k] / alpha[k]
            drawn = denoised + rho * run.noise.draw()
            rest = observed.residual(drawn) - observed.variance_of_seen.sqrt() * numbers(run, observed)
            drawn = drawn + rho**2 * observed.adjoint(observed.solve(rest, rho**2))
            x = alpha[k + 1] * drawn + sigma[k + 1] * run.noise.draw()
            if run.observe(s, x, denoised):
                break
        return x


def numbers(run: Run, observed: Observed) -> Tensor:
    """Standard normal numbers of the measurement's shape, from the samples' own noise."""
    size = observed.y[0].numel()
    draws = [run.noise.draw().flatten(1) for _ in range(math.ceil(size / observed.scale[0].numel()))]
    return torch.cat(draws, 1)[:, :size].reshape(observed.y.shape)
