"""Samples of data given a measurement, by any of the methods."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..models.denoiser import Denoiser
from ..randomness import check_seed
from ..registry import Registry, build
from ..solvers import Solver
from .conditioned import Conditioned
from .daps import DAPS
from .ddnm import DDNM
from .ddrm import DDRM
from .diffpir import DiffPIR
from .dps import DPS
from .exact_flow import ExactFlow
from .gibbs import Gibbs
from .measurement import Measurement
from .mmps import MMPS
from .operators import Mask
from .oracle import Oracle
from .pigdm import PiGDM
from .projection import Projection
from .repaint import RePaint
from .request import Posterior, Request
from .solve import conjugate_gradients, iterations_needed
from .tmpd import TMPD
from .twisted import Twisted

METHODS: Registry[type[Conditioned]] = Registry(
    {
        "twisted": Twisted,
        "gibbs": Gibbs,
        "exact_flow": ExactFlow,
        "mmps": MMPS,
        "tmpd": TMPD,
        "pigdm": PiGDM,
        "dps": DPS,
        "diffpir": DiffPIR,
        "daps": DAPS,
        "ddrm": DDRM,
        "ddnm": DDNM,
        "repaint": RePaint,
        "projection": Projection,
        "oracle": Oracle,
    },
    aliases={"tds": "twisted", "pgdm": "pigdm"},
)
"""Methods of inverse problems by name, each a class of (model, measurement, options of its own)."""

FAR = 10.0
"""Standard deviations between y and what the operator gives of the model's data from which on a warning is given."""


@torch.no_grad()
def posterior(
    model: Denoiser,
    measurement: Measurement,
    y: Tensor | np.ndarray,
    count: int = 1,
    method: str = "twisted",
    solver: str | Solver = "dpm_sde",
    steps: int | None = 100,
    particles: int | None = None,
    seed: int = 0,
    cond: Mapping[str, Any] | None = None,
    shape: Sequence[int] | None = None,
    batch_size: int | None = None,
    index_offset: int = 0,
    dtype: torch.dtype | None = None,
    progress: bool = True,
    grid: str | Tensor | None = None,
    **options: Any,
) -> Posterior:
    """`count` samples of p(x | y), y = A(x) + noise, for each of B measurements.

    measurement: operator and noise, in the data's units.
    y: (B, *measured shape), each sample its own measurement; NaN are gaps.
    method: a name in METHODS, with its `options`. "twisted", the default, is exact as particles grow.
    solver, steps, grid: as `sample` takes them. Twisted particles take solvers of the reverse SDE. "dpm_sde" is of weak order 2, where
        "ancestral" leaves variances a tenth too small at 100 steps.
    particles: the size of a group of "twisted"; None: count. More of them make better weights; fewer make several groups.
    seed, index_offset: the samples of measurement i are a function of (seed, index_offset + i) alone.
    cond: the model's own conditions, B rows each: a class, say.
    shape: of one sample of the data, where neither operator nor moments tell it.
    batch_size: states that run together; None: all.
    dtype: of the states, see `sample`.

    The prior is the model's law, a guided one's included. Without noise (std 0) on a linear operator the samples are moved onto y at the
    end: what a mask measures is then y to the bit.

    Raises ValueError or TypeError for bad arguments, in one line; warns where y lies far from what the operator gives of the model's data.
    """
    if not isinstance(model, Denoiser):
        raise TypeError(f"model must be a Denoiser such as ScoreModel (sde_gen.load reads one from a path), got {type(model).__name__}")
    wrapper = build(METHODS, "method", method, {"model": model, "measurement": measurement} | options)
    if not isinstance(y, Tensor | np.ndarray) or len(y.shape) < 2 or not len(y):
        kind = tuple(y.shape) if isinstance(y, Tensor | np.ndarray) else type(y).__name__
        raise ValueError(f"y must be a tensor (B, *measured shape) with at least one measurement, got {kind}")
    for label, number, least in (("count", count, 1), ("index_offset", index_offset, 0), ("particles", particles, 1)):
        if number is not None and (isinstance(number, bool) or not isinstance(number, int) or number < least):
            raise ValueError(f"{label} must be a whole number of at least {least}, got {number!r}")
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    y = torch.as_tensor(y)
    y = y.to(y.device if parameter is None else parameter.device)
    if not y.is_floating_point():
        raise TypeError(f"y must be floating, got {y.dtype}")
    if bool(torch.isinf(y).any()) or bool(torch.isnan(y).flatten(1).all(1).any()):
        raise ValueError("y must be finite, or NaN where nothing was measured, with at least one entry of each measurement that is")
    sample_shape = _shape(model, measurement, y, shape)
    wide = (
        torch.float64 if dtype is None and (parameter is None or parameter.dtype == torch.float64) and y.dtype == torch.float64 else dtype
    )
    _check(wrapper, model, y, sample_shape, wide)
    settings = {"seed": check_seed(seed), "batch_size": batch_size, "dtype": wide, "progress": progress, "grid": grid}
    given = model.conditions(cond, len(y), y.device)
    request = Request(y, given, count, sample_shape, solver, steps, particles, index_offset, {**settings, "device": y.device})
    found = wrapper.draw(request)
    if measurement.noise.absent and measurement.operator.linear:
        found = imposed(found, measurement, y)
    return found


