"""Predictor and corrector of the probability flow with no extra call."""

from __future__ import annotations

from torch import Tensor

from ..sdes import SDE
from .base import FixedStepSolver, Update
from .dpm import check_order
from .exponential import data_multistep


class UniPC(FixedStepSolver):
    """Exponential multistep whose every step is corrected by the prediction that the next one needs anyway.

    With D_k = E[x_0|x] at the predicted state of time k, the state is corrected by the polynomial through D_k and the `order`
    predictions before it, then the next one is predicted by that through the last `order`; the integrals are exact (the
    varying-coefficient form). One call a step; accurate to order + 1 once started. Runs in both directions. Zhao et al. 2023,
    arXiv:2302.04867.
    """

    default_steps = 20

    order: int

    def __init__(self, order: int = 3) -> None:
        self.points = check_order(order)
        self.order = order + 1

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        return data_multistep(sde, times, self.points, corrector=True)
