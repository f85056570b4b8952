"""Log-likelihoods by the probability flow, with what is known of their errors."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import parallel
from ..data import as_floats
from ..models.denoiser import Denoiser, only_valid
from ..models.measured_moments import moments_of
from ..models.moments import Moments
from ..models.prior import MatchedPrior
from ..randomness import NoiseStream, check_seed
from ..registry import lookup
from ..sdes.base import as_time, check_positive
from ..solvers.grids import make_grid
from ..solvers.ode import Angle
from .adams import Scale, integrate
from .divergence import DIVERGENCES, PROBES, Divergence

EXACT_UP_TO = 32
"""Dimensions up to which the divergence is exact unless another is asked for."""
SCALE, NEAR_DATA, POWER = 0.7, 0.1, 0.75
"""Steps are taken in log(theta + NEAR_DATA), theta = atan(sigma/(alpha s)) with s SCALE times the data's larger spread: even in theta
towards noise, where the flow is smooth in it, and in lambda towards the data, where networks are. Errors count in proportion to
(theta + NEAR_DATA)^POWER. Chosen on mixtures and on digits."""
MISMATCH = 0.01
"""Nats between the prior and the Gaussian with the data's moments from which on a warning is given."""
TRUST = 10.0
"""Times the root of the sum of squares of a path's local errors: what 95 % of samples stay below, found on mixtures; too much by an
order of magnitude where errors do not add up, as on a trained network."""
CAP = 1000


@dataclass(frozen=True)
class LogLikelihood:
    """What `log_likelihood` returns, one entry for each sample.

    log_prob: (B,) nats, in the data's units.
    std_error: (B,) standard error of the trace's estimate: 0 where the trace is exact, NaN with one probe. It is itself estimated, from
        as many probes as there are: see `margin`. Sums of its squares over many samples are right.
    solver_error: (B,) nats, an estimate of what the integrator's steps have done to log_prob.
    nfe: (B,) network evaluations; each comes with the products of the divergence.
    latent: (B, *) the state at t_max in normalised units.
    converged: (B,) bool, false where the step cap was hit or values were not finite, log_prob being NaN there.
    probes: independent estimates of the trace behind `std_error`; 0 where it is exact.
    """

    log_prob: Tensor
    std_error: Tensor
    solver_error: Tensor
    nfe: Tensor
    latent: Tensor
    converged: Tensor
    probes: int = 0

    def margin(self, confidence: float = 0.95) -> Tensor:
        """The half-width of an interval for each log_prob that holds with this confidence, (B,) nats, of the trace's error alone.

        It is `std_error` times Student's quantile for probes - 1 degrees of freedom: 12.7 at 95 % for the default two probes, where
        twice std_error holds for about 70 % of samples. More probes are the way to a narrow one.
        """
        if not 0 < confidence < 1:
            raise ValueError(f"confidence must be in (0, 1), got {confidence!r}")
        if self.probes == 0:
            return torch.zeros_like(self.std_error)
        from scipy.special import stdtrit  # here, as it takes as long to import as the rest of the package

        return self.std_error * float(stdtrit(self.probes - 1, 0.5 + 0.5 * confidence)) if self.probes > 1 else self.std_error

    def joined(self, join: Callable[..., Tensor], *others: LogLikelihood) -> LogLikelihood:
        """Each entry as `join` makes it of this one's and the others'."""
        names = ("log_prob", "std_error", "solver_error", "nfe", "latent", "converged")
        entries: dict[str, Any] = {name: join(*(getattr(one, name) for one in (self, *others))) for name in names}
        return replace(self, **entries)


