"""The flow's own trajectories, which a flow map is taught by."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from .. import progress
from ..guidance import guide
from ..models.denoiser import Denoiser
from ..models.flow_map import STRENGTH, FlowMap
from ..randomness import NoiseStream
from ..sampling.sample import sample

SOLVER = "angle"
PART = 256
"""Trajectories that are drawn together; they share a strength of guidance."""


@dataclass(frozen=True)
class Trajectories:
    """States of the flow at the times of a flow map.

    states: (N, K + 1, *shape), float32 on the CPU, in normalised units, from t_max to t_min.
    cond: the conditions under which they ran, by name, (N, *) each; with "strength" where they were guided.
    """

    states: Tensor
    cond: dict[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.states)


def draw_trajectories(
    teacher: Denoiser,
    flow: FlowMap,
    count: int,
    cond: Mapping[str, Tensor],
    drop: float = 0.0,
    seed: int = 0,
    seconds: float | None = None,
    show: bool = False,
) -> Trajectories:
    """Draws of the prior led along the flow of `teacher` through `flow.times`, one network call for each, by "angle".

    teacher: E[x_0 | x_t] along the SDE of `flow`; where `flow` has strengths it is guided, each part of the trajectories by another one.
    cond: conditions (M, *) by name, of which rows are drawn together, each left out with the probability `drop`.
    seconds: after so long what is there is enough, a part at least.

    Raises SolverError where the flow is not finite.
    """
    device, shape = next(flow.parameters()).device, flow.network.shape
    generator = torch.Generator().manual_seed(seed)
    strengths = _strengths(flow, -(-count // PART), generator)
    steps, times = len(flow.times) - 1, torch.tensor(flow.times, dtype=torch.float64)
    states: list[Tensor] = []
    told: list[dict[str, Tensor]] = []
    began = time.monotonic()
    with progress.bar(count, "trajectories", "trajectory", show, leave=False) as bar:
        for part, first in enumerate(range(0, count, PART)):
            if seconds is not None and part and time.monotonic() - began > seconds:
                break
            n = min(PART, count - first)
            rows = torch.randint(len(next(iter(cond.values()))), (n,), generator=generator) if cond else None
            given: dict[str, Tensor] = {}
            for name, values in cond.items():
                value = values[rows.to(values.device)]  # type: ignore[union-attr]
                null = teacher.null(name, value)
                out = torch.rand(n, generator=generator) < drop
                chosen = out.to(value.device).reshape(-1, *[1] * (value.ndim - 1))
                given[name] = value if null is None else torch.where(chosen, null, value)
            asked, beside = teacher, {}
            if flow.strengths is not None:
                asked, beside = guide(teacher, strengths[part]), {STRENGTH: torch.full((n,), strengths[part])}
            start = teacher.prior.from_noise(NoiseStream(seed, first, n, shape, torch.float32, device).draw())
            how: dict[str, Any] = {"x_init": start, "trajectory": "states", "final": "state", "progress": False, "dtype": torch.float32}
            found = sample(asked, (n, *shape), SOLVER, steps=steps, grid=times, cond=given, **how)
            assert found.trajectory is not None
            states.append(torch.cat((start.cpu()[None], found.trajectory)).movedim(0, 1).contiguous())
            told.append(given | beside)
            bar.update(n)
    return Trajectories(torch.cat(states), {name: torch.cat([one[name] for one in told]) for name in told[0]})


def _strengths(flow: FlowMap, count: int, generator: torch.Generator) -> list[float]:
    """So many strengths, one in each of as many equal parts of the range, in a random order."""
    if flow.strengths is None:
        return []
    low, high = flow.strengths
    places = (torch.randperm(count, generator=generator) + torch.rand(count, generator=generator)) / count
    return (low + (high - low) * places).tolist()
