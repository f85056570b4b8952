"""Problems whose exact flow is known: mixtures of Gaussians from noise to data, and trained networks with their converged flow."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

import sde_gen
from sde_gen import VESDE, ScoreModel
from sde_gen.commands.config import resolve
from sde_gen.commands.runs import open_run
from sde_gen.exact.mixtures import MixtureData

SAMPLES = 256
COMPONENTS, COMPONENT_STDS = 8, (0.05, 0.35)
SIGMA_MIN, SIGMA_MAX, OUR_SIGMA_MIN = 0.002, 80.0, 0.0002
PEER_SIGMA_MINS = (0.002, 0.01, 0.02, 0.05)
SMALL, STATES, STATES_LARGE = 256, 32, 4
"""A network's starting states: the first number where a sample has at most SMALL elements, else the second."""
CONVERGED, CONVERGED_NETWORK, CONVERGED_LARGE = 1e-8, 1e-6, 1e-5
TIGHT, TIGHT_NETWORK = 1e-9, 1e-7
"""Tolerances of `ode` where it is the reference."""


class Levels:
    """alpha = 1 and sigma as its own time: lets `MixtureData` be asked by noise level."""

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        return torch.ones_like(t), t


@dataclass
class Problem:
    """Starting states x at sigma_max (alpha = 1) with their exact answers; `denoiser(x, sigma)` as peers call it.

    model: a fresh model of ours at each call; start: x in the model's own scale at its t_max.
    """

    family: str
    name: str
    x: Tensor
    reference: Tensor
    denoiser: Callable[[Tensor, float], Tensor]
    model: Callable[[], ScoreModel]
    start: Tensor
    sigma_max: float
    sigma_mins: tuple[float, ...]
    final: str = "state"


def mixture(dim: int, seed: int) -> MixtureData:
    """A `MixtureData`: unequal weights, means of unit variance, each mode's own axes with log-uniform stds in COMPONENT_STDS."""
    options: dict[str, Any] = {"dtype": torch.float64, "generator": torch.Generator().manual_seed(1000 * dim + seed)}
    weights = torch.softmax(0.5 * torch.randn(COMPONENTS, **options), dim=0)
    means = torch.randn(COMPONENTS, dim, **options)
    low, high = COMPONENT_STDS
    stds = low * (high / low) ** torch.rand(COMPONENTS, dim, **options)
    axes = torch.linalg.qr(torch.randn(COMPONENTS, dim, dim, **options))[0]
    return MixtureData(weights, means, torch.einsum("kij,kj,klj->kil", axes, stds**2, axes))


def flow(denoiser: Callable[[Tensor, float], Tensor], x: Tensor, first: float, last: float, steps: int) -> Tensor:
    """dx/dlog(sigma) = x - E[x_0 | x] by the classical Runge-Kutta method, from sigma = first to last."""

    def slope(place: float, y: Tensor) -> Tensor:
        return y - denoiser(y, math.exp(place))

    h = math.log(last / first) / steps
    for k in range(steps):
        place = math.log(first) + k * h
        a = slope(place, x)
        b = slope(place + h / 2, x + h / 2 * a)
        c = slope(place + h / 2, x + h / 2 * b)
        x = x + h / 6 * (a + 2 * b + 2 * c + slope(place + h, x + h * c))
    return x


def converged(solve: Callable[[int], Tensor], steps: int, tolerance: float) -> Tensor:
    """A fourth-order answer, steps doubled and extrapolated until the last doubling moves no sample by more than `tolerance`."""
    coarse = solve(steps)
    for _ in range(6):
        steps *= 2
        fine = solve(steps)
        moved = (fine - coarse) / 15
        if float(errors(moved, torch.zeros_like(moved)).max()) < tolerance:
            return fine + moved
        coarse = fine
    raise RuntimeError(f"no reference within {tolerance:g} by {steps} steps")


