"""Ordinary differential equations by Adams' methods, every sample of a batch with steps and an order of its own."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

ORDER = 5
"""Most predictions that a step looks back to; the answer is one order higher."""
SAFETY, SHRINK, REFUSED, GROW = 0.8, 0.1, 0.7, 5.0
FIRST_STEP, SMALLEST_STEP = 5e-3, 1e-9
"""Of the whole interval."""
_NODES = ((0.06943184420297371, 0.17392742256872693), (0.33000947820757187, 0.32607257743127307),
          (0.6699905217924281, 0.32607257743127307), (0.9305681557970263, 0.17392742256872693))  # fmt: skip
"""Gauss and Legendre's rule on [0, 1], exact for the polynomials here."""

Slope = Callable[[Tensor, Tensor, Tensor, int], Tensor]
"""dy/du from y (b, N), u (b,), which samples of the batch they are (b,), and the number of the evaluation."""
Scale = Callable[[Tensor, Tensor, Tensor], Tensor]
"""The size (b, *) of errors (b, *, N) beside the tolerance, where the state is (b, N) and u is (b,)."""


@dataclass
class Solution:
    """y (B, N) at the end; errors: the root of the sum over steps of the squares of what `weigh` makes of each step's error (B,);
    nfe: slopes (B,); converged: whether the sample arrived (B,)."""

    y: Tensor
    errors: Tensor
    nfe: Tensor
    converged: Tensor


@dataclass
class _Step:
    """An accepted step of the samples `rows`, linear in y and the slopes before and at its end: all that a replay needs."""

    rows: Tensor
    evaluation: int
    u: Tensor
    predictor: Tensor
    corrector: Tensor


def integrate(
    slope: Slope,
    y: Tensor,
    interval: tuple[float, float],
    size: Scale,
    weigh: Scale,
    cap: int,
    grid: Tensor | None = None,
) -> Solution:
    """The solution of dy/du = slope(y, u) from y (B, N) at interval[0] to interval[1].

    A step predicts by Adams and Bashforth's method of order k, evaluates the slope once, and corrects by Adams and Moulton's of
    order k + 1, with all nodes at each sample's own places; k from 1 to `ORDER`. The difference of the correctors of order k and
    k + 1 is the error, accepted where `size` of it is at most 1; the order whose next step would be longest is taken next.
    A sample that makes `cap` attempts, or has slopes that are not finite, ends there, and the others are not touched.
    grid: the nodes (steps + 1,) for fixed steps: the order grows to ORDER, nothing is refused, and `cap` does not count.
    Gradients with respect to y and the parameters of `slope` go through the accepted steps as they were taken, each recomputed
    from its start when its turn comes, so that memory holds the states and one evaluation. Hairer, Norsett and Wanner 1993, III.5.
    """
    if not (torch.is_grad_enabled() and y.requires_grad):
        with torch.no_grad():
            return _Integration(slope, y, interval, size, weigh, cap, grid).run([])
    steps: list[_Step] = []
    with torch.no_grad():
        found = _Integration(slope, y.detach(), interval, size, weigh, cap, grid).run(steps)
    found.y = _replay(slope, y, interval[0], steps, found.converged).where(found.converged[:, None], found.y)
    return found


