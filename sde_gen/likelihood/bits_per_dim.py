"""Bits per dimension of discrete data: dequantisation, its bounds, and one number with its error bar."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from ..data.integers import check_levels, short
from ..models.denoiser import Denoiser, counted, is_affine, only_valid
from ..randomness import NoiseStream, check_seed
from ..unknown_numbers import shown_number
from .flow import log_likelihood, log_likelihood_together

DEQUANTISATIONS = ("uniform", "truncated_normal")
CUT = 3.0
"""Standard deviations at which the truncated normal ends, half a bin from its centre."""
_OTHER_SEED = 1 << 61
"""So that dequantisation and the divergence's random vectors, both functions of one seed, have nothing to do with each other."""

LogProb = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class BitsPerDim:
    """What `bits_per_dim` returns; `print` shows it in one line.

    value: mean over images, bits/dim, an upper bound in expectation on the negative log-likelihood of the discrete data; std_error:
    of it as an estimate for the population that the images are drawn from, all sources together; trace, dequantisation,
    test_set: the parts of it (NaN where one draw or probe cannot tell); solver: the mean over images of what the integrator's steps
    may have changed; each: (B,) the images' own, NaN where not converged; each_error, each_solver: (B,) standard error of each (of the
    trace and, with several draws, of the dequantisation) and what its steps may have changed; nfe: mean evaluations for an image and
    draw; converged: the fraction of log-likelihoods that were used.
    """

    value: float
    std_error: float
    trace: float
    dequantisation: float
    test_set: float
    solver: float
    each: Tensor
    nfe: float
    converged: float
    bound: str
    each_error: Tensor = field(default_factory=lambda: torch.empty(0))
    each_solver: Tensor = field(default_factory=lambda: torch.empty(0))

    def __str__(self) -> str:
        parts = f"trace {short(self.trace)}, dequantisation {short(self.dequantisation)}, test set {short(self.test_set)}"
        lost = "" if self.converged == 1.0 else f"; {1 - self.converged:.1%} did not converge and are left out"
        return f"{self.value:.3f} +- {shown_number(self.std_error, '.3f')} bits/dim ({parts}; solver {short(self.solver)}{lost})"


