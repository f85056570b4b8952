"""Sampling by a flow map: one network call from each time to the next."""

from __future__ import annotations

from itertools import pairwise

from torch import Tensor

from ..models.flow_map import FlowMap
from ..solvers import Run, Solver

JUMPS = "jumps"
"""What sampling by a flow map is called where solvers have names."""


class Jumps(Solver):
    """x_s = jump(x_t, t, s) along the times of a grid: what `sample` runs on a flow map, and on nothing else."""

    default_steps = 4

    def solve(self, run: Run, x: Tensor, t_start: float, t_end: float, steps: int, grid: str | Tensor) -> Tensor:
        assert isinstance(run.model, FlowMap) and isinstance(grid, Tensor)
        for t, s in pairwise(grid.tolist()):
            x = run.model.jump(x, t, s, **run.cond)
            run.nfe += run.model.cost
            if run.observe(s, x, x):
                break
        return x
