"""Particles: several states for each sample, weighted and resampled on their way to the law that their model stands for."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..models.denoiser import PlannedTime, Prediction
from ..models.weighed import Proposal, Weighed, Weighing
from ..randomness import NoiseStream
from .base import FixedStepSolver, Run, Solver, Update, run_updates

THRESHOLD = 0.5
"""A group whose effective sample size is below this share of its particles is resampled, unless the model says another share."""
_UNIFORM = 0x5DE6A7
"""Told from the seed of the noise, so that resampling draws numbers of its own."""


class Population:
    """The particles of a batch, group by group: their log-weights and the state of their resampling.

    log_weights: (groups, size) float64, with each group's evidence in them: the mean of their exponentials estimates it.
    ancestors: which particle of the start each one comes from, (groups, size).
    """

    def __init__(self, size: int, uniforms: NoiseStream, threshold: float) -> None:
        self.size, self.uniforms, self.threshold = size, uniforms, threshold
        groups = uniforms.shape[0]
        self.log_weights = torch.zeros(groups, size, dtype=torch.float64, device=uniforms.device)
        self.rate: Tensor | None = None
        self.twist: Tensor | None = None
        self.proposal: Proposal | None = None
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
        order = self._order(self.level >= model.resample_from)
        self.ancestors = self.ancestors.flatten()[order].reshape(self.ancestors.shape)
        self.rate, self.twist = (None if value is None else value[order] for value in (self.rate, self.twist))
        self.proposal = None if weighing.proposal is None else weighing.proposal.taken(order)
        found = weighing.prediction
        fraction = None if found.variance_fraction is None else found.variance_fraction[order]
        return x[order], Prediction(found.denoised[order], fraction), tuple(value[order] for value in history)

    def moved(self, update: Update, z: Tensor) -> Tensor | None:
        """What a proposal adds to a step with the noise z, after the weights of that step."""
        if self.proposal is None:
            return None
        if update.c_most is not None or update.view is not None:
            raise ValueError("particles with a proposal need a solver in data prediction, such as dpm_sde, and no learned variance")
        kick, gained = self.proposal.move(sum(update.b), update.c, z)
        self.log_weights = self.log_weights + gained.reshape(self.log_weights.shape)
        return kick

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

    def _order(self, open_to_it: bool) -> Tensor:
        """Systematic resampling of the groups below the threshold: which row each row takes its state from. Nothing waits for a device."""
        uniform = torch.special.ndtr(self.uniforms.draw().reshape(-1, 1))  # drawn every time, whether it is used or not
        if not open_to_it:
            return self.own
        weights = self.log_weights.softmax(1)
        few = 1 / weights.square().sum(1) < self.threshold * self.size
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
    def lineages(self) -> Tensor:
        """The effective number of particles of the start that each group comes from, (groups,): 1/sum_k S_k^2, S_k the share of the final
        weight that goes back to k. Resampling makes particles weigh alike by copying them, which `ess` does not see and this does."""
        shares = torch.zeros_like(self.log_weights).flatten()
        shares = shares.index_add(0, self.ancestors.flatten(), self.log_weights.softmax(1).flatten()).reshape(self.log_weights.shape)
        return 1 / shares.square().sum(1)

    @property
    def evidence_error(self) -> Tensor:
        """See `evidence_error`, (groups,)."""
        return evidence_error(self.lineages, self.size)


def evidence_error(lineages: Tensor, size: int) -> Tensor:
    """The standard error of the log-evidence of `size` particles that come from an effective number of them at the start:

        var = K/(K - 1) sum_k (S_k - 1/K)^2 = K/(K - 1) (1/lineages - 1/K)

    Chan and Lai 2013, doi 10.1214/13-AOS1172; Lee and Whiteley 2018, arXiv:1509.00394. NaN for a single particle. It cannot exceed 1: where
    all come from one or two, the evidence may be off by far more than it says.
    """
    if size < 2:
        return torch.full_like(lineages, math.nan)
    return torch.sqrt(size / (size - 1) * (1 / lineages - 1 / size).clamp_min(0))


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
        threshold = THRESHOLD if run.model.resample_below is None else run.model.resample_below
        run.population = population = Population(self.size, uniforms, threshold)
        x = run_updates(run, *self.solver.table(run, x, t_start, self.solver.times(run, x, t_start, t_end, steps, grid)))
        population.end(run.model, x, t_end, run.cond)
        run.nfe += run.model.cost_at(t_end)
        self.done.append(population)
        return x
