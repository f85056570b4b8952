"""Decoupled annealing."""

from __future__ import annotations

import math
from itertools import pairwise

import torch
from torch import Tensor

from ..models.denoiser import Denoiser, Prediction, is_affine
from ..shapes import expand_as
from ..solvers import Run, Solver
from ..solvers.grids import make_grid
from .conditioned import Conditioned, Observed
from .measurement import MEASURED, Measurement

SIZE = 0.1
"""Of a step of Langevin's dynamics: variances come out a twentieth too large."""


class DAPS(Conditioned):
    """At each level the data are drawn given state and measurement, and noised anew to the next level: states forget one another.

        x_0 ~ N(D_ode(x_t), rho^2 I) times p(y | x_0),   x_s = alpha_s x_0 + sigma_s z,   rho = sigma/alpha

    D_ode is where `inner` DDIM steps of the flow lead; the draw is exact for a linear operator and Gaussian noise, as which other noise is
    taken. Of other operators it is `langevin` steps of Langevin's dynamics on log N(x_0; D_ode, rho^2 I) + log p(y | x_0), with
    the noise's own likelihood, which call no network and need noise.
    Not exact: p(x_0 | x_t) is no such Gaussian; the error goes with the steps' number and the data's smoothness.
    `inner` calls a step. It has a loop of its own and takes no other solver: `solver` is not looked at.
    Zhang et al. 2024, arXiv:2407.01521, algorithm 1.
    """

    def __init__(self, model: Denoiser, measurement: Measurement, inner: int = 5, langevin: int = 100) -> None:
        super().__init__(model, measurement)
        for label, value in (("inner", inner), ("langevin", langevin)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"{label} must be a whole number of at least 1, got {value!r}")
        exact = measurement.operator.linear and is_affine(model.normalizer)
        if not exact and measurement.noise.absent:
            raise ValueError("DAPS needs noise where the operator is not linear: std must be positive, got 0")
        self.inner, self.langevin = inner, langevin

    def correct(self, x: Tensor, t: Tensor | float, observed: Observed, cond: dict[str, Tensor]) -> Prediction:
        alpha, sigma = self.levels(x, t)
        found = self.model.predict(x, t, **cond)
        if not observed.linear:
            pull, curve = _slope(observed, found.denoised, found.denoised, sigma / alpha)
            return Prediction(found.denoised + pull / curve, found.variance_fraction)
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
            if observed.linear:
                drawn = denoised + rho * run.noise.draw()
                rest = observed.residual(drawn) - observed.variance_of_seen.sqrt() * numbers(run, observed)
                drawn = drawn + rho**2 * observed.adjoint(observed.solve(rest, rho**2))
            else:
                drawn = langevin(run, observed, denoised, rho, wrapper.langevin)
            x = alpha[k + 1] * drawn + sigma[k + 1] * run.noise.draw()
            if run.observe(s, x, denoised):
                break
        return x


def langevin(run: Run, observed: Observed, centre: Tensor, rho: float, steps: int) -> Tensor:
    """`steps` of Langevin's dynamics in p(x_0) ~ N(x_0; centre, rho^2 I) p(y | x_0), from a draw of the former.

    A step has `SIZE` of the most that is stable, 1/(1/rho^2 + the curvature of log p(y | .) along its own gradient), at each state.
    """
    x = centre + rho * run.noise.draw()
    for _ in range(steps):
        pull, curve = _slope(observed, x, centre, rho)
        x = x + SIZE / curve * pull + torch.sqrt(2 * SIZE / curve) * run.noise.draw()
    return x


def _slope(observed: Observed, x: Tensor, centre: Tensor, rho: Tensor | float) -> tuple[Tensor, Tensor]:
    """The gradient of log N(x; centre, rho^2 I) + log p(y | x), (B, *), and its curvature along itself, at least 1/rho^2, (B, 1, ...)."""
    with torch.enable_grad():
        at = x.detach().requires_grad_()
        far = (at - centre.detach()) / rho
        log_prob = observed.log_prob(at).sum() - 0.5 * far.square().sum()
        slope = torch.autograd.grad(log_prob, at, create_graph=True)[0]
        pull = slope.detach()
        along = pull / expand_as(pull.flatten(1).norm(dim=1).clamp_min(1e-30), pull)
        bent = torch.autograd.grad(slope, at, along)[0]
    least = 1 / torch.as_tensor(rho, dtype=x.dtype, device=x.device) ** 2
    return pull, torch.maximum(expand_as(bent.flatten(1).norm(dim=1), x), least)


def numbers(run: Run, observed: Observed) -> Tensor:
    """Standard normal numbers of the measurement's shape, from the samples' own noise."""
    size = observed.y[0].numel()
    draws = [run.noise.draw().flatten(1) for _ in range(math.ceil(size / observed.scale[0].numel()))]
    return torch.cat(draws, 1)[:, :size].reshape(observed.y.shape)
