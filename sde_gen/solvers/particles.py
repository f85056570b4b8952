"""Particles: several states for each sample, weighted and resampled on their way to the law that their model stands for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..models.denoiser import PlannedTime, Prediction
from ..models.weighed import Weighed, Weighing
from ..randomness import NoiseStream
from .base import FixedStepSolver, Run, Solver, Update, run_updates

THRESHOLD = 0.5
"""A group whose effective sample size is below this share of its particles is resampled."""
_UNIFORM = 0x5DE6A7
"""Told from the seed of the noise, so that resampling draws numbers of its own."""


class Population:
    """The particles of a batch, group by group: their log-weights and the state of their resampling.

    log_weights: (groups, size) float64, with each group's evidence in them: the mean of their exponentials estimates it.
    ancestors: which particle of the start each one comes from, (groups, size).
    """

    def __init__(self, size: int, uniforms: NoiseStream) -> None:
        self.size, self.uniforms = size, uniforms
        groups = uniforms.shape[0]
        self.log_weights = torch.zeros(groups, size, dtype=torch.float64, device=uniforms.device)
        self.rate: Tensor | None = None
        self.twist: Tensor | None = None
        self.shifts: tuple[Tensor, ...] = ()
        self.level = 0.0
        self.own = torch.arange(groups * size, device=uniforms.device)
        self.ancestors = self.own.reshape(groups, size)

    def step(
        self, model: Weighed, x: Tensor, t: PlannedTime | float, history: tuple[Tensor, ...], cond: dict[str, Tensor]
    ) -> tuple[Tensor, Prediction, tuple[Tensor, ...]]:
        """What the model predicts at x, after the weights of the way here and, where a group needs it, its resampling; with x and the
        predictions before it in the order that this leaves."""
        weighing = model.weigh(x, t, **cond)
        self._weigh(weighing, float(model.sde.half_log_snr(float(t))))
        order = self._order()
        self.ancestors = self.ancestors.flatten()[order].reshape(self.ancestors.shape)
        self.rate, self.twist = (None if value is None else value[order] for value in (self.rate, self.twist))
        if weighing.shift is not None:
            # One more than predictions before it: a multistep solver's step has the shifts of all.
            self.shifts = tuple(value[order] for value in (weighing.shift, *self.shifts[: len(history)]))
        found = weighing.prediction
        fraction = None if found.variance_fraction is None else found.variance_fraction[order]
        return x[order], Prediction(found.denoised[order], fraction), tuple(value[order] for value in history)

    def moved(self, update: Update, z: Tensor) -> None:
        """The weights of a step taken with the noise z."""
        if not self.shifts:
            return
        if update.c_most is not None or update.view is not None:
            raise ValueError("particles that are weighted step by step need a solver that predicts the data, and no learned variance")
        drift = sum(weight / update.c * shift for weight, shift in zip(update.b, self.shifts, strict=False))
        assert isinstance(drift, Tensor)
        gained = -(drift * (z + 0.5 * drift)).double().flatten(1).sum(1)
        self.log_weights = self.log_weights + gained.reshape(self.log_weights.shape)

    def end(self, model: Weighed, x: Tensor, t: float, cond: dict[str, Tensor]) -> None:
        """The weights of the last step, by one more call."""
        self._weigh(model.weigh_last(x, t, **cond), float(model.sde.half_log_snr(t)))

    def _weigh(self, found: Weighing, level: float) -> None:
        if found.rate is not None and self.rate is not None:
            # The rate varies slowly with lambda, however much the SNR does: half of its values at both ends.
            self.log_weights = self.log_weights + (0.5 * (level - self.level) * (self.rate + found.rate)).reshape(self.log_weights.shape)
        if found.twist is not None:
            gained = found.twist if self.twist is None else found.twist - self.twist
            self.log_weights = self.log_weights + gained.reshape(self.log_weights.shape)
        self.rate, self.twist, self.level = found.rate, found.twist, level

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

    @property
    def evidence_error(self) -> Tensor:
        """The standard error of each group's log-evidence, (groups,), from the weights that go back to each particle of the start:

            var = K/(K - 1) sum_k (S_k - 1/K)^2,   S_k the share of the final weight that comes from k

        Chan and Lai 2013, doi 10.1214/13-AOS1172; Lee and Whiteley 2018, arXiv:1509.00394. NaN for a group of one.
        """
        shares = torch.zeros_like(self.log_weights).flatten()
        shares = shares.index_add(0, self.ancestors.flatten(), self.log_weights.softmax(1).flatten()).reshape(self.log_weights.shape)
        size = self.size
        return torch.sqrt(size / (size - 1) * (shares - 1 / size).square().sum(1)) if size > 1 else torch.full_like(shares[:, 0], math.nan)


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
        assert isinstance(run.model, Weighed)
        groups, before = len(x) // self.size, sum(len(population.log_weights) for population in self.done)
        uniforms = NoiseStream(self.seed ^ _UNIFORM, self.first + before, groups, (1,), torch.float64, x.device)
        run.population = population = Population(self.size, uniforms)
        x = run_updates(run, *self.solver.table(run, x, t_start, self.solver.times(run, x, t_start, t_end, steps, grid)))
        population.end(run.model, x, t_end, run.cond)
        run.nfe += run.model.cost_at(t_end)
        self.done.append(population)
        return x