def bits_per_dim(
    model: Denoiser | LogProb,
    images: Tensor,
    levels: int | None = None,
    dequantization: str = "uniform",
    draws: int = 1,
    importance: bool = False,
    scale: float = 1.0,
    shift: float = 0.0,
    seed: int = 0,
    together: bool = False,
    index_offset: int = 0,
    **options: Any,
) -> BitsPerDim:
    """Bits per dimension of discrete data, images (B, *) of integers 0 .. levels - 1.

        -log2 P(v) <= -E_q[log2 p(u) - log2 q(u | v)]/D,    p the model's density, q on the bin |u - x| <= scale/2, x = shift + scale v

    p is the density that `log_likelihood` gives, of the model's data blurred by the noise at the time asked: it is a density in
    its own right, so that the inequality (Jensen's, over the draws of u) is one for the discrete distribution int_bin p.

    model: a Denoiser, or a function that gives log p(u) in nats for u (B, *) in the data's units (float64).
    levels: of the data (None: 256, for uint8). scale, shift: the data's units, in which value v stands for the bin of this width
        around shift + scale v (1 and 0: the values themselves, as the package's data sets are).
    dequantization: "uniform", u even in the bin; "truncated_normal", u = x + normal noise cut at half a bin, 3 of its standard
        deviations, and p the density at the time whose noise it is, so that the network sees what it was trained on (Zheng et al.
        2023, arXiv:2305.03935, section 4.2), for a Denoiser alone.
    draws: of u for each image; importance: -log2 of the mean of p/q over the draws, a tighter bound (Burda et al. 2016,
        arXiv:1509.00519) that needs an exact divergence: with an estimated one it is too small by about half the variance.
    together: whether all processes of a torchrun call this and share the images out (see `log_likelihood_together`).
    index_offset: image i's random numbers are a function of (seed, index_offset + i), for images that are measured part by part.
    options: for `log_likelihood`.

    Of a model with a mask (`Denoiser.valid`) the dimensions are the valid entries, each image's own.
    Raises TypeError for data that is not of integers (their density is in nats: `log_likelihood`), ValueError for values out of
    range. Uria et al. 2013, arXiv:1306.0186; Ho et al. 2019, arXiv:1902.00275; Song et al. 2021, arXiv:2011.13456, section 4.3.
    """
    levels = _check(images, levels, dequantization, draws, scale)
    check_seed(seed)
    if importance and draws < 2:
        raise ValueError(f"importance weighting needs draws of at least 2, got {draws}")
    count, dim = len(images), images[0].numel()
    centre = shift + scale * images.double()
    if isinstance(model, Denoiser):
        t, share = model.sde.t_min, math.inf
        if dequantization == "truncated_normal":
            t, share = matching_time(model, images.shape[1:], scale)
        options = {"t": t} | options
    elif dequantization == "truncated_normal" or options:
        raise ValueError("a function as the model takes uniform dequantisation and no options: the rest is for a Denoiser")
    density = log_likelihood_together if together else log_likelihood
    valid = None
    if isinstance(model, Denoiser):
        valid = model.valid(model.conditions(options.get("cond"), count, images.device))
    if valid is not None and importance:
        raise ValueError("importance weighting is for data without a mask, and the model's has one")
    dims = torch.full((count,), dim) if valid is None else counted(valid, images.shape)
    noise = NoiseStream(seed ^ _OTHER_SEED, index_offset, count, images.shape[1:], torch.float64, torch.device("cpu"))
    weights, variances, solver, calls, good = [], [], [], [], []
    for draw in range(draws):
        unit = 0.5 * torch.erfc(-noise.draw() / math.sqrt(2)).to(images.device)  # uniform on (0, 1), a function of the seed and image
        if dequantization == "uniform":
            u = centre + scale * (unit - 0.5)
            log_q = -dims.to(u) * math.log(scale)
        else:
            edge = math.erf(share / math.sqrt(2))
            z = math.sqrt(2) * torch.erfinv(edge * (2 * unit - 1))
            sigma = 0.5 * scale / share
            u = centre + sigma * z
            constant = -dims.to(u) * (0.5 * math.log(2 * math.pi) + math.log(sigma) + math.log(edge))
            log_q = constant - 0.5 * only_valid(z, valid).square().flatten(1).sum(1)
        if isinstance(model, Denoiser):
            found = density(model, u, seed=seed, index_offset=index_offset * draws + draw * count, **options)
            log_p, ok = found.log_prob, found.converged
            variances.append(found.std_error**2)
            solver.append(found.solver_error)
            calls.append(found.nfe.double())
        else:
            log_p = model(u)
            if not isinstance(log_p, Tensor) or log_p.shape != (count,):
                raise ValueError(f"the function must give one log-density for each of the {count} images")
            log_p, ok = log_p.double(), torch.isfinite(log_p)
            for column in (variances, solver, calls):
                column.append(torch.zeros(count))
        weights.append(log_p.double().cpu() - log_q.cpu())  # the model need not be where the images are
        good.append(ok)

    def stacked(column: list[Tensor]) -> Tensor:
        return torch.stack(column).cpu()

    if valid is not None:  # each image's nats over its own valid entries
        ratio = (dim / dims).double().cpu()
        weights, solver = ([value.cpu() * ratio for value in column] for column in (weights, solver))
        variances = [value.cpu() * ratio**2 for value in variances]
    return _collect(stacked(weights), stacked(variances), stacked(solver), stacked(calls), stacked(good), dim, importance)


