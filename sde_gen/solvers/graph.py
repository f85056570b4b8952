"""A fixed-step solver's loop as one CUDA graph, replayed for batch after batch."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from ..devices import current
from .base import FixedStepSolver, Run, Solver, Update, run_updates


@dataclass
class _Captured:
    """A captured loop: copy into `inputs`, replay, read `output`.

    run: what the loop was captured with. A replay writes where its tensors lie, its count of calls for one: they must live as long.
    """

    graph: torch.cuda.CUDAGraph
    updates: list[Update]
    inputs: tuple[Tensor, ...]
    output: Tensor
    run: Run


class Graphed(Solver):
    """`solver` on CUDA with its loop captured once for each size of batch: the same kernels in the same order, started together.

    The first batch of a size runs as ever and loads what a network loads on its first call; the second is captured, and it and
    all later ones are replays, so that one batch alone gains nothing. Where run.observer watches, and on other devices, it runs
    as ever. RuntimeError, in one line, where the network cannot be captured: it waits for the device, or runs on the host.
    """

    def __init__(self, solver: FixedStepSolver) -> None:
        self.solver = solver
        self._captured: dict[tuple[int, ...], _Captured | None] = {}

    def solve(self, run: Run, x: Tensor, t_start: float, t_end: float, steps: int, grid: str | Tensor) -> Tensor:
        x, updates, history = self.solver.table(run, x, t_start, self.solver.times(run, x, t_start, t_end, steps, grid))
        size = tuple(x.shape)
        if run.observer is not None or x.device.type != "cuda":
            return run_updates(run, x, updates, history)
        if size not in self._captured:
            self._captured[size] = None
            return run_updates(run, x, updates, history)
        inputs = (x, *history, *run.cond.values(), *run.noise.memory)
        captured = self._captured[size]
        with current(x.device):
            if captured is None or captured.updates != updates:
                captured = self._captured[size] = _capture(run, inputs, updates, len(history))
            for mine, theirs in zip(captured.inputs, inputs, strict=True):
                mine.copy_(theirs)
            captured.graph.replay()
        run.nfe += sum(run.model.cost_at(update.t) for update in updates if update.t is not None)
        return captured.output.clone()


def _capture(run: Run, inputs: tuple[Tensor, ...], updates: list[Update], remembered: int) -> _Captured:
    inputs = tuple(tensor.clone() for tensor in inputs)
    first = 1 + remembered
    cond = dict(zip(run.cond, inputs[first:], strict=False))
    noise = run.noise.with_memory(inputs[first + len(cond) :])
    twin = replace(run, noise=noise, nfe=torch.zeros_like(run.nfe), cond=cond)
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph):
            output = run_updates(twin, inputs[0], updates, inputs[1:first])
    except RuntimeError as error:
        raise RuntimeError(f"the network cannot be captured in a CUDA graph (leave graph out): {str(error).splitlines()[0]}") from error
    return _Captured(graph, updates, inputs, output, twin)