def log_likelihood(
    model: Denoiser,
    x: Tensor | np.ndarray,
    divergence: str | None = None,
    probes: int = 2,
    rtol: float = 5e-6,
    atol: float = 5e-6,
    seed: int = 0,
    cond: Mapping[str, Any] | None = None,
    steps: int | None = None,
    grid: str | Tensor | None = None,
    probe: str = "rademacher",
    batch_size: int | None = None,
    index_offset: int = 0,
    t: float | None = None,
    dtype: torch.dtype | None = None,
) -> LogLikelihood:
    """log p(x) of data x (B, *) in its own units, by the probability flow from t_min to t_max, on the model's device.

        log p(x) = log p_T(x_T) + int div(velocity) dt + D log alpha(t_min) + log |det encode|,   x_{t_min} = alpha(t_min) encode(x)

    It is the density of x_{t_min}/alpha(t_min), that is of the model's data blurred by Gaussian noise of standard deviation
    sigma/alpha at t_min (exp(-lambda_max), 0.0025 normalised units by default): a proper density, and that of no other noise level.
    The Gaussian part of the score, from the data's moments, is integrated in closed form; what remains is integrated in the angle
    atan(sigma/(alpha s)), or its logarithm near the data, by Adams' methods with steps and orders of each sample's own (`adams`).

    divergence: how the trace of the Jacobian is found, sharing the forward pass of the flow.
        "exact": by D products with the Jacobian; the default up to 32 dimensions.
        "hutchinson": with one random vector for the path.
        "resampled": with new ones at each evaluation, which has the least error; the default above 32 dimensions.
    probes: independent estimates of a random divergence; their spread is std_error.
    probe: their distribution, "rademacher" or "gaussian".
    rtol, atol: of a step, for the state in units in which the marginals have unit variance, and for log p for each dimension.
        "resampled" is judged by the state alone, and its solver_error is of the path alone.
    seed, index_offset: sample i's random vectors are a function of (seed, index_offset + i) alone.
    steps: None takes adaptive steps; a number takes as many, along `grid`.
    grid: of fixed steps: a name in GRIDS, or the times (steps + 1,) from t_min to t_max.
    cond: conditions for the model by name, tensors or arrays whose first dimension is B.
    t: the time whose density is meant. None: t_min.
    batch_size: of the samples that are integrated together. None: all.
    x: a tensor or an array of real numbers; what is returned is float64 where x is, or holds integers of 32 bits and more, else float32.
    dtype: of the states that the network is given, float32 or float64. None: that of its parameters, at least float32. The integration
        itself is float64.

    Of data with a mask (`Denoiser.valid`) it is the density of the valid entries; what lies at the others changes nothing.

    log_prob can be differentiated with respect to x and the model's parameters where x requires gradients: the steps are taken
    again one by one, so that memory holds the states and one evaluation.
    Raises ValueError or TypeError for bad arguments, and TypeError for a network whose output has no gradient with respect to x.
    Warns where the prior, `model.prior`, differs from the data's own Gaussian by more than 0.01 nats, and of samples that did not converge.
    Song et al. 2021, arXiv:2011.13456, section 4.3; Chen et al. 2018, arXiv:1806.07366; the split is after Wang and Vastola
    2024, arXiv:2412.09726.
    """
    x = as_floats(x, "x")
    _check(model, x, probes, steps, batch_size, index_offset)
    check_seed(seed)
    tolerances = (check_positive("rtol", rtol), check_positive("atol", atol))
    if probe not in PROBES:
        raise ValueError(f"unknown probe {probe!r}; choose from {', '.join(PROBES)}")
    kind = ("exact" if x[0].numel() <= EXACT_UP_TO else "resampled") if divergence is None else divergence
    rule = lookup(DIVERGENCES, "divergence", kind)
    sde = model.sde
    if t is not None and (isinstance(t, bool) or not isinstance(t, int | float)):
        raise TypeError(f"t must be a number, got {t!r}")
    start = sde.t_min if t is None else float(t)
    if not sde.t_min <= start < sde.t_max:
        raise ValueError(f"t must be in [t_min, t_max) = [{sde.t_min:.6g}, {sde.t_max:.6g}), got {t!r}")
    parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
    if dtype not in (None, torch.float32, torch.float64):
        raise TypeError(f"dtype must be torch.float32 or torch.float64, whatever the network's own, got {dtype!r}")
    if dtype is None:
        dtype = torch.float64 if (x if parameter is None else parameter).dtype == torch.float64 else torch.float32
    device = x.device if parameter is None else parameter.device
    conditions = model.conditions(cond, len(x), device)
    times = None
    if steps is not None:
        spread = _moments(model, x[:1].to(device, dtype), bool(conditions)).spread()
        times = make_grid(sde, "angle" if grid is None else grid, start, sde.t_max, steps, spread)
        if times.shape != (steps + 1,) or not bool((times.diff() > 0).all()):
            raise ValueError(f"times must be {steps + 1} rising numbers, got shape {tuple(times.shape)}")
        if abs(float(times[0]) - start) > 1e-6 or abs(float(times[-1]) - sde.t_max) > 1e-6:
            raise ValueError(f"times must go from {start:.6g} to {sde.t_max:.6g}, got {float(times[0]):.6g} to {float(times[-1]):.6g}")
        times = times.to(device, torch.float64)
    elif grid is not None:
        raise ValueError("grid is for fixed steps: give steps too")
    wanted = torch.is_grad_enabled() and x.requires_grad
    found: list[LogLikelihood] = []
    size = len(x) if batch_size is None else batch_size
    for first in range(0, len(x), size):
        part = x[first : first + size].to(device)
        chosen = {name: value[first : first + size] for name, value in conditions.items()}
        noise = NoiseStream(seed, index_offset + first, len(part), (probes, part[0].numel()), dtype, device)
        flow = _Remainder(model, part.shape[1:], chosen, rule(noise, probes, probe, wanted), dtype, device)
        with torch.set_grad_enabled(wanted):
            found.append(flow.likelihood(part, start, tolerances, CAP, times))
    result = found[0].joined(lambda *parts: torch.cat(parts), *found[1:])
    lost = int((~result.converged).sum())
    if lost:
        warnings.warn(f"{lost} of {len(x)} log-likelihoods did not converge: their log_prob is NaN", stacklevel=2)
    _warn_of_prior(model, part.shape[1:])
    return result