def _collect(weights: Tensor, variances: Tensor, solver: Tensor, calls: Tensor, good: Tensor, dim: int, importance: bool) -> BitsPerDim:
    draws = len(weights)
    used = good.all(0)
    if not bool(used.any()):
        raise ValueError("no log-likelihood converged")
    weights, variances, solver = (value[:, used].double() for value in (weights, variances, solver))
    count, unit = weights.shape[1], 1 / (dim * math.log(2))
    shares = torch.softmax(weights, 0) if importance else torch.full_like(weights, 1 / draws)
    each = -unit * (torch.logsumexp(weights, 0) - math.log(draws) if importance else weights.mean(0))
    everyone = torch.full((len(used),), math.nan, dtype=torch.float64)
    trace = unit * math.sqrt(float((shares**2 * variances).sum())) / count
    if draws == 1:
        of_draws = math.nan
    else:
        ratios = draws * shares if importance else weights
        noise = ratios.var(0) / draws
        # What the trace adds to the spread of the draws is counted once.
        of_draws = unit * math.sqrt(max(0.0, float((noise - (shares**2 * variances.nan_to_num(0.0)).sum(0)).sum()))) / count
    total = float(each.std()) / math.sqrt(count) if count > 1 else math.nan
    spread = weights.var(0) / draws if draws > 1 and not importance else (shares**2 * variances).sum(0)
    parts = sum(0.0 if math.isnan(part) else part**2 for part in (trace, of_draws))
    return BitsPerDim(
        value=float(each.mean()),
        std_error=total,
        trace=trace,
        dequantisation=of_draws,
        test_set=math.sqrt(max(0.0, total**2 - parts)) if count > 1 else math.nan,
        solver=unit * float((shares * solver).sum(0).mean()),
        each=everyone.masked_scatter(used, each),
        nfe=float(calls.mean()),
        converged=float(good.double().mean()),
        bound="importance-weighted" if importance else "variational",
        each_error=everyone.masked_scatter(used, unit * spread.sqrt()),
        each_solver=everyone.masked_scatter(used, unit * (shares * solver).sum(0)),
    )


def _check(images: Tensor, levels: int | None, dequantization: str, draws: int, scale: float) -> int:
    if not isinstance(images, Tensor):
        raise TypeError(f"images must be a tensor of integers, got {type(images).__name__}")
    if images.is_floating_point() or images.is_complex() or images.dtype == torch.bool:
        raise TypeError(
            f"bits per dimension are for integer data, got {images.dtype}; the density of continuous data is in nats: log_likelihood"
        )
    levels = check_levels(images, levels)
    if dequantization not in DEQUANTISATIONS:
        raise ValueError(f"unknown dequantization {dequantization!r}; choose from {', '.join(DEQUANTISATIONS)}")
    if isinstance(draws, bool) or not isinstance(draws, int) or draws < 1:
        raise ValueError(f"draws must be a whole number of at least 1, got {draws!r}")
    if not (math.isfinite(scale) and scale > 0):
        raise ValueError(f"scale must be positive and finite, got {scale!r}")
    return levels


def matching_time(model: Denoiser, shape: torch.Size, scale: float) -> tuple[float, float]:
    """The time at which the model's noise, seen in the data's units, has half a bin as `CUT` standard deviations, and that number,
    which is another where the model has no such time."""
    stretch = 1.0
    if not is_affine(model.normalizer):
        raise ValueError("truncated_normal needs an affine normaliser, whose bins are of one width: dequantization='uniform' does not")
    if model.normalizer is not None:
        shift = next(model.normalizer.buffers(), None) if isinstance(model.normalizer, nn.Module) else None
        ones = torch.ones(1, *shape, dtype=torch.float64, device=None if shift is None else shift.device)
        widths = model.normalizer.decode(ones) - model.normalizer.decode(torch.zeros_like(ones))
        if float(widths.max() / widths.min()) > 1 + 1e-6:
            raise ValueError("truncated_normal needs one scale for all channels: the noise of one time is to fill every bin alike")
        stretch = float(widths.flatten()[0])
    lambda_ = math.log(CUT * stretch / (0.5 * scale))
    t = min(max(float(model.sde.time_of(lambda_)), model.sde.t_min), model.sde.t_max)
    share = 0.5 * scale / stretch * math.exp(float(model.sde.half_log_snr(t)))
    return t, share
