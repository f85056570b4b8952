"""The probability flow by an adaptive Runge-Kutta method, every sample with its own steps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ..sdes import SDE
from ..sdes.base import check_positive
from ..shapes import expand_as
from .base import Run, Solver

# Dormand and Prince 1980, the 5(4) pair: stage times, stage weights (the last row is the fifth-order answer, so the last
# slope of a step is the first of the next) and the difference to the fourth-order answer.
C = (0.0, 1 / 5, 3 / 10, 4 / 5, 8 / 9, 1.0, 1.0)
A: tuple[tuple[float, ...], ...] = (
    (),
    (1 / 5,),
    (3 / 40, 9 / 40),
    (44 / 45, -56 / 15, 32 / 9),
    (19372 / 6561, -25360 / 2187, 64448 / 6561, -212 / 729),
    (9017 / 3168, -355 / 33, 46732 / 5247, 49 / 176, -5103 / 18656),
    (35 / 384, 0.0, 500 / 1113, 125 / 192, -2187 / 6784, 11 / 84),
)
E = (71 / 57600, 0.0, -71 / 16695, 71 / 1920, -17253 / 339200, 22 / 525, -1 / 40)
# The pair's continuous extension of order four (Hairer, Norsett and Wanner 1993, II.6): weights of the stages at a share u of the step are
# these numbers times u, u^2, u^3, u^4.
P = (
    (1.0, -8048581381 / 2820520608, 8663915743 / 2820520608, -12715105075 / 11282082432),
    (0.0, 0.0, 0.0, 0.0),
    (0.0, 131558114200 / 32700410799, -68118460800 / 10900136933, 87487479700 / 32700410799),
    (0.0, -1754552775 / 470086768, 14199869525 / 1410260304, -10690763975 / 1880347072),
    (0.0, 127303824393 / 49829197408, -318862633887 / 49829197408, 701980252875 / 199316789632),
    (0.0, -282668133 / 205662961, 2019193451 / 616988883, -1453857185 / 822651844),
    (0.0, 40617522 / 29380423, -110615467 / 29380423, 69997945 / 29380423),
)

SAFETY, SHRINK, GROW = 0.9, 0.2, 5.0
SMALLEST_STEP = 1e-10
WATCHED = 40
"""Times at which a watched run is shown."""


class Angle:
    """The flow seen in the angle theta = atan(sigma/(alpha s)), the same smooth curve for every SDE.

        y = x / sqrt(alpha^2 s^2 + sigma^2),   dy/dtheta = (cos(theta) y - E[x_0|x]/s) / sin(theta)

    y has unit variance at every time for data of standard deviation s, and is constant for such Gaussian data, so that
    one tolerance means the same everywhere and steps are spent on structure alone.
    """

    def __init__(self, sde: SDE, data_std: float) -> None:
        self.sde, self.data_std = sde, data_std

    def angle(self, t: float) -> float:
        """theta(t)."""
        return math.atan(math.exp(-float(self.sde.half_log_snr(t))) / self.data_std)

    def time(self, theta: Tensor) -> Tensor:
        """t(theta), shape of `theta`."""
        return self.sde.time_of(-torch.log(self.data_std * torch.tan(theta)))

    def radius(self, t: Tensor) -> Tensor:
        """sqrt(alpha^2 s^2 + sigma^2) at `t`; shape of `t`."""
        alpha, sigma = self.sde.marginal(t)
        return torch.sqrt((alpha * self.data_std) ** 2 + sigma**2)


class ProbabilityFlow(Solver):
    """The probability flow dx = [f x - g^2/2 score] dt by Dormand and Prince's 5(4) pair, adaptive for each sample.

    rtol, atol: a step is accepted where the root mean square over the sample's elements of error/(atol + rtol |y|) is at
    most 1, in units in which the marginals have unit variance (see `Angle`). `steps` caps the attempted steps of a sample;
    a sample that reaches the cap, or turns non-finite, ends as failed and the others are not touched. Runs in both
    directions. Song et al. 2021, arXiv:2011.13456, section 4.3; Dormand and Prince 1980.
    """

    order = 5
    adaptive = True
    default_steps = 1000

    def __init__(self, rtol: float = 1e-4, atol: float = 1e-4) -> None:
        self.rtol, self.atol = check_positive("rtol", rtol), check_positive("atol", atol)

    @property
    def calls(self) -> int | None:
        return None

    def solve(self, run: Run, x: Tensor, t_start: float, t_end: float, steps: int, grid: str | Tensor) -> Tensor:
        path, state = self._start(run, x, t_start, t_end)
        # A watched run stops at the grid's times so that every sample is shown at the same time.
        stops = [t_end] if run.observer is None else self.times(run, x, t_start, t_end, WATCHED, grid)[1:].tolist()
        for stop in stops:
            self._advance(run, path, state, path.angle(stop), steps)
            shown = state.y * path.radius(torch.tensor(stop, dtype=torch.float64)).to(x)
            if run.observer is not None and run.observer(stop, shown, run.predict(shown, stop).denoised):
                break
        return shown

    def along(self, run: Run, x: Tensor, t_start: float, times: Tensor, steps: int) -> Tensor:
        """The states at each of `times` (K,), which lead away from t_start: (K, *x.shape), NaN for a sample that did not get there.

        Within a step they come from the pair's continuous extension, so that they cost no network call; the last is the end of the run.
        """
        ends = times.tolist()
        path, state = self._start(run, x, t_start, ends[-1])
        places = torch.tensor([path.angle(t) for t in ends], dtype=torch.float64, device=x.device)
        state.seen = _Places(places, x.new_full((len(ends), *x.shape), math.nan))
        state.seen.states[places == path.angle(t_start)] = state.y
        self._advance(run, path, state, path.angle(ends[-1]), steps)
        return state.seen.states * expand_as(path.radius(times).to(x), state.seen.states)

    def _start(self, run: Run, x: Tensor, t_start: float, t_end: float) -> tuple[Angle, _State]:
        path = Angle(run.model.sde, run.model.data_std or 1.0)
        first = path.angle(t_start)
        y = x / path.radius(torch.tensor(t_start, dtype=torch.float64)).to(x)
        state = _State(
            y=y,
            theta=torch.full((x.shape[0],), first, dtype=torch.float64, device=x.device),
            slope=_slope(run, path, y, torch.full((x.shape[0],), first, dtype=torch.float64, device=x.device), None),
            attempts=torch.zeros(x.shape[0], dtype=torch.int64, device=x.device),
        )
        state.h = self._first_step(run, path, state, path.angle(t_end))
        return path, state

    def _first_step(self, run: Run, path: Angle, state: _State, last: float) -> Tensor:
        # Hairer, Norsett and Wanner 1993, II.4: a step for which an Euler step's change of slope is a small share of tol.
        span = last - float(state.theta[0])
        scale = self.atol + self.rtol * state.y.abs()
        size, speed = rms(state.y / scale), rms(state.slope / scale)
        guess = (0.01 * size / speed.clamp_min(1e-12)).clamp_max(abs(span)).nan_to_num(abs(span)).double()
        moved = state.theta + math.copysign(1.0, span) * guess
        probe = state.y + expand_as((moved - state.theta).to(state.y), state.y) * state.slope
        bend = rms((_slope(run, path, probe, moved, None) - state.slope) / scale) / guess
        step = (0.01 / torch.maximum(speed, bend).clamp_min(1e-12)) ** 0.2
        # Never 0, as a probe that overflowed would give: such a step is accepted for ever and leads nowhere.
        return torch.minimum(100 * guess, step.double()).clamp(1e-6 * abs(span), abs(span)).nan_to_num(abs(span))

    def _advance(self, run: Run, path: Angle, state: _State, last: float, steps: int) -> None:
        """Take every sample to the angle `last`; one that cannot get there is left as NaN."""
        sign = math.copysign(1.0, last - float(state.theta[0].nan_to_num(0.0)))
        check_every = 1 if state.y.device.type == "cpu" else 4  # the host is asked rarely where asking waits for the device
        lost = ~torch.isfinite(state.slope).flatten(1).all(1)
        active = torch.nonzero((state.theta != last) & ~lost)[:, 0]
        attempt = 0
        while active.numel():
            theta, y, slope = state.theta[active], state.y[active], state.slope[active]
            remaining = (last - theta) * sign
            h = torch.minimum(state.h[active], remaining.clamp_min(0.0))
            signed = expand_as((sign * h).to(y), y)
            stages = [slope]
            for c, weights in zip(C[1:], A[1:], strict=True):
                proposal = y + signed * _combine(stages, weights)
                stages.append(_slope(run, path, proposal, theta + sign * h * c, active))
            error = signed * _combine(stages, E)
            ratio = rms(error / (self.atol + self.rtol * torch.maximum(y.abs(), proposal.abs()))).double()
            # A ratio that is not finite compares false: such a step is refused and shrunk, until the sample is given up.
            accepted = ratio <= 1.0
            arrived = accepted & (h >= remaining)
            if state.seen is not None:
                state.seen.keep(active[accepted], y[accepted], (theta, sign * h), [stage[accepted] for stage in stages], accepted)
            state.y[active] = torch.where(expand_as(accepted, y), proposal, y)
            state.slope[active] = torch.where(expand_as(accepted, y), stages[-1], slope)
            state.theta[active] = torch.where(arrived, last, torch.where(accepted, theta + sign * h, theta))
            factor = (SAFETY * ratio.clamp_min(1e-10) ** -0.2).clamp(SHRINK, GROW).nan_to_num(SHRINK)
            # A step cut short by the end says nothing about the next one.
            state.h[active] = torch.where(arrived, state.h[active], h * factor)
            state.attempts[active] += (remaining > 0).long()  # the others have arrived and wait to be put aside
            lost[active] |= ~accepted & (h < SMALLEST_STEP) | ~arrived & (state.attempts[active] >= steps)
            attempt += 1
            if attempt % check_every == 0:
                active = active[((state.theta != last) & ~lost)[active]]
        state.y[lost] = state.slope[lost] = math.nan  # so that a watched run does not try them again
        state.theta[lost] = last


@dataclass
class _State:
    y: Tensor
    theta: Tensor
    slope: Tensor
    attempts: Tensor
    h: Tensor = field(default_factory=lambda: torch.empty(0))
    seen: _Places | None = None


@dataclass
class _Places:
    """States y (K, B, *) at the angles `places` (K,), filled in by each accepted step that covers some of them."""

    places: Tensor
    states: Tensor

    def keep(self, rows: Tensor, y: Tensor, step: tuple[Tensor, Tensor], stages: list[Tensor], accepted: Tensor) -> None:
        """Where the steps (theta, h) of the samples `rows` lead on their way; y and the stages are at their starts."""
        theta, h = (value[accepted] for value in step)
        share = (self.places - theta[:, None]) / h[:, None]
        who, place = torch.nonzero((share > 0) & (share <= 1), as_tuple=True)
        if not len(who):
            return
        powers = share[who, place, None] ** torch.arange(1, 5, device=share.device)
        weights = (powers @ torch.tensor(P, dtype=torch.float64, device=share.device).T * h[who, None]).to(y)
        found = y[who]
        for stage, weight in zip(stages, weights.unbind(1), strict=True):
            found = found + expand_as(weight, found) * stage[who]
        self.states[place, rows[who]] = found


def rms(x: Tensor) -> Tensor:
    """Root mean square over each sample's own elements: (B, *) gives (B,)."""
    return x.flatten(1).square().mean(1).sqrt()


def _combine(stages: list[Tensor], weights: tuple[float, ...]) -> Tensor:
    total = stages[0] * weights[0]
    for stage, weight in zip(stages[1:], weights[1:], strict=True):
        if weight:
            total.add_(stage, alpha=weight)
    return total


def _slope(run: Run, path: Angle, y: Tensor, theta: Tensor, active: Tensor | None) -> Tensor:
    """dy/dtheta for the samples `active` (None: all), whose network calls are counted."""
    t = path.time(theta)
    denoised = run.predict(y * expand_as(path.radius(t).to(y), y), t, active).denoised
    cosine, sine = (expand_as(value.to(y), y) for value in (torch.cos(theta), torch.sin(theta)))
    return (cosine * y - denoised / path.data_std) / sine
