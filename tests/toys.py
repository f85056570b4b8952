"""An SDE and solvers that are registered nowhere, and networks that watch their own calls."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from sde_gen import SDE, Solver, make_sde
from sde_gen.models.score import CLOCKS, PREDICTIONS
from sde_gen.sdes import SDES
from sde_gen.solvers import FixedStepSolver, Run, Update


class LinearPath(SDE):
    """alpha = 1 - t, sigma = t: a subclass that gives `marginal` and nothing else."""

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return 1 - t, t.clone()


Command = Callable[..., tuple[int, list[str], list[str]]]
"""What the fixture `sde_gen_command` gives."""
TINY_RUN = [
    *("--train-steps", "12", "--batch", "16", "--samples", "32", "--no-progress", "--network", "mlp", "--steps", "3"),
    *("--set", "model.options={width: 16, depth: 1}", "--set", "training.evaluations=1"),
]
"""Flags of `sde-gen run` for a network trained in a second."""


FREE_PREDICTIONS = [name for name in PREDICTIONS if name != "posterior_mean"]
FREE_CLOCKS = [name for name in CLOCKS if name != "index"]
"""Those of every SDE; what only a chain has is tested in discrete/test_ddpm.py."""


def all_sdes() -> dict[str, SDE]:
    """One of every registered SDE, and the toy."""
    return {**{name: make_sde(name) for name in SDES}, "toy": LinearPath()}


class ToyDDIM(FixedStepSolver):
    """x_s = alpha_s D + sigma_s (x - alpha_t D)/sigma_t, written from marginal alone."""

    order = 1
    default_steps = 20

    def plan(self, sde: SDE, times: Tensor) -> list[Update]:
        alpha, sigma = (values.tolist() for values in sde.marginal(times))
        t = times.tolist()
        ratio = [late / early for early, late in pairwise(sigma)]
        return [Update(t=t[i], a=ratio[i], b=(alpha[i + 1] - ratio[i] * alpha[i],), s=t[i + 1]) for i in range(len(ratio))]


class ToyEuler(Solver):
    """The flow by plain Euler steps on `velocity`, with a loop of its own and no plan."""

    default_steps = 50

    def solve(self, run: Run, x: Tensor, t_start: float, t_end: float, steps: int, grid: str) -> Tensor:
        times = torch.linspace(t_start, t_end, steps + 1, dtype=torch.float64).tolist()
        for t, s in pairwise(times):
            x = x + (s - t) * run.model.velocity(x, t, **run.cond)
            run.nfe += 1
        return x


class CountingNetwork:
    """Counts the calls of every sample, which the condition `index` names."""

    def __init__(self, network: Callable[..., Tensor], count: int, device: torch.device | str = "cpu") -> None:
        self.network, self.calls = network, torch.zeros(count, dtype=torch.int64, device=device)

    def __call__(self, x: Tensor, c: Tensor, *, index: Tensor, **cond: Any) -> Tensor:
        self.calls[index] += 1
        return self.network(x, c)


class FailingNetwork:
    """As `network`, but `value` for the sample `bad` from time `below` down."""

    def __init__(self, network: Callable[..., Tensor], bad: int, below: float, value: float = float("nan")) -> None:
        self.network, self.bad, self.below, self.value = network, bad, below, value

    def __call__(self, x: Tensor, c: Tensor, *, index: Tensor) -> Tensor:
        hit = ((index == self.bad) & (c <= self.below)).reshape(-1, *[1] * (x.ndim - 1))
        return torch.where(hit, self.value, self.network(x, c))
