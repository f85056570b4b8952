"""Predictor and corrector of the probability flow with no extra call."""

from __future__ import annotations

import numpy as np
from torch import Tensor

from ..sdes import SDE
from .base import FixedStepSolver, Update
from .dpm import check_order
from .exponential import data_weights


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
        alpha, sigma = (value.tolist() for value in sde.marginal(times))
        lambdas, t = sde.half_log_snr(times).numpy(), times.tolist()
        updates = []
        predicted = np.zeros(0)  # weights, newest first, of the prediction that led to the present state
        for k in range(len(t) - 1):
            weights = np.zeros(self.points + 1)
            ratio = sigma[k + 1] / sigma[k]
            if k > 0:
                known = lambdas[max(0, k - self.points) : k + 1][::-1]
                correction = alpha[k] * data_weights(known, float(lambdas[k - 1]), float(lambdas[k]))
                correction[1 : 1 + len(predicted)] -= predicted
                weights[: len(correction)] += ratio * correction
            known = lambdas[max(0, k + 1 - self.points) : k + 1][::-1]
            predicted = alpha[k + 1] * data_weights(known, float(lambdas[k]), float(lambdas[k + 1]))
            weights[: len(predicted)] += predicted
            updates.append(Update(t=t[k], a=ratio, b=tuple(weights.tolist()), s=t[k + 1]))
        return updates
