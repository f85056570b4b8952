"""The loop that every solver runs on.

A fixed-step solver is a table: all that depends on time alone is worked out in float64 before the loop, as a list of
`Update`s, and the loop only touches tensors of x's shape. Single-step, multistep, Runge-Kutta and Langevin methods are all
such tables, so that a method is one `plan` and nothing else.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from itertools import zip_longest
from typing import Any

import torch
from torch import Tensor

from ..models.denoiser import Denoiser, Prediction, check_prediction
from ..models.measured_moments import moments_of
from ..models.moments import Moments
from ..randomness import NoiseStream
from ..sdes import SDE
from ..shapes import expand_as
from .grids import NORMAL, make_grid

SMALLEST_NORM = 1e-12
"""Of a score: a score of 0 gives a huge step, which is caught like every sample that grows absurdly, and no division by 0."""
Observer = Callable[[float, Tensor, Tensor], bool]
Table = tuple[Tensor, "list[Update]", tuple[Tensor, ...]]


@dataclass(frozen=True)
class Update:
    """x <- a x + b[0] D_0 + b[1] D_1 + ... + c z, with D_0 = E[x_0|x] predicted at time `t`, D_1 the prediction before it.

    t: time of the network call; None: no call, D_0 is the last prediction.
    s: the time reached where this update ends a step of the grid, else None.
    view: (p, q) to use and remember p x + q E[x_0|x] in the place of E[x_0|x]: (1/sigma, -alpha/sigma) is the noise.
    keep: whether later updates see this prediction. z is standard normal.
    c_most: where given, the noise's factor is c^(1 - v) c_most^v with the variance fraction v that the model predicts beside D_0.
    snr: where given, the prediction that `view` shows is the score, and the update the Langevin step x + e score + sqrt(2 e) z with
        e = 2 (snr |z|/|score|)^2, norms over each sample alone; a, b and c are not used.
    """

    t: float | None
    a: float
    b: tuple[float, ...] = ()
    c: float = 0.0
    s: float | None = None
    view: tuple[float, float] | None = None
    keep: bool = True
    c_most: float | None = None
    snr: float | None = None


@dataclass
class Run:
    """One batch on its way: the model with its conditions, its noise, what is counted and watched, and the weights of its particles."""

    model: Denoiser
    noise: NoiseStream
    nfe: Tensor
    cond: dict[str, Tensor] = field(default_factory=dict)
    observer: Observer | None = None
    population: Any = None

    def moments(self, x: Tensor) -> Moments | None:
        """The data's mean and covariance, from the model (see `moments_of`); None where a condition may have changed them and
        the model has none of its own."""
        return self.model.moments if self.cond else moments_of(self.model, x)

    def spread(self, x: Tensor) -> tuple[float, float]:
        """Standard deviations of the data in normalised units: along the directions that hold most of the variance, and over
        all (see `Moments.spread`); data_std or 1 where there are no moments."""
        moments = self.moments(x)
        std = self.model.data_std or 1.0
        return (std, std) if moments is None else moments.spread()

    def predict(self, x: Tensor, t: Tensor | float, which: Tensor | None = None) -> Prediction:
        """What the model predicts at x, counted, with the conditions of the samples `which` (None: all of the batch)."""
        if which is None:
            self.nfe += self.model.cost if isinstance(t, Tensor) else self.model.cost_at(t)
            return check_prediction(self.model.predict(x, t, **self.cond), x, self.model)
        self.nfe[which] += self.model.cost
        cond = {name: value[which] for name, value in self.cond.items()}
        return check_prediction(self.model.predict(x, t, **cond), x, self.model)

    def observe(self, s: float, x: Tensor, denoised: Tensor) -> bool:
        """Show the state at the end of a step; True asks the solver to stop."""
        return self.observer is not None and self.observer(s, x, denoised)


class Solver(ABC):
    """A rule for going from time t to time s, with its declared orders (None where the notion does not apply).

    order: of the deterministic error; strong_order, weak_order: of a stochastic method; calls: network calls a step;
    needs_variance: whether the model must predict the reverse step's variance too; reverse_sde: whether its states follow the reverse SDE
    with the SDE's own noise, step by step, as particles ask for; group: so many rows of a batch belong together, and no batch cuts them.
    """

    order: int | None = None
    strong_order: float | None = None
    weak_order: float | None = None
    stochastic: bool = False
    adaptive: bool = False
    needs_variance: bool = False
    reverse_sde: bool = False
    group: int = 1
    default_steps: int = 100
    default_grid: str = "half_log_snr"

    @property
    def calls(self) -> int | None:
        """Network calls for each step, None where the solver decides as it runs."""
        return 1

    def times(self, run: Run, x: Tensor, t_start: float, t_end: float, steps: int, grid: str | Tensor) -> Tensor:
        """The times of the grid; the first may lie after t_start where `begin` knows the way there."""
        return make_grid(run.model.sde, grid, t_start, t_end, steps, run.spread(x) if isinstance(grid, str) and grid == "angle" else NORMAL)

    def skipped(self, run: Run, x: Tensor, t_start: float, t_end: float, steps: int) -> float:
        """The share of a step at the start that `begin` knows the way over."""
        return 0.0

    @abstractmethod
    def solve(self, run: Run, x: Tensor, t_start: float, t_end: float, steps: int, grid: str | Tensor) -> Tensor:
        """The state at t_end from the state x at t_start; shape of `x`. grid: a name in GRIDS, or the times themselves."""


class FixedStepSolver(Solver):
    """A solver that is a table of updates; a subclass gives `plan`.

    shifts: rows of numbers added to each update, to its a and then to its weights b, which may be more than the solver's own, as
        `sde_gen.fit_grid` finds them.
    """

    shifts: Sequence[Sequence[Any]] = ()

    @abstractmethod
    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        """The updates that lead along `times`, (steps + 1,) in float64 on the CPU."""

    def begin(self, run: Run, x: Tensor, t_start: float, times: Tensor) -> Table:
        """The state, the updates from there on, and the predictions that came before them, the latest first."""
        return x, self.remembered_plan(run.model.sde, times), ()

    def remembered_plan(self, sde: SDE, times: Tensor) -> list[Update]:
        """`plan`, once for equal settings, SDE and times: batches and repeated calls need the same one."""
        settings = tuple(vars(self).items())
        # Other values may hide a state that changes, and times to be differentiated belong to one graph.
        if times.requires_grad or not all(isinstance(value, bool | int | float | str | None) for _, value in settings):
            return self.plan(sde, times)
        return list(_planned(type(self), settings, sde, tuple(times.tolist())))

    def table(self, run: Run, x: Tensor, t_start: float, times: Tensor) -> Table:
        """`begin` with the shifts in it: all that the loop needs. Differentiable in `times`."""
        x, updates, history = self.begin(run, x, t_start, times)
        if self.shifts:
            updates = [_shifted(update, row) for update, row in zip(updates, self.shifts, strict=True)]
        return x, updates, history

    def solve(self, run: Run, x: Tensor, t_start: float, t_end: float, steps: int, grid: str | Tensor) -> Tensor:
        return run_updates(run, *self.table(run, x, t_start, self.times(run, x, t_start, t_end, steps, grid)))


def _shifted(update: Update, row: Sequence[Any]) -> Update:
    a, *more = row
    padded = zip_longest(update.b, more, fillvalue=0.0)
    return replace(update, a=update.a + a, b=tuple(own + extra for own, extra in padded))


@lru_cache(maxsize=32)
def _planned(kind: type[FixedStepSolver], settings: tuple[tuple[str, Any], ...], sde: SDE, times: tuple[float, ...]) -> list[Update]:
    solver = kind.__new__(kind)
    vars(solver).update(settings)
    return solver.plan(sde, torch.tensor(times, dtype=torch.float64))


def run_updates(run: Run, x: Tensor, updates: list[Update], history: tuple[Tensor, ...] = ()) -> Tensor:
    """Apply `updates` to x in order; `history`: predictions that came before them, the latest first.

    Every update makes one new tensor and no tensor is written to once a network or an observer has seen it.
    """
    model, cond = run.model, run.cond
    depth = max((len(update.b) for update in updates), default=0)
    denoised = history[0] if history else x
    fraction: Tensor | None = None
    calls = 0
    planned = model.planned(update.t for update in updates if update.t is not None)
    for update, factor in zip(updates, factors(x, updates), strict=True):
        seen = history
        if update.t is not None:
            if run.population is None:
                prediction = model.predict(x, planned[update.t], **cond)
            else:
                x, prediction, history = run.population.step(model, x, planned[update.t], history, cond)
                seen = history
            if not calls:
                check_prediction(prediction, x, model)
            denoised, fraction = prediction.denoised, prediction.variance_fraction
            calls += model.cost_at(update.t)
            seen = (denoised if update.view is None else seen_as(x, denoised, *update.view), *history)
            if update.keep:
                history = seen[:depth]
        if update.snr is not None:
            x = normed_step(x, seen[0], run.noise.draw(), update.snr)
            continue
        terms = [(weight, value) for weight, value in zip(update.b, seen, strict=False) if weight]
        if update.c_most is not None or update.c:
            z = run.noise.draw()
            terms.append((update.c, z) if update.c_most is None else (1.0, z * learned_std(fraction, update.c, update.c_most)))
            kick = None if run.population is None else run.population.moved(update, z)
            if kick is not None:
                terms.append((1.0, kick))
        if update.a != 1.0:
            x = x * factor
        elif terms:  # one pass over the memory instead of two
            weight, value = terms.pop(0)
            x = torch.add(x, value, alpha=weight)
        for weight, value in terms:
            x.add_(value, alpha=weight)
        if run.observer is not None and update.s is not None and run.observer(update.s, x, denoised):
            break
    run.nfe += calls
    return x


def factors(x: Tensor, updates: list[Update]) -> Sequence[Any]:
    """Each update's a, ready to multiply x: a scalar tensor of x's own dtype costs half of what a Python number does, which PyTorch
    makes a tensor of each time; a narrow dtype would round it."""
    column = [update.a for update in updates]
    return torch.tensor(column, dtype=x.dtype).unbind() if x.dtype in (torch.float32, torch.float64) else column


def learned_std(fraction: Tensor | None, least: float, most: float) -> Tensor:
    """least^(1 - v) most^v for v = `fraction`, the model's own. ValueError where the model predicts none."""
    if fraction is None:
        raise ValueError("variance 'learned' needs a model with variance='learned_range', this one predicts no variance")
    return torch.exp(fraction * (math.log(most) - math.log(least)) + math.log(least))


def normed_step(x: Tensor, score: Tensor, z: Tensor, snr: float) -> Tensor:
    """x + e score + sqrt(2 e) z with e = 2 (snr |z|/|score|)^2 for each sample; shape of `x`."""
    ratio = snr * z.flatten(1).norm(dim=1) / score.flatten(1).norm(dim=1).clamp_min(SMALLEST_NORM)
    return x + expand_as(2 * ratio**2, x) * score + expand_as(2 * ratio, x) * z


def seen_as(x: Tensor, denoised: Tensor, p: float, q: float) -> Tensor:
    """p x + q denoised, the prediction of an update with this view; shape of `x`."""
    return (x * p).add_(denoised, alpha=q)


def numbers(column: Tensor) -> list[Any]:
    """A column of a plan as Python numbers, which kernels take as arguments with no transfer; as scalar tensors where the plan
    is to be differentiated."""
    return list(column.unbind()) if column.requires_grad else column.to(torch.float64).tolist()


def rows(*columns: Tensor) -> list[tuple[Any, ...]]:
    """Columns of a plan as rows of numbers."""
    return list(zip(*map(numbers, columns), strict=True))