def log_likelihood_together(
    model: Denoiser, x: Tensor, cond: Mapping[str, Any] | None = None, index_offset: int = 0, **options: Any
) -> LogLikelihood:
    """`log_likelihood` by all processes of a torchrun, each with its share of x: every one of them gets all of it, the same that one
    process alone would get. Without torchrun it is `log_likelihood`. All processes must call it."""
    if len(x) < parallel.world() or parallel.world() == 1:
        return log_likelihood(model, x, cond=cond, index_offset=index_offset, **options)
    rows = parallel.share(len(x))
    mine = None if cond is None else {name: value[rows] for name, value in cond.items()}
    found = log_likelihood(model, x[rows], cond=mine, index_offset=index_offset + rows.start, **options)
    return found.joined(parallel.gather_rows)


def _check(model: Denoiser, x: Tensor, probes: int, steps: int | None, batch_size: int | None, index_offset: int) -> None:
    if not isinstance(model, Denoiser):
        raise TypeError(f"model must be a Denoiser such as ScoreModel, got {type(model).__name__}")
    if x.ndim < 2 or x.numel() == 0:
        raise ValueError(f"x must be (B, *data shape) with at least one sample, got shape {tuple(x.shape)}")
    numbers = [("probes", probes, 1), ("index_offset", index_offset, 0)]
    numbers += [(name, value, 1) for name, value in (("steps", steps), ("batch_size", batch_size)) if value is not None]
    for label, number, least in numbers:
        if isinstance(number, bool) or not isinstance(number, int) or number < least:
            raise ValueError(f"{label} must be a whole number of at least {least}, got {number!r}")


