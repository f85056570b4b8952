"""The reverse SDE handed to torchsde."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import lru_cache, partial
from typing import Any

import torch
import torchsde
from torch import Tensor

from ..models.denoiser import Denoiser
from ..models.reverse import coefficients
from ..registry import lookup
from ..sdes import SDE
from ..sdes.base import as_time, check_positive
from .base import Run, Solver, rows
from .ode import WATCHED

METHODS = {"euler": (1.0, 1.0, 1), "milstein": (1.0, 1.0, 1), "srk": (1.5, 2.0, 2)}
"""Strong order, weak order and network calls a step, where the noise is additive, as it is here."""
HUGE = 1e12
"""A drift (a whole run long) beyond which an adaptive run is given up: torchsde's step control divides by such an error."""
AREA = {"euler": "none", "milstein": "none", "srk": "space-time"}

Row = tuple[float, ...]


class TorchSDE(Solver):
    """`torchsde.sdeint` on the reverse SDE dx = (a x + b E[x_0|x]) dt + c dw, an independent oracle for this package's loops.

    method: "euler", "milstein" (which agrees with euler, since the noise is additive) or "srk", the stochastic Runge-Kutta
        method SRA1 of strong order 1.5 (Roessler 2010, doi:10.1137/09076636X), two network calls a step.
    adaptive: False takes the steps of the grid, each of them one call of sdeint on a clock of its own from 0 to 1, over a
        BrownianInterval whose increment (and, for srk, space-time Levy area) are the samples' own draws; euler then gives the
        samples of `em`. True lets torchsde choose its steps in the half log-SNR, by rtol and atol, in float64, over one
        BrownianInterval a sample, one sample after the other, since torchsde has one step size and one error for a batch:
        slow. `steps` then caps the attempts of a sample, and a watched run is shown between the steps by torchsde's linear
        interpolation. A sample that reaches the cap or is not finite ends as failed and the others are not touched.

    Slower than `em` by the overhead of sdeint, about half a millisecond a step. Li et al. 2020, arXiv:2001.01328.
    """

    stochastic = True
    default_steps = 250

    def __init__(self, method: str = "euler", adaptive: bool = False, rtol: float = 1e-2, atol: float = 1e-2) -> None:
        self.strong_order, self.weak_order, self._calls = lookup(METHODS, "method", method)
        if not isinstance(adaptive, bool):
            raise TypeError(f"adaptive must be True or False, got {adaptive!r}")
        self.method, self.adaptive = method, adaptive
        self.rtol, self.atol = check_positive("rtol", rtol), check_positive("atol", atol)
        if adaptive:
            self.default_steps = 1000

    @property
    def calls(self) -> int | None:
        return None if self.adaptive else self._calls

    def solve(self, run: Run, x: Tensor, t_start: float, t_end: float, steps: int, grid: str | Tensor) -> Tensor:
        if self.adaptive:
            return self._adaptive(run, x, t_start, t_end, steps, grid)
        clock = _StepClock(run.model, self.times(run, x, t_start, t_end, steps, grid))
        process = _Process(run, x.shape, clock)
        # Twice the step as dt, so that rounding never leaves a sliver of a second step.
        span, options = torch.tensor([0.0, 1.0], dtype=torch.float64), {"method": self.method, "dt": 2.0}
        for step, stop in enumerate(clock.times[1:].tolist()):
            clock.step = step
            path = self._interval(run.noise.draw(), run.noise.draw() if self.method == "srk" else None)
            x = torchsde.sdeint(process, x.reshape(-1, 1), span, bm=path, **options)[-1].reshape(x.shape)
            if run.observe(stop, x, process.denoised):
                break
        return x

    def _adaptive(self, run: Run, x: Tensor, t_start: float, t_end: float, steps: int, grid: str | Tensor) -> Tensor:
        sde = run.model.sde
        first, last = (float(sde.half_log_snr(t)) for t in (t_start, t_end))
        stops = self.times(run, x, t_start, t_end, WATCHED if run.observer is not None else 1, grid)
        shown = (sde.half_log_snr(stops) - first) / (last - first)
        shown[0], shown[-1] = 0.0, 1.0
        states = torch.full((len(stops), *x.shape), math.nan, dtype=x.dtype, device=x.device)
        w, h, extra = (run.noise.draw().double().flatten(1) for _ in range(3))
        clock = lru_cache(maxsize=8)(partial(_in_lambda, sde, first, last))  # steps and their stages share times
        entropy = torch.stack((w[:, 0], h[:, 0], extra[:, 0]), dim=1).view(torch.int64).abs().tolist()
        for i, seed in enumerate(entropy):
            alone = Run(run.model, run.noise, run.nfe[i : i + 1], {name: value[i : i + 1] for name, value in run.cond.items()})
            process = _Process(alone, (1, *x.shape[1:]), clock, limit=HUGE)
            path = self._interval(w[i], h[i], seed, 3 * steps)
            try:
                found = torchsde.sdeint(
                    process,
                    x[i].double().reshape(-1, 1),
                    shown,
                    bm=path,
                    method=self.method,
                    dt=0.01,
                    adaptive=True,
                    rtol=self.rtol,
                    atol=self.atol,
                    dt_min=0.0,
                )
            except _Lost:
                continue
            states[:, i] = found.reshape(len(stops), *x.shape[1:]).to(x.dtype)
        if run.observer is None:
            return states[-1]
        for stop, state in zip(stops[1:].tolist(), states[1:], strict=True):
            if run.observer(stop, state, run.predict(state, stop).denoised):
                break
        return state

    def _interval(self, w: Tensor, h: Tensor | None, entropy: Any = 0, queries: int | None = None) -> torchsde.BrownianInterval:
        """The path from 0 to 1 with the increment `w` and the space-time Levy area `h`/sqrt(12), both standard normal.

        Each element of the state is a row of a batch of scalar equations: the one form of additive noise for which torchsde
        multiplies by no matrix of the state's size squared.
        """
        w = w.reshape(-1, 1)
        # Without a Levy area h is not used, but torchsde would draw one.
        area = w if h is None else h.reshape(-1, 1) / math.sqrt(12)
        return _Capped(queries, 0.0, 1.0, W=w, H=area, entropy=entropy, levy_area_approximation=AREA[self.method])


