"""Which stated fact of a foreign network is wrong: the error of its noise on a few pictures, as stated and with each fact changed."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..models.denoiser import Denoiser
from ..models.score import CLOCKS, PREDICTIONS, ScoreModel
from ..networks.resampled import ResampledUNet
from ..networks.resampled_blocks import Attention, LevelFeatures
from ..sdes import SDE, make_sde
from .weights import reordered

LEVELS, WIDEST = 8, 2.5
"""Noise levels at which it is looked, evenly in half a log-SNR from WIDEST to -WIDEST, where pictures are neither clear nor gone."""
MARGIN, OF_AVERAGE, SURE = 0.01, 0.05, 3.0
"""What another fact must lower the logarithm of the error by, on average and in standard errors over the pictures. Averaged weights lag
behind in a short training: raw ones in their place must be better by more."""
WORST = 10.0
"""An error of the noise beyond this, or no number, counts as this."""
LEAST = 4
HELD = 1 << 18
"""Numbers of the states that the network is asked about at a time."""
HEADS = (1, 2, 4, 8, 16)
HEAD_CHANNELS = (16, 32, 64)
RANGES = ((0.0, 255.0), (0.0, 1.0), (-1.0, 1.0))


class Alternative(NamedTuple):
    """One fact changed: its name, its other value in words, and the pictures' normalised form and the model then."""

    fact: str
    value: str
    model: Denoiser
    z: Tensor


@dataclass(frozen=True)
class Check:
    """What was found. `sentence` says it.

    right: whether the facts as stated are right as far as these pictures tell.
    fact, value: what is wrong and what it should be, or None.
    error: of the noise as stated, over that of the best linear filter, a geometric mean over the levels; `better` the same with `fact`
        changed. Below 1 the network knows more than a filter.
    half_log_snr, errors, linear: (levels,) the levels, the mean squared error of each element of the noise there, and the filter's.
    others: the errors of all alternatives, as `error`, by "fact: value".
    """

    sentence: str
    right: bool
    fact: str | None
    value: str | None
    error: float
    better: float | None
    half_log_snr: list[float]
    errors: list[float]
    linear: list[float]
    others: dict[str, float] = field(default_factory=dict)


@torch.no_grad()
def check_external(
    model: ScoreModel,
    images: Tensor,
    cond: Mapping[str, Tensor] | None = None,
    others: Mapping[str, Denoiser] | None = None,
    seed: int = 0,
) -> Check:
    """Whether what was said of a network's clock, prediction, range, channels and attention fits its weights.

    The noise of a few pictures is predicted with the facts as stated, and with every alternative that differs in one of them: the
    prediction, the clock, the range of the pictures, the order of the channels, the order and number of the attention heads (for weights of
    guided- and improved-diffusion), the schedule of a chain, and `others`. A wrong fact costs more than the network's own error.

    model: of `load_external` or any other ScoreModel.
    images: (N, C, H, W), at least 4, in the units that the model's normaliser takes: of the kind that the network was trained on.
    cond: its conditions, (N, ...) tensors by name.
    others: models under names such as "raw weights" and "ema weights", to be compared as alternatives of the fact "average"; one whose name
        starts with "raw" must be better by 5 %, as averages lag behind in a short training, any other by 1 %.
    seed: of the noise.

    Raises TypeError for another model, ValueError for too few pictures or of another shape.
    """
    if not isinstance(model, ScoreModel):
        raise TypeError(f"check_external takes a ScoreModel, got {type(model).__name__}")
    if images.ndim != 4 or len(images) < LEAST:
        raise ValueError(f"images must be (N, C, H, W) with at least {LEAST} of them, got shape {tuple(images.shape)}")
    images = images.float()
    z = images if model.normalizer is None else model.normalizer.encode(images).float()
    levels = _levels(model.sde)
    told = dict(cond or {})
    stated = _errors(model, z, levels, told, seed)
    linear = _linear_errors(z, levels)
    best: tuple[float, Alternative] | None = None
    table: dict[str, float] = {}
    own = _over(stated, linear)
    for other in _alternatives(model, images, z, others or {}):
        try:
            errors = _errors(other.model, other.z, levels, told, seed)
        except (ValueError, TypeError):  # a clock or prediction that this process has not
            continue
        # of its own pictures: in a range where they are nearly nothing, every denoiser knows the noise
        found = _over(errors, _linear_errors(other.z, levels))
        error = float(found.mean().exp())
        table[f"{other.fact}: {other.value}"] = error
        gain = own - found
        doubt = float(gain.std() / math.sqrt(len(gain)))
        least = OF_AVERAGE if other.fact == "average" and other.value.startswith("raw") else MARGIN
        if error < 1.0 and float(gain.mean()) > max(least, SURE * doubt) and (best is None or error < best[0]):
            best = (error, other)
    error = float(own.mean().exp())
    where = (levels.tolist(), stated.mean(1).tolist(), linear.tolist(), table)
    of_filter = "of the best linear filter's"
    if best is not None:
        better, other = best
        sentence = (
            f"the {other.fact} looks wrong: with {other.value} the error of the noise is {better:.3g} {of_filter}, as stated {error:.3g}"
        )
        return Check(sentence, False, other.fact, other.value, error, better, *where)
    if error > 1.0:
        sentence = (
            f"the error of the noise is {error:.3g} {of_filter}, and no single other fact brings it below 1: more than one is wrong, the "
            "pictures are not of its kind, or it has not learned"
        )
        return Check(sentence, False, None, None, error, None, *where)
    sentence = f"the facts fit: the error of the noise is {error:.3g} {of_filter}, and no other prediction, clock, range or order lowers it"
    return Check(sentence, True, None, None, error, None, *where)


