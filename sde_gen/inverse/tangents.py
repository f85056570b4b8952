"""An operator that is not linear as a linear one: where it is differentiated, and what is left of the measurement there."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

from ..models.moments import Moments
from ..shapes import expand_as
from .conditioned import Observed
from .moment_matched import SMALLEST, units_of

POINT_STEPS, STEPS, HALVINGS = 12, 4, 4
"""Of the search for the most likely data of a measurement, once a run, and of a state, at every time; and how often a step is shortened."""


class Patterns(NamedTuple):
    """The measured entries (M,); 1/std of each, 0 in gaps, for every pattern (P, M) that states have; which one each has, (B,); a state
    of each, (P,); and whether each belongs to a block of B/P states, one block after the other."""

    places: Tensor
    weights: Tensor
    pattern: Tensor
    first: Tensor
    blocks: bool

    def of_states(self, value: Tensor) -> Tensor:
        """Of values (P, *) those of the states, as `rows` takes them: (B, *), or (P, *) for blocks."""
        return value if self.blocks else value[self.pattern]


def patterns_of(observed: Observed) -> Patterns:
    """Without noise the std is that of `units_of`. Of an operator that is not linear every measurement is a pattern of its own."""
    if "patterns" not in observed.plans:
        seen = observed.seen.flatten(1)
        places = seen.any(0).nonzero().flatten()
        std = units_of(observed).double().sqrt()
        weights = (observed.seen / std).flatten(1)[:, places]
        told = weights if observed.linear else torch.cat((weights, observed.y.flatten(1)[:, places].double()), 1)
        _, pattern = torch.unique(told, dim=0, return_inverse=True)
        state, count = torch.arange(len(pattern), device=pattern.device), int(pattern.max()) + 1
        first, order = state.new_full((count,), len(state)).scatter_reduce(0, pattern, state, "amin").sort()
        pattern = order.argsort()[pattern]  # in the order in which they come
        blocks = len(state) % count == 0 and bool((pattern == state // (len(state) // count)).all())
        observed.plans["patterns"] = Patterns(places, weights[first], pattern, first, blocks)
    found: Patterns = observed.plans["patterns"]
    return found


def tangents(observed: Observed, patterns: Patterns, moments: Moments) -> Tensor:
    """H (P, M, D) of an operator that is not linear, float64, for each of P measurements: its derivative at the most likely data given y
    of the Gaussian with these moments. Gauss and Newton's steps find them, each halved until it goes downhill."""
    places, weights, first = patterns.places, patterns.weights, patterns.first
    y, seen, dtype = observed.y[first].double(), observed.seen[first], observed.scale.dtype
    mean = moments.mean.expand(observed.shape).expand(len(first), *observed.shape)

    def measured(z: Tensor) -> Tensor:
        clean = observed.measurement.clean(observed.decode(z.to(dtype)))
        return torch.where(seen, clean, 0).flatten(1)[:, places]

    def slopes(z: Tensor) -> Tensor:
        at = z.to(dtype).detach().requires_grad_()
        with torch.enable_grad():
            clean = measured(at)
        one = torch.eye(len(places), dtype=dtype, device=at.device)
        each = [torch.autograd.grad(clean, at, row.expand_as(clean), retain_graph=True)[0].flatten(1) for row in one]
        return torch.stack(each, 1).double()

    def cost(z: Tensor, theta: Tensor) -> Tensor:
        prior = ((z - mean) * theta).flatten(1).sum(1)
        return ((y.flatten(1)[:, places] - measured(z)) * weights).square().sum(1) + noise * prior

    noise = 0.0 if observed.absent else 1.0
    place, theta = mean, torch.zeros_like(mean)  # place = mean + C theta
    least = cost(place, theta)
    for _ in range(POINT_STEPS):
        matrix_h = weights[..., None] * slopes(place)
        spread = moments.product(moments.along, matrix_h.reshape(-1, *observed.shape)).reshape(matrix_h.shape)
        system = spread @ matrix_h.mT
        hold = noise + SMALLEST * system.diagonal(dim1=1, dim2=2).amax(1, keepdim=True) + (weights == 0)
        wanted = (y.flatten(1)[:, places] - measured(place)) * weights + rows(matrix_h, (place - mean).flatten(1))
        solved = torch.linalg.solve(system + torch.diag_embed(hold), wanted)
        step, begun = rows(matrix_h.mT, solved).reshape(mean.shape) - theta, theta
        for k in range(HALVINGS):
            tried = begun + 0.5**k * step
            there = mean + moments.product(moments.along, tried)
            found = cost(there, tried)
            better = expand_as(found < least, place)
            place, theta, least = torch.where(better, there, place), torch.where(better, tried, theta), torch.minimum(found, least)
    return slopes(place)


def most_likely(rest: Tensor, rest_at: Callable[[Tensor], Tensor], mu: Tensor, noise: float) -> Tensor:
    """What `rest` would be of a linear measurement that agrees with this one at the most likely data D + G^T c of each state, (B, k).

    Those are found in the coordinates c, in which N(D, V) is N(0, I) and H G^T is mu^(1/2), by Gauss and Newton's steps with this H, each
    halved until |rest|^2 + noise |c|^2 falls.

    rest: the coordinates (B, k) of y - A(D); rest_at: c -> those of y - A(D + G^T c).
    """
    root, place = mu.sqrt(), torch.zeros_like(rest)
    least = rest.square().sum(1)
    for _ in range(STEPS):
        step, begun = root / (noise + mu) * (rest + root * place) - place, place
        for k in range(HALVINGS):
            tried = begun + 0.5**k * step
            there = rest_at(tried)
            cost = (there.square() + noise * tried.square()).sum(1)
            better = (cost < least)[:, None]
            place, rest, least = torch.where(better, tried, place), torch.where(better, there, rest), torch.minimum(cost, least)
    return rest + root * place


def rows(matrix: Tensor, vector: Tensor) -> Tensor:
    """The products of P matrices (P, m, n) with vectors (B, n), each with those of a block of B/P: (B, m)."""
    if len(matrix) == 1:
        return vector @ matrix[0].mT
    if len(matrix) == len(vector):
        return (matrix @ vector[..., None])[..., 0]
    return (vector.reshape(len(matrix), -1, vector.shape[1]) @ matrix.mT).flatten(0, 1)
