"""Particles: several states for each sample, weighted and resampled on their way to the law that a combination of scores stands for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..models.combination import ScoreCombination
from ..models.denoiser import PlannedTime, Prediction
from ..randomness import NoiseStream
from .base import FixedStepSolver, Run, Solver, run_updates

THRESHOLD = 0.5
"""A group whose effective sample size is below this share of its particles is resampled."""
_UNIFORM = 0x5DE6A7
"""Told from the seed of the noise, so that resampling draws numbers of its own."""


class Population:
    """The particles of a batch, group by group: their log-weights and the state of their resampling.

    log_weights: (groups, size) float64, with each group's evidence in them: the mean of their exponentials estimates it.
    """

    def __init__(self, size: int, uniforms: NoiseStream) -> None:
        self.size, self.uniforms = size, uniforms
        self.log_weights = torch.zeros(uniforms.shape[0], size, dtype=torch.float64, device=uniforms.device)
        self.rate: Tensor | None = None
        self.level = 0.0
        self.own = torch.arange(uniforms.shape[0] * size, device=uniforms.device)

    def step(
        self, model: ScoreCombination, x: Tensor, t: PlannedTime | float, history: tuple[Tensor, ...], cond: dict[str, Tensor]
    ) -> tuple[Tensor, Prediction, tuple[Tensor, ...]]:
        """What the model predicts at x, after the weights of the way here and, where a group needs it, its resampling; with x and the
        predictions before it in the order that this leaves."""
        found, rate = model.weigh(x, t, **cond)
        self._weigh(rate, float(model.sde.half_log_snr(float(t))))
        order = self._order()
        self.rate = rate[order]
        fraction = None if found.variance_fraction is None else found.variance_fraction[order]
        return x[order], Prediction(found.denoised[order], fraction), tuple(value[order] for value in history)

    def end(self, model: ScoreCombination, x: Tensor, t: float, cond: dict[str, Tensor]) -> None:
        """The weights of the last step, by one more call."""
        self._weigh(model.weigh(x, t, **cond)[1], float(model.sde.half_log_snr(t)))

    def _weigh(self, rate: Tensor, level: float) -> None:
        # The rate varies slowly with lambda, however much the SNR does: half of its values at both ends.
        if self.rate is not None:
            self.log_weights = self.log_weights + (0.5 * (level - self.level) * (self.rate + rate)).reshape(self.log_weights.shape)
        self.rate, self.level = rate, level

    def _order(self) -> Tensor:
        """Systematic resampling of the groups below the threshold: which row each row takes its state from. Nothing waits for a device."""
        uniform = torch.special.ndtr(self.uniforms.draw().reshape(-1, 1))  # drawn every time, whether it is used or not
        weights = self.log_weights.softmax(1)
        few = 1 / weights.square().sum(1) < THRESHOLD * self.size
        places = (uniform + torch.arange(self.size, device=weights.device)) / self.size
        chosen = torch.searchsorted(weights.cumsum(1), places).clamp_max(self.size - 1)
        first = self.size * torch.arange(len(weights), device=weights.device)[:, None]
        evidence = torch.logsumexp(self.log_weights, 1, keepdim=True) - math.log(self.size)
        self.log_weights = torch.where(few[:, None], evidence.expand_as(self.log_weights), self.log_weights)
        return torch.where(few[:, None], first + chosen, self.own.reshape(weights.shape)).flatten()

    @property
    def ess(self) -> Tensor:
        """The effective sample size of each group, (groups,)."""
        return 1 / self.log_weights.softmax(1).square().sum(1)


class Populated(Solver):
    """`solver` with groups of `size` particles; the rows of a batch are whole groups, one after the other.

    done: the populations of the batches behind, in order.
    """

    stochastic = True

    def __init__(self, solver: FixedStepSolver, size: int, seed: int, first: int) -> None:
        self.solver, self.size, self.seed, self.first = solver, size, seed, first
        self.group, self.needs_variance = size, solver.needs_variance
        self.default_steps, self.default_grid = solver.default_steps, solver.default_grid
        self.done: list[Population] = []

    def solve(self, run: Run, x: Tensor, t_start: float, t_end: float, steps: int, grid: str | Tensor) -> Tensor:
        assert isinstance(run.model, ScoreCombination)
        groups, before = len(x) // self.size, sum(len(population.log_weights) for population in self.done)
        uniforms = NoiseStream(self.seed ^ _UNIFORM, self.first + before, groups, (1,), torch.float64, x.device)
        run.population = population = Population(self.size, uniforms)
        x = run_updates(run, *self.solver.table(run, x, t_start, self.solver.times(run, x, t_start, t_end, steps, grid)))
        population.end(run.model, x, t_end, run.cond)
        run.nfe += run.model.cost_at(t_end)
        self.done.append(population)
        return x