def _levels(sde: SDE) -> Tensor:
    high, low = (float(sde.half_log_snr(t)) for t in (sde.t_min, sde.t_max))
    return torch.linspace(min(WIDEST, high), max(-WIDEST, low), LEVELS, dtype=torch.float64)


def _errors(model: Denoiser, z: Tensor, levels: Tensor, cond: Mapping[str, Tensor], seed: int) -> Tensor:
    """The mean squared error of each element of the noise, (levels, N), between 1e-6 and `WORST`."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(len(levels), *z.shape, generator=generator)
    device = next((p.device for p in model.parameters()), z.device)
    t = model.sde.time_of(levels).clamp(model.sde.t_min, model.sde.t_max)
    alpha, sigma = (value.float().reshape(-1, *[1] * z.ndim) for value in model.sde.marginal(t))
    x, times = (alpha * z + sigma * noise).flatten(0, 1), t.repeat_interleave(len(z))
    told = {name: value.repeat(len(levels), *[1] * (value.ndim - 1)) for name, value in cond.items()}
    found = []
    for rows in torch.arange(len(x)).split(max(1, HELD // z[0].numel())):
        given = {name: value[rows].to(device) for name, value in told.items()}
        found.append(model.noise(x[rows].to(device), times[rows].to(device), **given).cpu())
    errors = (torch.cat(found).reshape(noise.shape) - noise).double().square().flatten(2).mean(2)
    return errors.nan_to_num(WORST, WORST, WORST).clamp(1e-6, WORST)


def _over(errors: Tensor, linear: Tensor) -> Tensor:
    """The logarithm of the errors (levels, N) over the filter's (levels,), (N,)."""
    return (errors.log() - linear.log()[:, None]).mean(0)


def _linear_errors(z: Tensor, levels: Tensor) -> Tensor:
    """The same of the best linear filter that is the same at every place, (levels,).

    Of colours that are uncorrelated and waves of one length at a time, whose power p the pictures say, it leaves alpha^2 p/(alpha^2 p +
    sigma^2) of the noise.
    """
    _, channels, height, width = z.shape
    centred = (z - z.mean((0, 2, 3), keepdim=True)).double()
    colours = torch.linalg.eigh(torch.cov(centred.movedim(1, 0).flatten(1)).reshape(channels, channels)).eigenvectors
    power = torch.fft.fft2(torch.einsum("nchw,ck->nkhw", centred, colours), norm="ortho").abs().square().mean(0)
    away = torch.fft.fftfreq(height)[:, None] ** 2 + torch.fft.fftfreq(width)[None, :] ** 2
    ring = (away.sqrt() * max(height, width)).round().long().flatten()
    total = torch.zeros(channels, int(ring.max()) + 1, dtype=torch.float64).index_add_(1, ring, power.flatten(1))
    power = (total / torch.bincount(ring))[:, ring]
    return torch.stack([(power / (power + torch.exp(-2 * level))).mean() for level in levels]).clamp_min(1e-6)


def _alternatives(model: ScoreModel, images: Tensor, z: Tensor, others: Mapping[str, Denoiser]) -> Iterator[Alternative]:
    """Every model that differs from the one as stated in one fact."""
    for name in PREDICTIONS:
        if name != model.prediction:
            yield Alternative("prediction", f"{name!r}", _changed(model, prediction=name, scale_input=name == "edm"), z)
    yield from _clocks(model, z)
    yield from _schedules(model, z)
    yield Alternative("range", "pictures of 0 .. 1 in the network", model, (z + 1) / 2)
    yield Alternative("range", "pictures of -1 .. 1 in the network", model, 2 * z - 1)
    for low, high in RANGES:
        other = 2 * (images - low) / (high - low) - 1
        if not torch.allclose(other, z, atol=1e-3):
            yield Alternative("range", f"pictures of {low:g} .. {high:g} outside", model, other)
    if z.shape[1] == 3:
        yield Alternative("channel order", "the colours the other way round", model, z.flip(1))
    yield from _attentions(model, z)
    for name, other_model in others.items():
        yield Alternative("average", name, other_model, z)


