"""Denoisers that are given a measurement, and the measurement as they see it: from normalised data, gaps left out."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.denoiser import Denoiser, PlannedTime, Prediction, Wrapper, is_affine
from ..models.prior import Prior
from ..sampling.sample import sample
from ..solvers import Solver
from .measurement import MEASURED, Measurement
from .request import Posterior, Request, repeated
from .solve import conjugate_gradients, iterations_needed

MOST_ITERATIONS = 200
"""Of conjugate gradients with the operator alone, which ask no network."""
TOLERANCE = 1e-6
"""Of their residual, as a share of the right-hand side."""


class Observed:
    """The measurement of one batch, in terms of normalised data z (B, *data shape).

    y: (B, *measured shape), 0 in gaps. seen: which entries are measured, bool. variance: of the noise, as y; 1 in gaps.
    With decode(z) = shift + scale z the linear part of A(decode(z)) is H z = A(scale z). Where the normaliser is not affine, A(decode(z))
    is as of an operator that is not linear.
    """

    def __init__(self, wrapper: Conditioned, y: Tensor, x: Tensor) -> None:
        self.measurement, self.normalizer = wrapper.measurement, wrapper.normalizer
        self.linear = self.measurement.operator.linear and is_affine(self.normalizer)
        self.absent = self.measurement.noise.absent
        self.shape = x.shape[1:]
        self.seen = self.measurement.seen(y, self.shape)
        self.given, self.y = y, torch.where(self.seen, y, 0)
        self.variance = torch.where(self.seen, self.measurement.noise.variance(self.y), 1).to(x.dtype)
        self.variance_of_seen = torch.where(self.seen, self.variance, 0)
        self.scale = self._scale(x)
        self.plans: dict[Any, Any] = {}  # what methods work out of it once a run

    def _scale(self, x: Tensor) -> Tensor:
        one = torch.ones(1, *self.shape, dtype=torch.float64, device=x.device)
        # The map is affine, entry by entry.
        return one.to(x.dtype) if self.normalizer is None else (self.normalizer.decode(one) - self.normalizer.decode(0 * one)).to(x.dtype)

    @property
    def entries(self) -> int:
        """How many entries the operator measures, whatever gaps y has."""
        kept = self.measurement.operator.kept(self.shape)
        return self.seen[0].numel() if kept is None else int(kept.sum())

    def clean(self, z: Tensor) -> Tensor:
        """A(decode(z)), 0 in gaps."""
        return torch.where(self.seen, self.measurement.clean(self.decode(z)), 0)

    def decode(self, z: Tensor) -> Tensor:
        return z if self.normalizer is None else self.normalizer.decode(z)

    def encode(self, x: Tensor) -> Tensor:
        return x if self.normalizer is None else self.normalizer.encode(x)

    def residual(self, z: Tensor) -> Tensor:
        """y - A(decode(z)), 0 in gaps, of z's dtype."""
        clean = self.clean(z)
        return (self.y.to(clean.dtype) - clean).to(z.dtype)

    def log_prob(self, z: Tensor) -> Tensor:
        """log p(y | decode(z)) in nats, (B,)."""
        return self.measurement.log_prob(self.given, self.decode(z))

    def forward(self, v: Tensor) -> Tensor:
        """H v of a linear operator, 0 in gaps; v (K, *data shape) of a multiple K of the batch."""
        found = self.measurement.operator(self.scale * v)
        return torch.where(self._rows(found), found, 0)

    def adjoint(self, u: Tensor) -> Tensor:
        """H^T u of a linear operator; u as y, of a multiple of the batch."""
        return self.scale * self.measurement.operator.adjoint(torch.where(self._rows(u), u, 0), self.shape)

    def solve(self, u: Tensor, spread: Tensor | float, noise: float = 1.0) -> Tensor:
        """(noise Sigma_y + spread H H^T)^-1 u for a linear operator, by conjugate gradients; spread: a number or one for each sample."""

        wide = spread.reshape(-1, *[1] * (u.ndim - 1)) if isinstance(spread, Tensor) and spread.ndim else spread

        def product(v: Tensor) -> Tensor:
            return noise * self.variance_of_seen * v + wide * self.forward(self.adjoint(v))

        if ("iterations", noise) not in self.plans:
            # Planned at the first call of a run, where the spread is largest and the system worst, on numbers that are always the same.
            generator = torch.Generator().manual_seed(0)
            probe = torch.randn(u.shape[1:], generator=generator, dtype=torch.float64).to(u).expand_as(u)
            needed = iterations_needed(product, torch.where(self._rows(u), probe, 0), min(self.entries, MOST_ITERATIONS), TOLERANCE)
            self.plans["iterations", noise] = min(self.entries, MOST_ITERATIONS, needed + needed // 4 + 1)
        return conjugate_gradients(product, u, self.plans["iterations", noise], TOLERANCE)

    def pulled(self, z: Tensor, spread: Tensor | float, noise: float = 1.0) -> Tensor:
        """spread H^T (noise Sigma_y + spread H H^T)^-1 (y - A(decode(z))): how far data N(z, spread I) move towards y; noise 0 moves them
        onto it."""
        return spread * self.adjoint(self.solve(self.residual(z), spread, noise))

    def mean_gain(self) -> Tensor:
        """The root of the mean eigenvalue of H H^T, ready to multiply y, as a probe that is always the same tells it."""
        place = torch.arange(self.seen[0].numel(), device=self.seen.device).reshape(self.seen.shape[1:])
        signs = (1 - 2 * (place * 40503 % 65537 % 2)) * self.seen.to(self.scale.dtype)
        mean = self.adjoint(signs).square().flatten(1).sum(1) / self.seen.flatten(1).sum(1)
        return mean.sqrt().reshape(-1, *[1] * (self.seen.ndim - 1))

    def _rows(self, value: Tensor) -> Tensor:
        return self.seen if len(value) == len(self.seen) else self.seen.repeat(len(value) // len(self.seen), *[1] * (value.ndim - 1))


class Conditioned(Wrapper):
    """E[x_0 | x_t, y] of `model` given a measurement y = A(x) + noise, as a method of inverse problems approximates it.

    measurement: operator and noise, in the data's units.

    y (B, *measured shape) goes among the conditions, under the name "measured", each sample with its own; NaN in it are gaps. All other
    conditions are the model's. A subclass gives `correct` and says what it asks for:

    linear: linear operators only.
    noisy: noise of positive std only; else std 0, a hard constraint, is a limit that it has.
    gradient: differentiates the network.

    Nothing is known of the posterior's moments. Its law at t_max is taken to be the model's prior, as the state says next to nothing of
    the data there.
    """

    same_law = False
    linear: bool = False
    noisy: bool = False
    gradient: bool = False

    def __init__(self, model: Denoiser, measurement: Measurement) -> None:
        super().__init__(model)
        if not isinstance(measurement, Measurement):
            raise TypeError(f"measurement must be a Measurement(operator, noise), got {type(measurement).__name__}")
        name = type(self).__name__
        if self.linear and not measurement.operator.linear:
            raise ValueError(
                f"{name} takes linear operators, got {type(measurement.operator).__name__}, which is none (dps, mmps, twisted do)"
            )
        if self.linear and not is_affine(model.normalizer):
            raise ValueError(
                f"{name} takes measurements that are linear in normalised data, and this model's normaliser is not affine (dps, mmps do)"
            )
        if self.noisy and measurement.noise.absent:
            raise ValueError(f"{name} needs noise: std must be positive, got 0 (allowed for methods that take it as a hard constraint)")
        self.measurement = measurement
        self.differentiates = self.gradient or model.differentiates

    @property
    def prior(self) -> Prior:
        return self.model.prior

    def conditions(self, cond: Mapping[str, Any] | None, count: int, device: torch.device) -> dict[str, Tensor]:
        found = Denoiser.conditions(self, cond, count, device)
        y = found.pop(MEASURED, None)
        if y is None:
            raise ValueError(f"{type(self).__name__} needs the measurement, cond={{{MEASURED!r}: y}} (or sde_gen.posterior)")
        if not y.is_floating_point():
            raise TypeError(f"the measurement must be floating, got {y.dtype}")
        return {**self.model.conditions(found, count, device), MEASURED: y}

    @abstractmethod
    def correct(self, x: Tensor, t: Tensor | float, observed: Observed, cond: dict[str, Tensor]) -> Prediction:
        """What is predicted at x (B, *), given what is observed; cond: the model's own conditions."""

    def predict(self, x: Tensor, t: Tensor | float, **cond: Tensor) -> Prediction:
        observed = self.observed(x, t, cond.pop(MEASURED))
        return self.correct(x, t, observed, cond)

    def prepare(self, times: Sequence[PlannedTime]) -> None:
        self.model.prepare(times)
        memory: dict[str, Any] = {}  # of one run, whose times all hold it
        for t in times:
            t.plans[self] = memory

    def observed(self, x: Tensor, t: Tensor | float, y: Tensor) -> Observed:
        """The measurement y of the batch x, worked out once a run."""
        memory = t.plans.get(self, {}) if isinstance(t, PlannedTime) else {}
        if memory.get("y") is not y or memory["dtype"] != x.dtype:
            memory.update(y=y, dtype=x.dtype, observed=Observed(self, y, x))
        found: Observed = memory["observed"]
        return found

    def levels(self, x: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor]:
        """alpha and sigma at t, ready to multiply x (B, *)."""
        return self._marginal(x, t)

    def loop(self, solver: str | Solver) -> str | Solver:
        """The solver that the method's samples are drawn with, where `solver` is asked for."""
        return solver

    def draw(self, request: Request) -> Posterior:
        """`request.count` equally weighted samples for each measurement."""
        batch, count = len(request.y), request.count
        if request.particles is not None:
            raise ValueError(f"particles belong to method 'twisted', not to {type(self).__name__}")
        out = sample(
            self,
            (batch * count, *request.shape),
            self.loop(request.solver),
            request.steps,
            cond=repeated(request, count),
            index_offset=request.index_offset * count,
            **request.settings,
        )
        ess = torch.full((batch,), float(count), dtype=torch.float64, device=out.x.device)
        return Posterior(out.x.reshape(batch, count, *request.shape), None, ess, None, None, out.nfe.reshape(batch, count).sum(1))
