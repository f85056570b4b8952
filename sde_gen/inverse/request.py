"""What a posterior is asked for, and what it is."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..randomness import NoiseStream
from ..solvers import Solver
from .measurement import MEASURED

_RESAMPLING = 0x9E51DE
"""Told from the seed of the samples' noise."""


@dataclass(frozen=True)
class Request:
    """What `posterior` asks a method for, checked.

    y: (B, *measured shape). cond: the model's conditions, B rows each. count: samples for each measurement. shape: of one sample.
    settings: what `sample` takes besides, seed among it.
    """

    y: Tensor
    cond: dict[str, Tensor]
    count: int
    shape: tuple[int, ...]
    solver: str | Solver
    steps: int | None
    particles: int | None
    index_offset: int
    settings: dict[str, Any]


@dataclass(frozen=True)
class Posterior:
    """Samples of data given a measurement, `count` for each of B measurements.

    x: (B, count, *data shape), in the data's units.
    log_weights: (B, count), not normalised, or None where the samples are equally weighted. The mean of their exponentials is the evidence.
    ess: the effective number of samples by their weights, (B,); count where they are equally weighted, and a Metropolis chain's proposals'.
        Where `count` of more particles are kept it is that of the particles.
    lineages: the effective number of particles of the start that the samples come from, (B,); None where each was drawn by itself. Samples
        of one ancestor share a part of their way, so that as many as `lineages` are independent for certain, and no more than `ess`.
    log_evidence: log p(y) in nats, (B,), and log_evidence_error, its standard error; None for methods that do not know it.
        An error near 1 nat is the largest that can be said: where `lineages` is 1 or 2 the evidence may be off by far more.
    nfe: network evaluations for each measurement, (B,); a method that differentiates the network has vector-Jacobian products besides.
    acceptance: the share of proposals that a Metropolis chain took, (B,); None for other methods.
    """

    x: Tensor
    log_weights: Tensor | None
    ess: Tensor
    log_evidence: Tensor | None
    log_evidence_error: Tensor | None
    nfe: Tensor
    lineages: Tensor | None = None
    acceptance: Tensor | None = None

    @property
    def weights(self) -> Tensor:
        """(B, count), which sum to 1 for each measurement."""
        if self.log_weights is None:
            return torch.full(self.x.shape[:2], 1 / self.x.shape[1], dtype=torch.float64, device=self.x.device)
        return self.log_weights.softmax(1)

    def mean(self) -> Tensor:
        """The posterior's mean, (B, *data shape)."""
        return torch.einsum("bk,bk...->b...", self.weights.to(self.x.dtype), self.x)

    def std(self) -> Tensor:
        """The posterior's standard deviation of each entry, (B, *data shape)."""
        off = self.x - self.mean()[:, None]
        return torch.einsum("bk,bk...->b...", self.weights.to(self.x.dtype), off.square()).sqrt()

    def resampled(self, count: int | None = None, seed: int = 0) -> Posterior:
        """Equally weighted samples, `count` of them (None: as many as there are), by systematic resampling; nothing else changes.

        A sample of large weight comes several times.
        """
        batch, have = self.x.shape[:2]
        wanted = have if count is None else count
        uniform = torch.special.ndtr(NoiseStream(seed ^ _RESAMPLING, 0, 1, (1,), torch.float64, torch.device("cpu")).draw())
        places = ((uniform + torch.arange(wanted)) / wanted).to(self.x.device).expand(batch, wanted).contiguous()
        chosen = torch.searchsorted(self.weights.double().cumsum(1), places).clamp_max(have - 1)
        x = self.x[torch.arange(batch, device=self.x.device)[:, None], chosen]
        return replace(self, x=x, log_weights=None)


def repeated(request: Request, times: int) -> dict[str, Tensor]:
    """The conditions and the measurement, each row so many times."""
    return {name: value.repeat_interleave(times, 0) for name, value in {**request.cond, MEASURED: request.y}.items()}
