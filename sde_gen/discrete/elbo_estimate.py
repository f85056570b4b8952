"""What both bounds share: checked arguments, batches of images with their noise, sums of terms, and the value with its errors."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from .. import parallel
from ..data.integers import check_batch, check_levels, short
from ..metrics import Estimate
from ..models.denoiser import Denoiser
from ..randomness import NoiseStream, check_seed
from ..shapes import expand_as
from ..unknown_numbers import shown_number
from .chain import Index
from .elbo_terms import decoder_nll

_TIME_SEED, _STEP_SEED = 1 << 60, 1 << 61
"""They make the choice of times, the noise at them and the noise of a step from them, all functions of one seed, independent."""


@dataclass(frozen=True)
class Elbo:
    """The bound that `elbo` and `elbo_continuous` return, with its parts and errors, in `unit`.

    value: the mean over images of the negative bound. In expectation it is at least the negative log-likelihood.
    std_error: the standard error of `value` for the population that the images come from, all sources together.
    noise: the part of `std_error` that more draws would reduce; NaN with one draw, which cannot tell.
    test_set: the part of `std_error` that more images would reduce; NaN with one image.
    decoder, diffusion, prior: L_0, the sum of the L_t, and L_T, each with its standard error. They add up to `value`.
    times: (N,) the time of each term; in the continuous bound the middle of each of its strata.
    terms: (N,) L_0 and then the L_t, as means over images. A chain's stand by index, and are NaN where no image drew the index. In
        the continuous bound a term is the share of a stratum.
    term_errors: (N,) the standard errors of `terms`.
    edges: (N,) half log-SNRs, falling. L_0 is taken at edges[0]; term i is the share of the way from edges[i - 1] to edges[i].
    counts: (N,) the number of images that drew each term.
    each: (B,) each image's own value.
    nfe: network evaluations for an image, all draws together.
    unit: "bits/dim" for whole numbers, "nats/dim" for continuous data.
    """

    value: float
    std_error: float
    noise: float
    test_set: float
    decoder: Estimate
    diffusion: Estimate
    prior: Estimate
    times: Tensor
    terms: Tensor
    term_errors: Tensor
    edges: Tensor
    counts: Tensor
    each: Tensor
    nfe: int
    unit: str

    def __str__(self) -> str:
        parts = f"L_0 {short(self.decoder.value)}, L_t {short(self.diffusion.value)}, L_T {short(self.prior.value)}"
        errors = f"noise {short(self.noise)}, test set {short(self.test_set)}"
        return f"{self.value:.3f} +- {shown_number(self.std_error, '.3f')} {self.unit} ({parts}; {errors})"


class BoundInputs:
    """The arguments that both bounds share, checked, and the images in batches."""

    def __init__(
        self,
        model: Denoiser,
        images: Tensor,
        levels: int | None,
        draws: int,
        scale: float,
        shift: float,
        seed: int,
        batch_size: int | None,
        index_offset: int,
        cond: dict[str, Tensor] | None,
        dtype: torch.dtype | None,
        together: bool,
    ) -> None:
        for name, value, least in (("draws", draws, 1), ("batch_size", batch_size, 1), ("index_offset", index_offset, 0)):
            if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < least):
                raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
        if not (math.isfinite(scale) and scale > 0):
            raise ValueError(f"scale must be positive and finite, got {scale!r}")
        check_seed(seed)
        self.levels = _levels(images, levels)
        self.model, self.images, self.draws, self.scale, self.shift = model, images, draws, scale, shift
        self.seed, self.index_offset = seed, index_offset
        self.size = len(images) if batch_size is None else batch_size
        self.together = together
        self.dim = images[0].numel()
        parameter = next((p for p in model.parameters() if p.is_floating_point()), None)
        own = torch.float64 if parameter is None else parameter.dtype
        self.dtype = (torch.float64 if own == torch.float64 else torch.float32) if dtype is None else dtype
        self.device = images.device if parameter is None else parameter.device
        self.cond = model.conditions(cond, len(images), self.device)
        if model.valid(self.cond) is not None:
            raise ValueError("the bound of a chain is for data without a mask, and the model's has one; log_likelihood takes it")

    def batches(self, terms: int) -> Iterator[ImageBatch]:
        """Batches of all images or, together with other processes, of this process's share."""
        mine = parallel.share(len(self.images)) if self.together else slice(0, len(self.images))
        for first in range(mine.start, mine.stop, self.size):
            yield ImageBatch(self, slice(first, min(first + self.size, mine.stop)), terms)

    def decode(self, batch: ImageBatch, denoised: Tensor, std: Tensor) -> Tensor:
        """-log P(values | x at the first time), (B,) nats; `std` in normalised units, a scalar or of the shape of `denoised`."""
        return decoder_nll(self.model.normalizer, batch.values, denoised, std, self.levels, self.scale, self.shift)