class _Lost(Exception):
    """A sample of an adaptive run that is given up."""


class _Capped(torchsde.BrownianInterval):
    """A BrownianInterval that gives up after so many queries, one for each step that is tried."""

    def __init__(self, queries: int | None, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self.queries = queries

    def __call__(self, *args: Any, **options: Any) -> Any:
        if self.queries is not None:
            if self.queries == 0:
                raise _Lost
            self.queries -= 1
        return super().__call__(*args, **options)


class _Process:
    """The reverse SDE of a batch on some clock u, elements as rows; `clock` gives t and (a, b, c) per unit of u."""

    noise_type, sde_type = "additive", "ito"

    def __init__(self, run: Run, shape: tuple[int, ...], clock: Callable[[float], Row], limit: float | None = None) -> None:
        self.run, self.shape, self.clock, self.limit = run, shape, clock, limit
        self.seen: tuple[Row, Tensor] | None = None

    def f(self, u: Tensor, y: Tensor) -> Tensor:
        # sdeint asks for the first drift twice, to see its shape, and Runge-Kutta methods once for each later stage.
        t, a, b, _ = row = self.clock(float(u))
        if self.seen is None or self.seen[0] != row or self.seen[1] is not y:
            x = y.reshape(self.shape)
            self.denoised = self.run.predict(x, t).denoised
            self.drift = (a * x).add_(self.denoised, alpha=b).reshape(-1, 1)
            self.seen = row, y
            if self.limit is not None and not bool((self.drift.abs() <= self.limit).all()):
                raise _Lost
        return self.drift

    def g(self, u: Tensor, y: Tensor) -> Tensor:
        return y.new_full((1, 1, 1), self.clock(float(u))[3]).expand(len(y), 1, 1)


class _StepClock:
    """From 0 to 1 along each step of a grid, even in t; worked out for all steps once a stage is asked for."""

    def __init__(self, model: Denoiser, times: Tensor) -> None:
        self.model, self.times = model, times
        self.step = 0
        self.stages: dict[float, list[Row]] = {}

    def __call__(self, u: float) -> Row:
        if u not in self.stages:
            length = self.times.diff()
            t = self.times[:-1] + u * length
            a, b, c = coefficients(self.model.sde, t)
            stage = rows(t, length * a, length * b, torch.sqrt(-length) * c)
            planned = self.model.planned(row[0] for row in stage)
            self.stages[u] = [(planned[time], *others) for time, *others in stage]
        return self.stages[u][self.step]


def _in_lambda(sde: SDE, first: float, last: float, u: float) -> Row:
    """From 0 to 1 along the whole way, even in the half log-SNR."""
    t = sde.time_of(as_time(first + u * (last - first))).clamp(sde.t_min, sde.t_max)
    length = (last - first) / sde.slopes(t)[1]
    a, b, c = coefficients(sde, t)
    return rows(*(value[None] for value in (t, length * a, length * b, torch.sqrt(-length) * c)))[0]