class _Integration:
    def __init__(
        self,
        slope: Slope,
        y: Tensor,
        interval: tuple[float, float],
        size: Scale,
        weigh: Scale,
        cap: int,
        grid: Tensor | None,
    ) -> None:
        batch = len(y)
        self.slope, self.y, self.size, self.weigh = slope, y.clone(), size, weigh
        self.cap = cap if grid is None else math.inf
        self.span = interval[1] - interval[0]
        self.last = interval[1]
        self.widths = None if grid is None else grid.diff().tolist()
        self.u = y.new_full((batch,), interval[0])
        # Nodes that no slope belongs to yet stand apart from all others, so that their weights, never used, are finite.
        self.nodes = interval[0] - self.span * torch.arange(1, ORDER + 2, dtype=y.dtype, device=y.device).repeat(batch, 1)
        self.slopes = y.new_zeros(batch, ORDER + 1, y.shape[1])
        rows = torch.arange(batch, device=y.device)
        self.nodes[:, 0], self.slopes[:, 0] = self.u, slope(y, self.u, rows, 0)
        self.known = torch.ones(batch, dtype=torch.int64, device=y.device)
        self.order = torch.ones_like(self.known)
        self.nfe = torch.ones_like(self.known)
        self.h = y.new_full((batch,), FIRST_STEP * self.span)
        self.errors = y.new_zeros(batch)
        self.arrived = torch.zeros(batch, dtype=torch.bool, device=y.device)
        self.lost = ~torch.isfinite(self.slopes[:, 0]).all(1)

    def run(self, steps: list[_Step]) -> Solution:
        active = torch.nonzero(~self.lost)[:, 0]
        evaluation = 0
        while active.numel():
            evaluation += 1
            steps.append(self.attempt(active, evaluation))
            active = active[~(self.arrived | self.lost)[active]]
        self.y[self.lost] = math.nan
        return Solution(self.y, torch.sqrt(self.errors), self.nfe, self.arrived)

    def attempt(self, active: Tensor, evaluation: int) -> _Step:
        u, y, past, order = self.u[active], self.y[active], self.slopes[active], self.order[active]
        remaining = self.last - u
        if self.widths is None:
            ends = self.h[active] / remaining >= 1
            h = torch.where(ends, remaining, self.h[active])
        else:
            h = torch.full_like(u, self.widths[evaluation - 1])
            ends = torch.full_like(self.arrived[active], evaluation == len(self.widths))
        predictor = running_weights(self.nodes[active] - u[:, None], h).cumsum(1).gather(1, _at(order - 1, ORDER + 1))[:, 0]
        reached = torch.where(ends, self.last, u + h)
        new = self.slope(y + _mix(predictor, past), reached, active, evaluation)
        self.nfe[active] += 1
        nodes = torch.cat((h[:, None], self.nodes[active] - u[:, None]), 1)
        slopes = torch.cat((new[:, None], past), 1)
        terms = running_weights(nodes, h)
        differences = torch.bmm(terms[:, 1:], slopes)  # of the correctors of order k + 1 and k, k = 1 .. ORDER + 1
        sizes = self.size(differences[:, :ORDER], y, u)
        own = sizes.gather(1, order[:, None] - 1)[:, 0]
        corrector = terms.cumsum(1).gather(1, _at(order, ORDER + 2))[:, 0]
        moved = y + _mix(corrector, slopes)
        # `size` need not look at all of the state.
        accepted = (own <= 1 if self.widths is None else torch.isfinite(own)) & torch.isfinite(moved).all(1)

        rows = active[accepted]
        self.y[rows], self.u[rows] = moved[accepted], reached[accepted]
        # What the answer, of order k + 1, lacks: the difference to order k + 2, where there are slopes enough for it.
        missing = torch.where(self.known[active] > order, order, order - 1)
        self.errors[rows] += self.weigh(differences.gather(1, _at(missing, y.shape[1]))[:, 0], y, u)[accepted] ** 2
        self.nodes[rows] = torch.cat((self.u[rows][:, None], self.nodes[rows][:, :-1]), 1)
        self.slopes[rows] = slopes[accepted][:, :-1]
        self.known[rows] = (self.known[rows] + 1).clamp_max(ORDER + 1)
        self.arrived[active] = accepted & ends
        self.choose(active, accepted, h, sizes, own)
        hopeless = ~accepted & ((h / self.span < SMALLEST_STEP) | (self.widths is not None))
        self.lost[active] = hopeless | ~(accepted & ends) & (self.nfe[active] > self.cap)
        return _Step(rows, evaluation, reached[accepted], predictor[accepted], corrector[accepted])

    def choose(self, active: Tensor, accepted: Tensor, h: Tensor, sizes: Tensor, own: Tensor) -> None:
        """The next step and order: those that would go farthest, and shorter ones of the same order where a step was refused."""
        order, known = self.order[active], self.known[active]
        if self.widths is not None:
            self.order[active] = torch.minimum(order + 1, known).clamp_max(ORDER)
            return
        orders = torch.arange(1, ORDER + 1, device=active.device)
        factors = SAFETY * sizes.clamp_min(1e-12) ** (-1 / (orders + 1.0))
        judged = (orders < known[:, None]) & (orders <= order[:, None] + 1)  # a difference needs one slope more than its order
        factors = torch.where(judged, factors, 0.0).nan_to_num(0.0)
        best, index = factors.max(1)
        retry = (SAFETY * own.clamp_min(1e-12) ** (-1 / (order + 1.0))).nan_to_num(SHRINK).clamp(SHRINK, REFUSED)
        self.h[active] = h * torch.where(accepted, best.clamp(SHRINK, GROW), retry)
        self.order[active] = torch.where(accepted, torch.minimum(index + 1, known), order)


