"""Times and weights by gradient descent through the solver and the network."""

from __future__ import annotations

import copy
import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..solvers import FixedStepSolver
from .calibration import Pilots
from .regression import Row


@dataclass
class Point:
    """Where the search stands: logarithms of the gaps between times in lambda and of the scale's change, and along the table's rows."""

    gaps: Tensor
    scale: Tensor
    rows: Tensor

    def leaves(self, weights: bool) -> list[Tensor]:
        """The parameters to move, as leaves of the graph."""
        return [leaf.requires_grad_() for leaf in ([self.gaps, self.scale, self.rows] if weights else [self.gaps, self.scale])]

    def copy(self) -> Point:
        return Point(*(value.detach().clone() for value in (self.gaps, self.scale, self.rows)))


class Descent:
    """Adam on the mean log error of the fitted pilots, from `times` and what `rows` add to the table of `method` (None: nothing).

    A row moves along its directions, which for a regression's have all the same effect on the states, however alike the predictions are.
    Of what the search passes it keeps the best by the held-out pilots.
    """

    def __init__(self, pilots: Pilots, method: FixedStepSolver, times: Tensor, rows: list[Row] | None = None) -> None:
        self.pilots, self.method, self.sde = pilots, method, pilots.run.model.sde
        self.lambdas = self.sde.half_log_snr(torch.cat((torch.tensor([pilots.start], dtype=torch.float64), times)))
        self.free = self.lambdas.diff() > 0  # a first time that is the start itself leaves no gap before it
        if rows is None:
            units = [torch.eye(1 + width, dtype=torch.float64) for width in pilots.widths(method, times)]
            rows = [Row(torch.zeros(len(unit), dtype=torch.float64), unit) for unit in units]
        self.rows = rows
        along = torch.zeros(sum(row.basis.shape[1] for row in rows), dtype=torch.float64)
        start = Point(torch.log(self.lambdas.diff()[self.free]), torch.zeros((), dtype=torch.float64), along)
        self.best = self.held_out_error(start), start

    def built(self, point: Point) -> tuple[FixedStepSolver, Tensor]:
        """The solver and the times of `point`, differentiable in it."""
        share = torch.zeros(len(self.free), dtype=torch.float64).masked_scatter(self.free, torch.softmax(point.gaps, 0))
        lambdas = self.lambdas[0] + (self.lambdas[-1] - self.lambdas[0]) * share.cumsum(0)
        method = copy.copy(self.method)
        if hasattr(method, "scale"):
            method.scale = method.scale * torch.exp(point.scale)
        along = point.rows.split([row.basis.shape[1] for row in self.rows])
        shifts = [row.start + row.basis @ moved for row, moved in zip(self.rows, along, strict=True)]
        if point.rows.requires_grad or any(bool(row.any()) for row in shifts):
            method.shifts = [list(row.unbind()) for row in shifts]
        return method, time_of(self.sde, lambdas, self.pilots.start, self.pilots.end)

    @torch.no_grad()
    def held_out_error(self, point: Point) -> float:
        found = float(self.pilots.error(*self.built(point), self.pilots.held_out))
        return found if math.isfinite(found) else math.inf

    def found(self) -> dict[str, Any]:
        """Times, options and shifts of the best point."""
        method, times = self.built(self.best[1].copy())
        return {
            "times": tuple(times.tolist()),
            "options": {"scale": float(method.scale)} if hasattr(method, "scale") else {},
            "shifts": tuple(tuple(map(float, row)) for row in method.shifts),
        }

    def run(self, weights: bool, iterations: int, batch_size: int) -> None:
        """Adam from the best point so far, on the times (and the solver's `scale`) and, with `weights`, on the table's rows."""
        point = self.best[1].copy()
        leaves = point.leaves(weights)
        # Shifts go by about a tenth of the error that is left, which is what they can mend.
        rates = [0.01, 0.01, 0.1 * math.exp(self.best[0])] if weights else [0.05, 0.05]
        optimizer = torch.optim.Adam([{"params": [leaf], "lr": rate} for leaf, rate in zip(leaves, rates, strict=True)])
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, iterations)
        for iteration in range(iterations):
            which = self.pilots.fitted.roll(-iteration * batch_size)[:batch_size]
            with torch.enable_grad():
                loss = self.pilots.error(*self.built(point), which)
            slopes = torch.autograd.grad(loss, leaves, allow_unused=True)
            if not all(slope is None or bool(torch.isfinite(slope).all()) for slope in slopes):
                break
            for leaf, slope in zip(leaves, slopes, strict=True):
                leaf.grad = slope
            optimizer.step()
            schedule.step()
            if iteration % 10 == 9 or iteration == iterations - 1:
                found = self.held_out_error(point)
                if found < self.best[0]:
                    self.best = found, point.copy()


def time_of(sde: Any, lambdas: Tensor, start: float, end: float) -> Tensor:
    """t(lambda), differentiable whatever the SDE's own inverse is: its value by the inverse, its slope by that of lambda(t)."""
    with torch.no_grad():
        times = sde.time_of(lambdas).clamp(end, start)
        times[-1] = end
        slope = sde.slopes(times)[1]
    return times + (lambdas - lambdas.detach()) / slope
