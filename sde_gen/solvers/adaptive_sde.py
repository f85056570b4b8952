"""The reverse SDE with steps of its own for every sample, on a Brownian path that refused steps do not change."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..sdes import SDE
from ..sdes.base import check_positive
from ..shapes import expand_as
from .base import Run, Solver
from .ode import rms

PANELS = 32
"""Parts of the way that no step crosses: a watched run is shown at their ends, and so takes the same steps as any other."""
DEPTH = 12
"""A panel is halved at most so often; time is counted in ticks of 1/2^DEPTH panel, and a step is a dyadic part of a panel."""
PANEL = 1 << DEPTH
SAFETY, EXPONENT = 0.9, 0.9


class AdaptiveSDE(Solver):
    """Improved Euler on the reverse SDE with an embedded Euler-Maruyama step, adaptive for each sample: two calls an attempt.

    In the half log-SNR lambda the reverse SDE of every process is dx = drift(x, lambda) dlambda + sqrt(2) sigma dw with
    drift = (dlog(alpha)/dlambda - 2) x + 2 alpha E[x_0|x]. A step of h in lambda with the increment w is

        x'  = x + h drift(x, lambda) + sqrt(2) sigma(lambda) w
        x~  = x + h drift(x', lambda + h) + sqrt(2) sigma(lambda + h) w,      x'' = (x' + x~)/2
        error = rms((x' - x'') / max(atol, rtol max(|x'|, |x'_last|)))

    and moves to x'' where error is at most 1; the step that follows an attempt is 0.9 h error^-0.9, rounded down to a power of
    two parts of a panel. Jolicoeur-Martineau et al. 2021, arXiv:2105.14080, algorithm 1, in lambda instead of t, and with
    one correction: there a refused step draws new noise, so that large increments become too rare and the samples' variance
    too small. Here it is halved with its increment kept (a Brownian bridge; rejection sampling with memory, Rackauckas and
    Nie 2017, doi:10.3934/dcdsb.2017133), so that each sample follows one Brownian path.

    rtol, atol: as above, in normalised units. `steps` caps the attempts of a sample; a sample that reaches the cap, needs steps
    below 2^-12 panel or turns non-finite ends as failed, and the others are not touched. `grid` places the 32 panels.
    The orders are those of the method at fixed steps.
    """

    strong_order = 1.0
    weak_order = 2.0
    stochastic = True
    adaptive = True
    default_steps = 5000

    def __init__(self, rtol: float = 0.05, atol: float = 0.02) -> None:
        self.rtol, self.atol = check_positive("rtol", rtol), check_positive("atol", atol)

    @property
    def calls(self) -> int | None:
        return None

    def solve(self, run: Run, x: Tensor, t_start: float, t_end: float, steps: int, grid: str | Tensor) -> Tensor:
        clock = _Clock(run.model.sde, self.times(run, x, t_start, t_end, PANELS, grid), x.device)
        path = _Path(x, clock)
        show = None if run.observer is None else _Show(run, clock, x)
        x, last = x.clone(), x.clone()
        want, attempts = torch.zeros_like(path.tick), torch.zeros_like(path.tick)
        lost = torch.zeros_like(path.tick, dtype=torch.bool)
        # Every sample still on its way takes part in every round, so that its k-th round has its own k-th draw in any batch.
        while (active := torch.nonzero((path.tick < PANELS * PANEL) & ~lost)[:, 0]).numel():
            clock.refine(int(want[active].max()))
            at = path.reveal(active, want, run.noise.draw())
            if not at.numel():
                continue
            here, w, h = x[at], path.w[at], path.length(at)
            euler = self._euler(run, here, here, w, h, clock.at(path.tick[at]), at)
            ahead = clock.at(path.tick[at] + path.width(at))
            improved = 0.5 * (euler + self._euler(run, here, euler, w, h, ahead, at))
            error = rms((euler - improved) / torch.maximum(euler.abs(), last[at].abs()).mul_(self.rtol).clamp_min_(self.atol)).double()
            accepted = error <= 1.0  # false for an error that is not finite: refused until the sample is given up
            moved = at[accepted]
            x[moved], last[moved] = improved[accepted], euler[accepted]
            finer = torch.ceil(EXPONENT * torch.log2(error) - math.log2(SAFETY)).nan_to_num(3.0)
            finer = torch.where(accepted, finer.clamp(-1, 0), finer.clamp(1, 3)).long()
            attempts[at] += 1
            lost[at] |= ~accepted & (path.level[at] >= DEPTH)
            want[at] = (path.level[at] + finer).clamp(0, DEPTH)
            path.accept(moved)
            lost |= (attempts >= steps) & (path.tick < PANELS * PANEL)
            if show is not None:
                show.keep(moved, path.tick, x)
                if (stopped := show.up_to(path.tick, lost)) is not None:
                    return stopped
        x[lost] = math.nan
        return x

    @staticmethod
    def _euler(run: Run, base: Tensor, x: Tensor, w: Tensor, h: Tensor, row: Tensor, at: Tensor) -> Tensor:
        """base + h drift(x) + sqrt(2) sigma w for the samples `at`, all at the times of `row`."""
        t, a, b, c = row.unbind(1)
        denoised = run.predict(x, t, at).denoised
        a, b, c = (expand_as(value.to(x), x) for value in (h * a, h * b, c))
        return base + a * x + b * denoised + c * w


class _Clock:
    """Times and coefficients at the ticks: `nodes` are the ends of the panels, the ticks between are even in lambda."""

    def __init__(self, sde: SDE, nodes: Tensor, device: torch.device) -> None:
        self.sde, self.nodes, self.device = sde, nodes, device
        self.times: list[float] = nodes.tolist()
        self.lambdas = sde.half_log_snr(nodes)
        self.lengths = self.lambdas.diff().to(device)
        self.depth = -1
        self.refine(0)

    def refine(self, depth: int) -> None:
        """Work out what depends on time alone for steps of 1/2^depth panel, if it is not yet there."""
        if depth <= self.depth:
            return
        self.depth, parts = depth, 1 << depth
        share = torch.arange(parts, dtype=torch.float64) / parts
        lambdas = torch.cat(((self.lambdas[:-1, None] + self.lambdas.diff()[:, None] * share).flatten(), self.lambdas[-1:]))
        t = self.sde.time_of(lambdas)
        t[::parts] = self.nodes
        alpha, sigma = self.sde.marginal(t)
        f, slope = self.sde.slopes(t)
        self.table = torch.stack((t, f / slope - 2, 2 * alpha, math.sqrt(2) * sigma), dim=1).to(self.device)

    def at(self, tick: Tensor) -> Tensor:
        """t and the coefficients of x, E[x_0|x] and dw at `tick` (B,): (B, 4) in float64."""
        return self.table[tick >> (DEPTH - self.depth)]


class _Path:
    """Every sample's Brownian path, revealed from left to right in the pieces that its steps ask for.

    A sample at `tick` has before it the piece of `level` (1/2^level panel) with the increment `w`, if its path is `known`
    beyond the tick. Halving a piece leaves its right half pending: behind any tick at most one of each level.
    """

    def __init__(self, x: Tensor, clock: _Clock) -> None:
        self.clock = clock
        self.w = torch.zeros_like(x)
        self.pending = torch.empty(0, *x.shape, dtype=x.dtype, device=x.device)
        self.tick = torch.zeros(x.shape[0], dtype=torch.int64, device=x.device)
        self.level, self.known = torch.zeros_like(self.tick), torch.zeros_like(self.tick)

    def width(self, at: Tensor) -> Tensor:
        """Of the pieces before the samples `at`, in ticks."""
        return PANEL >> self.level[at]

    def length(self, at: Tensor) -> Tensor:
        """The same in lambda, float64."""
        return self.clock.lengths[self.tick[at] >> DEPTH] * 0.5 ** self.level[at]

    def reveal(self, active: Tensor, want: Tensor, z: Tensor) -> Tensor:
        """Draw a piece of the level wanted, or halve one that is longer; the samples whose piece is short enough come back."""
        new = active[self.known[active] == self.tick[active]]
        self.level[new] = torch.maximum(want[new], self._aligned(self.tick[new]))
        self.w[new] = self._noise(new, z)
        self.known[new] = self.tick[new] + self.width(new)
        halved = active[self.level[active] < want[active]]
        if halved.numel():
            left = 0.5 * (self.w[halved] + self._noise(halved, z))
            self.level[halved] += 1
            depth = int(self.level[halved].max()) + 1
            if depth > len(self.pending):
                self.pending = torch.cat((self.pending, self.w.new_zeros(depth - len(self.pending), *self.w.shape)))
            self.pending[self.level[halved], halved] = self.w[halved] - left
            self.w[halved] = left
        return active[self.level[active] >= want[active]]

    def accept(self, moved: Tensor) -> None:
        """Put the pieces before the samples `moved` behind them."""
        self.tick[moved] += self.width(moved)
        inside = moved[self.known[moved] > self.tick[moved]]
        if inside.numel():
            self.level[inside] = self._aligned(self.tick[inside])
            self.w[inside] = self.pending[self.level[inside], inside]

    def _noise(self, at: Tensor, z: Tensor) -> Tensor:
        return expand_as(torch.sqrt(self.length(at)).to(z), z[at]) * z[at]

    @staticmethod
    def _aligned(tick: Tensor) -> Tensor:
        """The level of the longest dyadic piece that begins at `tick`."""
        marked = tick | PANEL
        return DEPTH - torch.log2((marked & -marked).double()).round().long()


class _Show:
    """Shows every panel's end once all samples have reached it; those that are lost are shown as NaN."""

    def __init__(self, run: Run, clock: _Clock, x: Tensor) -> None:
        self.run, self.clock, self.like = run, clock, x
        self.frames: dict[int, Tensor] = {}
        self.shown = 0

    def keep(self, moved: Tensor, tick: Tensor, x: Tensor) -> None:
        there = moved[tick[moved] % PANEL == 0]
        for panel in torch.unique(tick[there] >> DEPTH).tolist():
            frame = self.frames.setdefault(panel, torch.full_like(self.like, math.nan))
            arrived = there[tick[there] >> DEPTH == panel]
            frame[arrived] = x[arrived]

    def up_to(self, tick: Tensor, lost: Tensor) -> Tensor | None:
        """Show what is complete; the state at which the observer asks to stop, or None."""
        reached = PANELS if bool(lost.all()) else int(tick[~lost].min()) >> DEPTH
        while self.shown < reached:
            self.shown += 1
            x = self.frames.pop(self.shown, torch.full_like(self.like, math.nan))
            t = self.clock.times[self.shown]
            if self.run.observe(t, x, self.run.predict(x, t).denoised):
                return x
        return None
