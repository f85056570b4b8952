"""The reverse SDE handed to torchsde."""

from __future__ import annotations

import math
from typing import Any

import torch
import torchsde
from torch import Tensor, nn

from ..reverse import ReverseSDE
from ..sdes.base import check_positive
from .base import Run, Solver
from .grids import make_grid
from .ode import WATCHED

METHODS = ("euler", "milstein", "srk")


class TorchSDE(Solver):
    """`torchsde.sdeint` on the reverse SDE in forward time u = t_start - t, with a BrownianInterval for each sample.

    method: "euler", "milstein" or "srk" (Ito; the noise is additive, so that the first two agree); adaptive=True uses its
    step control (one step size for the batch) with rtol and atol. `steps` sets the step (t_start - t_end)/steps. Each
    sample's path has its own seed, drawn from the sample's noise, so that samples do not depend on their batch for fixed
    steps. Slow: it is here as an independent oracle and for its methods. Li et al. 2020, arXiv:2001.01328.
    """

    strong_order = 1.0
    weak_order = 1.0
    stochastic = True
    default_steps = 200

    def __init__(self, method: str = "euler", adaptive: bool = False, rtol: float = 1e-3, atol: float = 1e-3) -> None:
        if method not in METHODS:
            raise ValueError(f"unknown method {method!r}; choose from {', '.join(METHODS)}")
        self.method, self.adaptive = method, adaptive
        self.rtol, self.atol = check_positive("rtol", rtol), check_positive("atol", atol)

    @property
    def calls(self) -> int | None:
        return None

    def solve(self, run: Run, x: Tensor, t_start: float, t_end: float, steps: int, grid: str) -> Tensor:
        span = t_start - t_end
        stops = [t_end] if run.observer is None else make_grid(run.model.sde, grid, t_start, t_end, WATCHED)[1:].tolist()
        shown = torch.tensor([0.0, *(t_start - stop for stop in stops)], dtype=torch.float64)
        process = _ForwardTime(run, t_start, x.shape)
        entropy = (run.noise.draw().flatten(1)[:, 0].double().abs() * 2**40).long().tolist()
        path = _Paths([self._interval(seed, span, x) for seed in entropy])
        options: dict[str, Any] = {"adaptive": True, "rtol": self.rtol, "atol": self.atol} if self.adaptive else {}
        states = torchsde.sdeint(process, x.flatten(1), shown, bm=path, method=self.method, dt=span / steps, **options)
        for stop, state in zip(stops, states[1:], strict=True):
            y = state.reshape(x.shape).to(x.dtype)
            if run.observer is not None:
                denoised = run.model.predict(y, stop, **run.cond)[0]
                run.nfe += 1
                if run.observer(stop, y, denoised):
                    break
        return y

    def _interval(self, seed: int, span: float, x: Tensor) -> torchsde.BrownianInterval:
        area = "space-time" if self.method == "srk" else "none"
        size = (1, math.prod(x.shape[1:]))
        return torchsde.BrownianInterval(
            t0=0.0, t1=span, size=size, dtype=x.dtype, device=x.device, entropy=seed, levy_area_approximation=area
        )


class _Paths(torchsde.BaseBrownian):
    """One Brownian path for each sample, seen as one of the batch."""

    def __init__(self, paths: list[torchsde.BrownianInterval]) -> None:
        super().__init__()
        self.paths = paths

    def __call__(self, ta: Any, tb: Any = None, return_U: bool = False, return_A: bool = False) -> Any:
        found = [path(ta, tb, return_U=return_U, return_A=return_A) for path in self.paths]
        if isinstance(found[0], tuple):
            return tuple(torch.cat(parts) for parts in zip(*found, strict=True))
        return torch.cat(found)

    @property
    def dtype(self) -> torch.dtype:
        return self.paths[0].dtype

    @property
    def device(self) -> torch.device:
        return self.paths[0].device

    @property
    def shape(self) -> torch.Size:
        return torch.Size((len(self.paths), *self.paths[0].shape[1:]))

    @property
    def levy_area_approximation(self) -> str:
        return str(self.paths[0].levy_area_approximation)

    def __repr__(self) -> str:
        return f"{type(self).__name__}({len(self.paths)})"


class _ForwardTime(nn.Module):
    noise_type, sde_type = "diagonal", "ito"

    def __init__(self, run: Run, t_start: float, shape: torch.Size) -> None:
        super().__init__()
        self.run, self.t_start, self.shape = run, t_start, shape
        self.reverse = ReverseSDE(run.model, 1.0, **run.cond)

    def _time(self, u: Tensor) -> Tensor:
        sde = self.run.model.sde
        return (self.t_start - u.double()).clamp(sde.t_min, sde.t_max)

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        self.run.nfe += 1
        return -self.reverse.drift(y.reshape(self.shape), self._time(u)).flatten(1)

    def g(self, u: Tensor, y: Tensor) -> Tensor:
        return self.reverse.diffusion(self._time(u)).to(y).expand_as(y)
