"""Predictor-corrector sampling."""

from __future__ import annotations

from torch import Tensor

from ..sdes import SDE
from ..sdes.base import check_positive
from .base import FixedStepSolver, Update
from .langevin import langevin_steps, normed_steps

CORRECTORS = ("ald", "langevin", "none")


class PredictorCorrector(FixedStepSolver):
    """At each time `corrections` Langevin steps on p_t, then one step of any fixed-step solver to the next time.

        corrector  x <- x + e score(x, t) + sqrt(2 e) z
        "ald"      e = 2 (snr sigma_t)^2, planned: annealed Langevin dynamics
        "langevin" e = 2 (snr |z|/|score|)^2, the norms over each sample alone
        "none"     the predictor by itself

    Song et al. 2021, arXiv:2011.13456, algorithms 4 and 5 and appendix G; their "langevin" takes the norms' mean over the batch,
    which would let samples depend on each other. In many dimensions |score| is close to |z|/sigma_t and both are the same; in D
    dimensions "langevin" makes the variance too large by about 4/D + snr^2 (measured on Gaussian data; "ald" by snr^2).
    `predictor` is a fixed-step solver or the registered name of one. 1 + corrections calls a step with a one-call predictor; no
    order: a Langevin step of fixed snr does not shrink with the grid.
    """

    stochastic = True
    default_steps = 100

    def __init__(self, predictor: str | FixedStepSolver = "em", snr: float = 0.16, corrections: int = 1, corrector: str = "ald") -> None:
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
        self.corrector = corrector
        self.corrections = 0 if corrector == "none" else corrections

    @property
    def calls(self) -> int | None:
        predictor = self.predictor.calls
        return None if predictor is None else predictor + self.corrections

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        steps = langevin_steps(sde, times[:-1], self.snr) if self.corrector != "langevin" else normed_steps(sde, times[:-1], self.snr)
        corrections = iter(steps)
        updates: list[Update] = []
        step_begins = True
        for update in self.predictor.plan(sde, times):
            if step_begins:
                updates += [next(corrections)] * self.corrections
            updates.append(update)
            step_begins = update.s is not None
        return updates