def _changed(model: ScoreModel, network: Any = None, sde: SDE | None = None, **settings: Any) -> ScoreModel:
    std = 0.5 if model.data_std is None else model.data_std
    given = model.settings() | {"data_std": std} | settings
    return ScoreModel(
        model.network if network is None else network,
        model.sde if sde is None else sde,
        **given,
        normalizer=model.normalizer,
        moments=model.moments,
    ).eval()


def _noise_to_data(sde: SDE, t: Tensor) -> Tensor:
    return -sde.half_log_snr(t)


OTHER_CLOCKS: dict[str, Callable[[SDE, Tensor], Tensor]] = {
    "t": lambda sde, t: t,
    "999 t": lambda sde, t: 999 * t,
    "999 (1 - t), a reversed index": lambda sde, t: 999 * (1 - t),
    "log sigma": _noise_to_data,
    "log(sigma/2)": lambda sde, t: _noise_to_data(sde, t) - math.log(2),
    "log(2 sigma)": lambda sde, t: _noise_to_data(sde, t) + math.log(2),
    "log(sigma)/4": lambda sde, t: _noise_to_data(sde, t) / 4,
    "250 log sigma": lambda sde, t: 250 * _noise_to_data(sde, t),
    "sigma": lambda sde, t: torch.exp(_noise_to_data(sde, t)),
    "half_log_snr": lambda sde, t: sde.half_log_snr(t),
    "index": lambda sde, t: CLOCKS["index"](sde, t),
    "index of 1000": lambda sde, t: CLOCKS["index"](sde, t) * 1000 / len(sde.points.times),  # type: ignore[attr-defined]
}
"""What networks are told of the noise, sigma being that of x_0 + sigma eps."""


def _clocks(model: ScoreModel, z: Tensor) -> Iterator[Alternative]:
    level = getattr(getattr(model.network, "embedding", None), "level", None)
    scale, shift = (level.scale, level.shift) if isinstance(level, LevelFeatures) else (1.0, 0.0)
    t = model.sde.time_of(_levels(model.sde)).clamp(model.sde.t_min, model.sde.t_max)
    stated = scale * model.scales(t).clock + shift
    for name, clock in OTHER_CLOCKS.items():
        try:
            value = clock(model.sde, t)
        except (ValueError, AttributeError):  # an index, of a process that has none
            continue
        if float((value - stated).abs().max()) <= 0.01 * float((stated.max() - stated.min()).abs()):
            continue

        def told(sde: SDE, t: Tensor, clock: Callable[[SDE, Tensor], Tensor] = clock) -> Tensor:
            return (clock(sde, t) - shift) / scale

        yield Alternative("clock", name, _changed(model, clock=told), z)


def _schedules(model: ScoreModel, z: Tensor) -> Iterator[Alternative]:
    settings = dict(model.sde.settings)
    if not hasattr(model.sde, "points") or "betas" not in settings:
        return
    steps = len(model.sde.points.times)
    for name, more in (("linear", {"beta_start": 0.1 / steps, "beta_end": 20.0 / steps}), ("cosine", {})):
        if name != settings["betas"]:
            yield Alternative("schedule", name, _changed(model, sde=make_sde("ddpm", betas=name, steps=steps, **more)), z)


def _attentions(model: ScoreModel, z: Tensor) -> Iterator[Alternative]:
    """Of weights whose layout the file does not say: another order, or another number of heads, in all attentions."""
    source = getattr(model, "source", None) or {}
    stated = source.get("facts", {}).get("attention_order", {}).get("value")
    network = model.network
    if stated is None or not isinstance(network, ResampledUNet):
        return
    found = {name: module for name, module in network.named_modules() if isinstance(module, Attention)}
    mine = {name: module.heads for name, module in found.items()}
    widths = {name: module.qkv.in_features for name, module in found.items()}
    if any(number > 1 for number in mine.values()):
        other = "new" if stated == "legacy" else "legacy"
        yield Alternative("attention order", other, _changed(model, _laid_out(network, stated, other, mine)), z)
    seen = [mine]
    for what, values in (("heads", HEADS), ("head_channels", HEAD_CHANNELS)):
        for value in values:
            heads = {name: value if what == "heads" else width // value for name, width in widths.items()}
            if heads in seen or any(number < 1 or widths[name] % number for name, number in heads.items()):
                continue
            seen.append(heads)
            yield Alternative("heads", f"{what} = {value}", _changed(model, _laid_out(network, stated, stated, heads)), z)


def _laid_out(network: ResampledUNet, stated: str, order: str, heads: Mapping[str, int]) -> ResampledUNet:
    """The network as it would have been loaded with this order and these numbers of heads."""
    other = copy.deepcopy(network)
    for name, module in other.named_modules():
        if isinstance(module, Attention):
            for key in ("weight", "bias"):
                value = getattr(module.qkv, key).data
                rows = value.unflatten(0, (3, module.heads, -1))
                in_file = rows.transpose(0, 1).flatten(0, 2) if stated == "legacy" else value
                getattr(module.qkv, key).data = reordered(in_file, heads[name], order).reshape(value.shape).clone()
            module.heads = heads[name]
    return other