def by_ode(model: ScoreModel, start: Tensor, final: str, tolerance: float) -> Tensor:
    """Where `ode` takes `start` at this tolerance: the reference where that by `converged` is too dear."""
    options: dict[str, Any] = {"rtol": tolerance, "atol": tolerance, "steps": 100_000, "progress": False}
    return sde_gen.sample(model, tuple(start.shape), "ode", x_init=start, final=final, **options).x


def mixture_problem(dim: int, seed: int, samples: int = SAMPLES, ode: bool = False) -> Problem:
    """The mixture of this number; ode: whether the reference is that of `ode`."""
    data, levels = mixture(dim, seed), Levels()

    def denoiser(x: Tensor, sigma: float) -> Tensor:
        return data.denoise_at(x, levels, sigma)

    generator = torch.Generator().manual_seed(90_000 + seed)
    x = SIGMA_MAX * torch.randn(samples, dim, dtype=torch.float64, generator=generator)
    last = 1e-4  # from here to 0, half way between state and denoised state is right to the fourth power of sigma/std

    def solve(steps: int) -> Tensor:
        end = flow(denoiser, x, SIGMA_MAX, last, steps)
        return (end + denoiser(end, last)) / 2

    def model() -> ScoreModel:
        return data.model(VESDE(sigma_min=OUR_SIGMA_MIN, sigma_max=SIGMA_MAX))

    if ode:
        end = by_ode(model(), x, "state", TIGHT)
        reference = (end + denoiser(end, OUR_SIGMA_MIN)) / 2
    else:
        reference = converged(solve, 400, CONVERGED)
    return Problem(f"{dim}-D", f"{dim}-D, seed {seed}", x, reference, denoiser, model, x, SIGMA_MAX, PEER_SIGMA_MINS)


def errors(x: Tensor, reference: Tensor) -> Tensor:
    """The root mean square over each sample's elements, (N,)."""
    return (x - reference).flatten(1).square().mean(1).sqrt()


def network_problem(run: Path | None, ode: bool = False) -> Problem:
    """The trained network of the directory `run` (None: of a usual digits run, trained now or reused), cast to float64.

    ode: as for a mixture. Its flow is defined down to its own t_min; the answer is the denoised state there, for the reference and for
    everyone.
    """
    trained = open_run(resolve({"data": {"name": "digits"}})).model if run is None else sde_gen.load(run / "checkpoint")
    trained, sde = trained.double(), trained.sde
    family, shape = family_of(run), tuple(trained.moments.mean.shape)
    large = math.prod(shape) > SMALL

    def model() -> ScoreModel:  # in normalised units throughout
        return ScoreModel(trained.network, sde, **trained.settings(), moments=trained.moments)

    def alpha(t: float) -> float:
        return float(sde.marginal(torch.tensor(t, dtype=torch.float64))[0])

    asked = model()

    @torch.no_grad()
    def denoiser(x: Tensor, sigma: float) -> Tensor:
        t = min(max(float(sde.time_of(-math.log(sigma))), sde.t_min), sde.t_max)
        return asked.predict(x * alpha(t), t).denoised

    first, last = (math.exp(-float(sde.half_log_snr(t))) for t in (sde.t_max, sde.t_min))
    generator = torch.Generator().manual_seed(90_000)
    count = STATES_LARGE if large else STATES
    start = trained.prior.from_noise(torch.randn(count, *shape, dtype=torch.float64, generator=generator))
    x = start / alpha(sde.t_max)

    def solve(steps: int) -> Tensor:
        return denoiser(flow(denoiser, x, first, last, steps), last)

    mins = tuple(sorted({max(level, last) for level in PEER_SIGMA_MINS}))
    if ode:
        reference = by_ode(model(), start, "denoise", TIGHT_NETWORK)
    else:
        reference = converged(solve, 100, CONVERGED_LARGE if large else CONVERGED_NETWORK)
    return Problem(family, family, x, reference, denoiser, model, start, first, mins, "denoise")


def family_of(run: Path | None) -> str:
    """The name of the data of the run in this directory, of a usual run where it is None."""
    return "digits" if run is None else str(yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))["data"]["name"])