def imposed(found: Posterior, measurement: Measurement, y: Tensor) -> Posterior:
    """The samples moved onto a noise-free measurement, as little as is possible: x + A^T (A A^T)^-1 (y - A x)."""
    count = found.x.shape[1]
    x = found.x.flatten(0, 1)
    shape, operator = x.shape[1:], measurement.operator
    rows = y.repeat_interleave(count, 0)
    seen = measurement.seen(rows, shape)
    if isinstance(operator, Mask):
        return replace(found, x=torch.where(seen, rows.to(x.dtype), x).reshape(found.x.shape))
    wide = x.double()

    def product(u: Tensor) -> Tensor:
        return torch.where(seen, operator(operator.adjoint(torch.where(seen, u, 0), shape)), 0)

    rest = torch.where(seen, rows.double() - operator(wide), 0)
    u = conjugate_gradients(product, rest, iterations_needed(product, rest, rest[0].numel(), 1e-10), 1e-10)
    return replace(found, x=(wide + operator.adjoint(u, shape)).to(x.dtype).reshape(found.x.shape))


def _shape(model: Denoiser, measurement: Measurement, y: Tensor, given: Sequence[int] | None) -> tuple[int, ...]:
    """The data's sample shape, from the caller, the operator or the model's moments."""
    if given is not None:
        return tuple(int(n) for n in given)
    found = measurement.operator.data_shape(tuple(y.shape[1:]))
    if found is None and model.moments is not None and model.moments.mean.ndim:
        found = tuple(model.moments.mean.shape)
    if found is None:
        raise ValueError(f"{type(measurement.operator).__name__} does not tell the data's shape, nor do the model's moments: give shape=")
    return found


def _check(wrapper: Conditioned, model: Denoiser, y: Tensor, shape: tuple[int, ...], dtype: torch.dtype | None) -> None:
    """That operator, noise and y fit one another, on draws of the Gaussian with the model's moments."""
    measurement, operator = wrapper.measurement, wrapper.measurement.operator
    name = type(operator).__name__
    z = torch.randn(64, *shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    if model.moments is not None:
        moments = model.moments
        if moments.mean.ndim and tuple(moments.mean.shape) != shape:
            raise ValueError(f"the model's data have shape {tuple(moments.mean.shape)}, and the measurement is of data of shape {shape}")
        mean, variances, vectors = moments.axes(shape)
        flat = z.flatten(1) * variances.cpu().sqrt()
        z = (mean.cpu() + (flat if vectors is None else flat @ vectors.cpu().T)).reshape(z.shape)
    z = z.to(y.device, torch.float64 if dtype == torch.float64 else torch.float32)
    with torch.enable_grad():
        x = (z if model.normalizer is None else model.normalizer.decode(z)).detach().requires_grad_()
        clean = measurement.clean(x)
        if clean.shape[1:] != y.shape[1:]:
            raise ValueError(
                f"y must have shape (B, {', '.join(map(str, clean.shape[1:]))}), as {name} gives of data {shape}, got {tuple(y.shape)}"
            )
        if not bool(torch.isfinite(clean).all()):
            raise ValueError(f"the operator {name} gives values that are not finite on data like the model's")
        if wrapper.gradient or not operator.linear:
            slope = torch.autograd.grad(clean.sum(), x, allow_unused=True)[0] if clean.requires_grad else None
            if slope is None or not bool(torch.isfinite(slope).all()):
                raise ValueError(f"the operator {name} is not differentiable (no finite gradient with respect to the data)")
    if operator.linear:
        if not bool(clean.any()):
            raise ValueError(f"the operator {name} gives 0 of all data: nothing is measured")
        with torch.no_grad():
            pair = operator(x[:1] + x[1:2]) - clean[:1] - clean[1:2]
        if not float(pair.abs().max()) <= 1e-3 * float(clean.abs().max()):
            raise ValueError(
                f"{name} was said to be linear and is not: A(a + b) differs from A(a) + A(b) (linear=False takes such functions)"
            )
    if model.moments is None:
        return
    clean = clean.detach().double()
    seen = measurement.seen(y, shape)
    noise = measurement.noise.variance(torch.where(seen, y, 0)).double()
    off = (torch.where(seen, y, 0).double() - clean.mean(0)) / torch.sqrt(clean.var(0) + noise).clamp_min(1e-12)
    worst = float(torch.where(seen, off, 0).square().flatten(1).sum(1).div(seen.flatten(1).sum(1)).max().sqrt())
    if worst > FAR:
        warnings.warn(
            f"y lies {worst:.3g} standard deviations from what {name} gives of the model's data: are both in the data's own units?",
            stacklevel=3,
        )
