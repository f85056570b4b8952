"""The weights of each step in closed form: least squares on where a converged flow goes."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ..solvers import FixedStepSolver, Run, Update
from ..solvers.grids import angle_times
from .calibration import Pilots, default_times, log_errors, moved, predicted

SCALES = (
    (0.7, 0.11, 0.0), (1.0, 0.3, 0.0), (1.0, 0.3, 0.05), (1.5, 0.6, 0.0), (1.5, 0.6, 0.1), (1.0, 1.0, 0.2), (1.0, 0.6, 0.4),
)  # fmt: skip
"""The grids that are tried: two scales in units of the data's standard deviations, and the weight of lambda beside their angles."""
WIDTH = 12
"""Most predictions that a step looks back to, the imagined ones among them; as many states are held."""
SCREENED, LEAST, KEPT = 2048, 32, 2
"""All grids are tried on pilots that hold so many numbers, but on LEAST of them at least; then the KEPT best on all pilots."""
CUTOFF, RIDGE, ROUNDS = 1e-7, 1e-6, 12
"""Directions of the regressors that are smaller than this beside the largest are left alone; the pull towards the solver's own weights;
rounds of reweighting."""


@dataclass(frozen=True)
class Row:
    """What is added to one update: `start` (m,) to a and then to b; `basis` (m, r), directions of which each, taken once, moves the
    pilots' next states by a root mean square of 1."""

    start: Tensor
    basis: Tensor


def regress(pilots: Pilots, method: FixedStepSolver, steps: int) -> tuple[Tensor, list[Row]]:
    """The best of the grids by the held-out pilots, after a first round on few of them: its times, and what is added to the solver's table.

    Step by step along each grid, from where the fitted steps before it have led:

        minimise over w  sum_i log |x_i(s) - w_0 x_i - w_1 D_i,0 - ... - w_m D_i,m|

    over the fitted pilots i, with x(s) the state of their converged flow, D_0, D_1, ... the last predictions, among them those that the
    solver imagines before the first call. Reweighted least squares leads to the geometric mean. One row of the table is then w.
    """
    grids = [default_times(method, pilots, steps), *_grids(pilots, method, steps)]
    knots = torch.unique(torch.cat(grids)).flip(0)
    states = pilots.follow(knots)

    def tried(times: Tensor, count: int) -> tuple[float, Tensor, list[Row]]:
        """The error along one grid of the first `count` pilots, which are draws like the others."""
        which = torch.arange(count, device=pilots.x.device)
        # Equal times of several grids are one knot: knots fall, searchsorted wants them to rise.
        place = len(knots) - 1 - torch.searchsorted(knots.flip(0), times)
        run = pilots.part(which)
        table = method.table(run, pilots.x[which], pilots.start, times)
        y, rows = _along(run, table, [states[k][which] for k in place.tolist()[1:]], which[which % 2 == 0])
        pilots.run.nfe[which] = run.nfe
        error = float(log_errors(y, states[-1][which])[which % 2 == 1].mean())
        return (error if error == error else math.inf), times, rows

    def by_error(found: tuple[float, Tensor, list[Row]]) -> float:
        return found[0]

    few = max(LEAST, SCREENED // pilots.x[0].numel())
    if few < len(pilots.x):
        ranked = sorted((tried(times, few) for times in grids), key=by_error)
        grids = [times for _, times, _ in ranked[:KEPT]]
    error, times, rows = min((tried(times, len(pilots.x)) for times in grids), key=by_error)
    if error == math.inf:
        raise ValueError("the regression led to no finite answer on any grid")
    return times, rows


def _grids(pilots: Pilots, method: FixedStepSolver, steps: int) -> list[Tensor]:
    run, x, sde = pilots.run, pilots.x, pilots.run.model.sde
    wide, overall = run.spread(x)
    skip = method.skipped(run, x, pilots.start, pilots.end, steps)
    return [
        angle_times(sde, pilots.start, pilots.end, steps, (coarse * wide, fine * overall), share, skip) for coarse, fine, share in SCALES
    ]


@torch.no_grad()
def _along(
    run: Run, table: tuple[Tensor, list[Update], tuple[Tensor, ...]], targets: list[Tensor], fitted: Tensor
) -> tuple[Tensor, list[Row]]:
    """Where the fitted steps lead all pilots, and what they add to each update."""
    x, updates, history = table
    rows: list[Row] = []
    ahead = iter(targets)
    for update in updates:
        seen, history = predicted(run, x, update, history)
        y = moved(x, update, seen)
        if update.s is None:  # within a step: no state of the flow belongs to it
            none = torch.zeros(1 + len(update.b), dtype=torch.float64)
            rows.append(Row(none, none[:, None][:, :0]))
        else:
            seen = seen[: max(WIDTH, len(update.b))]
            columns = torch.stack([x, *seen], -1).double().flatten(1, -2)
            row = fit_row(columns[fitted], (next(ahead) - y).double().flatten(1)[fitted])
            y = (y.double().flatten(1) + columns @ row.start).reshape(x.shape).to(x.dtype)
            rows.append(Row(row.start.cpu(), row.basis.cpu()))
        x, history = y, history[: WIDTH + 1]
    return x, rows


def fit_row(columns: Tensor, left: Tensor) -> Row:
    """w (m,) that makes sum_i log |left_i - columns_i w| small, for columns (n, D, m) and left (n, D), float64; and its directions."""
    scale = columns.square().sum((0, 1)).sqrt().clamp_min(1e-300)
    columns = columns / scale
    values, vectors = torch.linalg.eigh(torch.einsum("ndi,ndj->ij", columns, columns))
    kept = values > CUTOFF**2 * values[-1]
    basis = vectors[:, kept] / values[kept].sqrt()
    columns = columns @ basis  # orthonormal over all, so that the weighted equations below are well conditioned
    squares, products = torch.einsum("ndi,ndj->nij", columns, columns), torch.einsum("ndi,nd->ni", columns, left)
    weights = left.new_ones(len(left))
    found = left.new_zeros(columns.shape[-1])
    for _ in range(ROUNDS):
        matrix = torch.einsum("n,nij->ij", weights, squares) + RIDGE * weights.mean() * torch.eye(len(found)).to(left)
        found = torch.linalg.solve(matrix, weights @ products)
        rest = (left - columns @ found).square().sum(1)
        weights = 1 / (rest + 1e-6 * rest.mean() + 1e-300)
    basis = basis / scale[:, None]
    return Row(basis @ found, basis * math.sqrt(left.numel()))