def running_weights(nodes: Tensor, h: Tensor) -> Tensor:
    """Newton's form of the integral over [0, h] of the polynomial through `nodes` (b, n): (b, n, n), row k the weights that node
    k + 1 adds to those of the first k, so that sums over the first rows are the weights of each order."""
    n = nodes.shape[1]
    scaled = nodes / h[:, None]
    # Row k is the divided difference over nodes 0 .. k times the integral of the product of (u - node) over the k before it.
    places = nodes.new_tensor([place for place, _ in _NODES])
    shares = nodes.new_tensor([share for _, share in _NODES])
    products = torch.cumprod(places[None, :, None] - scaled[:, None, : n - 1], dim=2)
    integrals = torch.cat((torch.ones_like(h)[:, None], torch.einsum("q,bqk->bk", shares, products)), 1)
    gaps = scaled[:, :, None] - scaled[:, None, :]
    gaps = gaps + torch.eye(n, dtype=gaps.dtype, device=gaps.device)
    within = torch.ones(n, n, dtype=gaps.dtype, device=gaps.device).tril()
    inverse = 1 / torch.cumprod(gaps, dim=2)  # (b, i, k): over the nodes 0 .. k, for k >= i
    return h[:, None, None] * integrals[:, :, None] * inverse.transpose(1, 2) * within


def _at(index: Tensor, width: int) -> Tensor:
    return index[:, None, None].expand(-1, 1, width)


def _mix(weights: Tensor, slopes: Tensor) -> Tensor:
    return torch.bmm(weights[:, None], slopes)[:, 0]


def _replay(slope: Slope, y: Tensor, start: float, steps: list[_Step], converged: Tensor) -> Tensor:
    """The same steps again, differentiable. The others' are left out: what is not finite would spoil the parameters' gradients."""
    arrived = torch.nonzero(converged)[:, 0]
    u = torch.full((len(arrived),), start, dtype=y.dtype, device=y.device)
    slopes = y.new_zeros(len(y), ORDER + 1, y.shape[1])
    if len(arrived):
        first = checkpoint(lambda y: slope(y[arrived], u, arrived, 0), y, use_reentrant=False)
        slopes = slopes.index_put((arrived, torch.zeros_like(arrived)), first)
    for step in steps:
        if not len(step.rows):
            continue

        def taken(y: Tensor, slopes: Tensor, step: _Step = step) -> tuple[Tensor, Tensor]:
            past, before = slopes[step.rows], y[step.rows]
            new = slope(before + _mix(step.predictor, past), step.u, step.rows, step.evaluation)
            seen = torch.cat((new[:, None], past), 1)
            return y.index_copy(0, step.rows, before + _mix(step.corrector, seen)), slopes.index_copy(0, step.rows, seen[:, :-1])

        y, slopes = checkpoint(taken, y, slopes, use_reentrant=False)
    return y