class _Remainder:
    """The probability flow with its Gaussian part taken out.

    With M = alpha^2 C + sigma^2 from the data's moments m, C, and D_G the denoiser of Gaussian data with these,

        z = M^(-1/2) (x - alpha m),   dz/dtheta = k M^(-1/2) (E[x_0|x] - D_G(x)),   k = -sqrt(alpha^2 s^2 + sigma^2)/(s sin(theta))
        int div(velocity) dt = int k tr(J - J_G) dtheta + [log det M]/2

    along theta = atan(sigma/(alpha s)): z stands still and the trace is 0 where the data are Gaussian. z is kept along C's axes.
    """

    def __init__(
        self,
        model: Denoiser,
        shape: torch.Size,
        cond: dict[str, Tensor],
        divergence: Divergence,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self.model, self.shape, self.cond, self.divergence, self.dtype = model, shape, cond, divergence, dtype
        moments = _moments(model, torch.empty(1, *shape, dtype=dtype, device=device), bool(cond))
        try:
            mean, variances, vectors = moments.axes(shape)
        except RuntimeError:
            raise ValueError(f"x has samples of shape {tuple(shape)}, but the model's are {tuple(moments.mean.shape)}") from None
        self.mean, self.variances = mean.to(device), variances.to(device)
        self.vectors = None if vectors is None else vectors.to(device)
        self.path = Angle(model.sde, SCALE * moments.spread()[0])
        self.dim = self.mean.numel()

    def at(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """alpha (b, 1) and the variances of the marginal along the axes (b, D) at t (b,)."""
        alpha, sigma = (value[:, None] for value in self.model.sde.marginal(t))
        return alpha, alpha**2 * self.variances + sigma**2

    def _along(self, flat: Tensor) -> Tensor:
        return flat if self.vectors is None else flat @ self.vectors

    def _state(self, z: Tensor, t: Tensor) -> Tensor:
        alpha, variance = self.at(t)
        scaled = z * torch.sqrt(variance)
        return alpha * self.mean + (scaled if self.vectors is None else scaled @ self.vectors.T)

    def place(self, t: Tensor) -> Tensor:
        """log(theta + NEAR_DATA) at t, the variable of the integration; shape of `t`."""
        return torch.log(torch.atan(torch.exp(-self.model.sde.half_log_snr(t)) / self.path.data_std) + NEAR_DATA)

    def slope(self, y: Tensor, place: Tensor, rows: Tensor, evaluation: int) -> Tensor:
        """d(z, log p)/dplace, (b, D + columns) like y."""
        graph = torch.is_grad_enabled() and y.requires_grad
        theta = torch.exp(place) - NEAR_DATA
        with torch.enable_grad():
            t = self.path.time(theta)
            alpha, variance = self.at(t)
            state = self._state(y[:, : self.dim] if graph else y[:, : self.dim].detach(), t)
            x = state.to(self.dtype).reshape(-1, *self.shape)
            x = x if graph else x.requires_grad_()
            denoised = self.model.predict(x, t, **{name: value[rows] for name, value in self.cond.items()}).denoised
            if not denoised.requires_grad:
                if self.model.depends_on_state:
                    raise TypeError(
                        "the model's prediction has no gradient with respect to x (detached, or computed under no_grad?), so that its "
                        "divergence cannot be known; where it is meant to be the same for every x, say model.depends_on_state = False"
                    )
                denoised = denoised + 0.0 * x
        gain = alpha * self.variances / variance
        with torch.set_grad_enabled(graph):
            trace = self.divergence.trace(denoised, x, lambda v: (gain[:, None] * self._along(v) ** 2).sum(2), rows, evaluation)
            centred = self._along(state - alpha * self.mean)
            beyond = self._along((denoised if graph else denoised.detach()).flatten(1).double() - self.mean) - gain * centred
            k = -((theta + NEAR_DATA) * self.path.radius(t) / (self.path.data_std * torch.sin(theta)))[:, None]
            return torch.cat((k * beyond / torch.sqrt(variance), k * trace), 1)

    def likelihood(self, x: Tensor, start: float, tolerances: tuple[float, float], cap: int, times: Tensor | None) -> LogLikelihood:
        sde, batch = self.model.sde, len(x)
        encoded, log_det = x.double(), torch.zeros(batch, dtype=torch.float64, device=x.device)
        valid, units = self.model.valid(self.cond), self.model.normalizer
        if valid is not None and units is not None:  # what lies at other entries need not even be what the units take
            encoded = torch.where(valid, encoded, units.decode(torch.zeros_like(encoded)))
        if units is not None:
            encoded, log_det = units.encode(encoded), units.log_det(encoded, *([] if valid is None else [valid]))
        encoded = only_valid(encoded, valid)
        ends = torch.tensor([start, sde.t_max], dtype=torch.float64, device=x.device)
        alpha, variance = self.at(ends)
        flat = (alpha[0] * encoded).flatten(1)
        z = self._along(flat - alpha[0] * self.mean) / torch.sqrt(variance[0])
        y = torch.cat((z, z.new_zeros(batch, self.divergence.columns)), 1)
        first, last = self.place(ends).tolist()
        grid = None if times is None else self.place(times)
        found = integrate(self.slope, y, (first, last), self._size(*tolerances), self._weigh, cap, grid)
        latent = self._state(found.y[:, : self.dim], ends[1].expand(batch))
        traces = found.y[:, self.dim :]
        volume = 0.5 * (torch.log(variance[1]) - torch.log(variance[0])).sum() + self.dim * torch.log(alpha[0, 0]) + log_det
        log_prob = self.model.prior.log_prob(latent.reshape(x.shape)) + traces.mean(1) + volume
        if valid is not None:
            # Entries that are no data run along the Gaussian path of a point at 0, whose density there is taken out.
            sigma = [self.model.sde.marginal(end)[1] for end in ends]
            each = self.model.prior.marginals(latent.reshape(x.shape)) + torch.log(sigma[1] / sigma[0] * alpha[0, 0])
            log_prob = log_prob - only_valid(each, ~valid).flatten(1).sum(1)
        columns = self.divergence.columns
        if self.divergence.exact:
            spread = torch.zeros_like(log_prob)
        else:
            spread = traces.detach().std(1) / math.sqrt(columns) if columns > 1 else torch.full_like(log_prob, math.nan)
        dtype = torch.promote_types(x.dtype, torch.float32)  # three digits of a sum over the dimensions would say nothing
        return LogLikelihood(
            log_prob.to(dtype),
            spread.detach().to(dtype),
            (TRUST * found.errors).to(dtype),
            self.model.cost * found.nfe,
            latent.detach().to(dtype).reshape(x.shape),
            found.converged,
            probes=0 if self.divergence.exact else columns,
        )

    def _size(self, rtol: float, atol: float) -> Scale:
        dim, smooth = self.dim, self.divergence.smooth

        def size(errors: Tensor, y: Tensor, place: Tensor) -> Tensor:
            # Near the data steps are many and short, and their true errors far below the estimates: judged alike they would take most
            # evaluations and give the least.
            weight = _weight(place)[:, None]
            scale = atol + rtol * y.abs()
            of_state = (errors[..., :dim] / scale[:, None, :dim]).square().mean(-1).sqrt()
            if not smooth:
                return weight * of_state
            of_log = (errors[..., dim:] / dim).abs() / (atol + rtol * (y[:, None, dim:] / dim).abs())
            return weight * torch.maximum(of_state, of_log.amax(-1))

        return size

    def _weigh(self, errors: Tensor, y: Tensor, place: Tensor) -> Tensor:
        # Of a step's error in z the end keeps about -z dz of log p_T, and the trace its own.
        error = (errors[:, : self.dim] * y[:, : self.dim]).sum(1).abs()
        if self.divergence.smooth:
            error = error + errors[:, self.dim :].mean(1).abs()
        return _weight(place) * error


def _weight(place: Tensor) -> Tensor:
    """Of an error estimated at this place, beside one near pure noise."""
    return (torch.exp(place) / (0.5 * math.pi)) ** POWER


def _moments(model: Denoiser, x: Tensor, conditional: bool) -> Moments:
    moments = model.moments if conditional else moments_of(model, x)
    std = model.data_std or 1.0
    return Moments(torch.zeros(()), variance=torch.tensor(std**2)) if moments is None else moments


def _warn_of_prior(model: Denoiser, shape: torch.Size) -> None:
    """Say so where the prior is not the data's own Gaussian at t_max, and by how much."""
    nats = prior_mismatch(model, shape)
    if nats > MISMATCH:
        warnings.warn(
            f"the prior differs from the model's data at t_max by {nats:.3g} nats (Kullback-Leibler divergence of the Gaussians): "
            "samples and likelihoods carry it; prior='matched' does not",
            stacklevel=3,
        )


def prior_mismatch(model: Denoiser, shape: torch.Size) -> float:
    """KL(N(alpha m, alpha^2 C + sigma^2) || N(0, prior_std^2)) at t_max for the model's moments m, C, in nats; 0 for a matched prior
    or a model without moments."""
    if model.moments is None or isinstance(model.prior, MatchedPrior):
        return 0.0
    mean, variances, _ = model.moments.axes(shape)
    alpha, sigma = model.sde.marginal(as_time(model.sde.t_max))
    ratio = (alpha**2 * variances + sigma**2) / model.sde.prior_std**2
    return float(0.5 * (ratio - 1 - torch.log(ratio) + (alpha * mean / model.sde.prior_std) ** 2).sum())
