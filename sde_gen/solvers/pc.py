"""Predictor-corrector sampling."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..sdes import SDE
from ..sdes.base import check_positive
from .base import FixedStepSolver, Run, Table, Update
from .langevin import langevin_steps, normed_steps

CORRECTORS = ("ald", "langevin", "none")
LEAST_DIMENSIONS = 64
"""Below these the size of a "langevin" step, from the norms of one sample, makes the variance more than a tenth too large."""


class PredictorCorrector(FixedStepSolver):
    """At each time `corrections` Langevin steps on p_t, then one step of any fixed-step solver to the next time.

        corrector  x <- x + e score(x, t) + sqrt(2 e) z
        "ald"      e = 2 (snr sigma_t)^2, planned: annealed Langevin dynamics
        "langevin" e = 2 (snr |z|/|score|)^2, the norms over each sample alone
        "none"     the predictor by itself

    Song et al. 2021, arXiv:2011.13456, algorithms 4 and 5 and appendix G; their "langevin" takes the norms' mean over the batch,
    which would let samples depend on each other.
    In many dimensions |score| is close to |z|/sigma_t and both correctors are the same. In few, a size that depends on the state has
    a stationary law of its own: on Gaussian data "langevin" makes the variance too large by 4/D + snr^2 from 8 dimensions on ("ald"
    by at most snr^2), by 140 % in 4, tenfold in 2, and without bound in 1, where the score can be 0. Below 64 dimensions, where its bias
    would pass a tenth, "langevin" therefore takes the planned step of "ald".
    alpha_factor: True multiplies e by alpha_i = 1 - beta_i, as the authors' code does for VP and sub-VP (and 1 for VE); for a step
    of the grid from t to s it is (alpha_t/alpha_s)^2. The papers' algorithms have it, the Langevin step does not need it.
    `predictor` is a fixed-step solver or the registered name of one. 1 + corrections calls a step with a one-call predictor; no
    order: a Langevin step of fixed snr does not shrink with the grid.
    """

    stochastic = True
    default_steps = 100

    def __init__(
        self,
        predictor: str | FixedStepSolver = "em",
        snr: float = 0.16,
        corrections: int = 1,
        corrector: str = "ald",
        alpha_factor: bool = False,
    ) -> None:
        if isinstance(predictor, str):
            from . import make_solver  # the registry holds this class too

            made = make_solver(predictor)
        else:
            made = predictor
        if not isinstance(made, FixedStepSolver) or isinstance(made, PredictorCorrector):
            raise ValueError(f"predictor must be a fixed-step solver other than pc, got {predictor!r}")
        if isinstance(corrections, bool) or not isinstance(corrections, int) or corrections < 0:
            raise ValueError(f"corrections must be a whole number of at least 0, got {corrections!r}")
        if corrector not in CORRECTORS:
            raise ValueError(f"unknown corrector {corrector!r}; choose from {', '.join(CORRECTORS)}")
        self.predictor: FixedStepSolver = made
        self.snr = check_positive("snr", snr)
        if not isinstance(alpha_factor, bool):
            raise ValueError(f"alpha_factor must be True or False, got {alpha_factor!r}")
        self.corrector, self.alpha_factor = corrector, alpha_factor
        self.corrections = 0 if corrector == "none" else corrections

    @property
    def calls(self) -> int | None:
        predictor = self.predictor.calls
        return None if predictor is None else predictor + self.corrections

    def begin(self, run: Run, x: Tensor, t_start: float, times: Tensor) -> Table:
        few = math.prod(x.shape[1:]) < LEAST_DIMENSIONS
        return x, self._updates(run.model.sde, times, normed=self.corrector == "langevin" and not few), ()

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        return self._updates(sde, times, normed=self.corrector == "langevin")

    def _updates(self, sde: SDE, times: Tensor, normed: bool) -> list[Update]:
        alpha = sde.marginal(times)[0]
        snr = self.snr * (alpha[:-1] / alpha[1:] if self.alpha_factor else torch.ones_like(alpha[1:]))
        corrections = iter((normed_steps if normed else langevin_steps)(sde, times[:-1], snr))
        updates: list[Update] = []
        step_begins = True
        for update in self.predictor.plan(sde, times):
            if step_begins:
                updates += [next(corrections)] * self.corrections
            updates.append(update)
            step_begins = update.s is not None
        return updates