class ImageBatch:
    """Some of the images with their own noise, and the sums of their terms by index."""

    def __init__(self, inputs: BoundInputs, rows: slice, terms: int) -> None:
        self.inputs, self.rows = inputs, rows
        values = inputs.images[rows].to(inputs.device)
        self.values = values if inputs.levels is not None else values.double()
        x = values.double() if inputs.levels is None else inputs.shift + inputs.scale * values.double()
        normalizer = inputs.model.normalizer
        self.x_0 = x if normalizer is None else normalizer.encode(x)
        self.cond = {name: value[rows].to(inputs.device) for name, value in inputs.cond.items()}
        self.start = start = inputs.index_offset + rows.start
        count = len(values)
        self.noise = NoiseStream(inputs.seed, start, count, x.shape[1:], torch.float64, inputs.device)
        offsets = NoiseStream(inputs.seed ^ _TIME_SEED, start, count, (1,), torch.float64, torch.device("cpu"))
        self.offsets = [0.5 * torch.erfc(-offsets.draw()[:, 0] / math.sqrt(2)) for _ in range(inputs.draws)]  # even on (0, 1)
        self.sums, self.counts = (torch.zeros(count, terms, dtype=torch.float64) for _ in range(2))

    @cached_property
    def step_noise(self) -> NoiseStream:
        """The noise of the steps from the noised images, independent of the noise in them."""
        first = self.noise
        return NoiseStream(self.inputs.seed ^ _STEP_SEED, self.start, first.shape[0], first.shape[1:], first.dtype, first.device)

    def noised(self, alpha: Tensor, sigma: Tensor) -> Tensor:
        """alpha x_0 + sigma eps with the next noise; alpha and sigma are scalars or (B,)."""
        alpha, sigma = (expand_as(value.to(self.x_0), self.x_0) for value in (alpha, sigma))
        return alpha * self.x_0 + sigma * self.noise.draw()

    def predict(self, x_t: Tensor, t: Tensor | float) -> tuple[Tensor, Tensor | None]:
        """E[x_0 | x_t] and the learned variance's fraction or None, float64."""
        found = self.inputs.model.predict(x_t.to(self.inputs.dtype), t, **self.cond)
        denoised, fraction = found.denoised, found.variance_fraction
        return denoised.double(), None if fraction is None else fraction.double()

    def systematic(self, draw: int, count: int) -> Iterator[Tensor]:
        """One place (B,) in each of `count` equal cells of [0, 1): for an image the same place in every cell."""
        for k in range(count):
            yield (k + self.offsets[draw]) / count

    def put(self, i: Index, value: Tensor) -> None:
        """Add a term (B,) at one index, or at (B,) of them."""
        place = (torch.arange(len(value)), torch.as_tensor(i).expand(len(value)))
        self.sums.index_put_(place, value.cpu(), accumulate=True)
        self.counts.index_put_(place, torch.ones((), dtype=torch.float64), accumulate=True)


class TermSums:
    """The parts of the bound by draw and image, and sums of the terms by index, in which an image's mean over its draws counts as one."""

    def __init__(self, inputs: BoundInputs, terms: int) -> None:
        self.inputs = inputs
        shape = (inputs.draws, len(inputs.images))
        self.decoder, self.diffusion, self.prior = (torch.zeros(shape, dtype=torch.float64) for _ in range(3))
        self.count, self.sum, self.square = (torch.zeros(terms, dtype=torch.float64) for _ in range(3))

    def put(self, batch: ImageBatch, draw: int, decoder: Tensor, diffusion: Tensor, prior: Tensor) -> None:
        for table, value in ((self.decoder, decoder), (self.diffusion, diffusion), (self.prior, prior)):
            table[draw, batch.rows] = value.cpu()

    def close(self, batch: ImageBatch) -> None:
        seen = batch.counts > 0
        own = batch.sums / batch.counts.clamp_min(1)
        self.count += seen.sum(0)
        self.sum += own.sum(0)
        self.square += own.square().sum(0)

    def collect(self, times: Tensor, edges: Tensor, nfe: int) -> Elbo:
        inputs = self.inputs
        if inputs.together:  # each process has filled in its own images
            for table in (self.decoder, self.diffusion, self.prior, self.count, self.sum, self.square):
                parallel.summed(table)
        unit = 1 / (inputs.dim * (1.0 if inputs.levels is None else math.log(2)))
        drawn = unit * (self.decoder + self.diffusion + self.prior)
        each = drawn.mean(0)
        count = len(each)
        total = _mean(each).std_error
        noise = math.sqrt(float(drawn.var(0).sum()) / inputs.draws) / count if inputs.draws > 1 else math.nan
        rest = total**2 - (0.0 if math.isnan(noise) else noise**2)
        mean = self.sum / self.count  # NaN where nothing was drawn
        spread = (self.square / self.count - mean**2).clamp_min(0.0)
        return Elbo(
            value=float(each.mean()),
            std_error=total,
            noise=noise,
            test_set=math.sqrt(max(0.0, rest)) if count > 1 else math.nan,
            decoder=_mean(unit * self.decoder.mean(0)),
            diffusion=_mean(unit * self.diffusion.mean(0)),
            prior=_mean(unit * self.prior.mean(0)),
            times=times.clone(),
            terms=unit * mean,
            term_errors=unit * torch.where(self.count > 1, torch.sqrt(spread / (self.count - 1)), math.nan),
            edges=edges.clone(),
            counts=self.count.long(),
            each=each,
            nfe=nfe,
            unit="nats/dim" if inputs.levels is None else "bits/dim",
        )


def check_model(model: Denoiser) -> None:
    """TypeError for a model that has no bound."""
    if not isinstance(model, Denoiser):
        raise TypeError(f"model must be a Denoiser such as ScoreModel, got {type(model).__name__}")


def _mean(each: Tensor) -> Estimate:
    return Estimate(float(each.mean()), float(each.std()) / math.sqrt(len(each)) if len(each) > 1 else math.nan)


def _levels(images: Tensor, levels: int | None) -> int | None:
    if not isinstance(images, Tensor) or images.is_complex() or images.dtype == torch.bool:
        raise TypeError(f"images must be a tensor of integers or floats, got {getattr(images, 'dtype', type(images).__name__)}")
    check_batch(images)
    if images.is_floating_point():
        if levels is not None:
            raise TypeError(f"levels are for integer data, got {images.dtype}: convert it, or leave levels out for nats/dim of a density")
        return None
    return check_levels(images, levels)
