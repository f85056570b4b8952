"""The ends of the noise from the data: how much hides all of it, how little none of it; with the evidence in words."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import Dataset, Normalizer
from ..sdes import SDE, SDES, make_sde
from .config import ConfigError, RunConfig

AUTO = "auto"
SUGGESTED: dict[str, tuple[str, ...]] = {name: kind.auto for name, kind in SDES.items() if kind.auto}
"""The settings that may be `auto`, by SDE."""
MOST_ITEMS = 2000
MOST_PRODUCTS = 10**10
"""Of the matrix of distances: items of many dimensions are taken fewer at a time."""
MOST_LEVELS = 4096
SMALLEST, CONTINUOUS = 1e-4, 0.01
"""Bounds of the smallest noise: what float32 states can hold, and a hundredth of the standard deviation of data without levels."""
MISMATCH = 1e-3
"""Nats per dimension that a datum may be from the prior at t_max."""
HIDDEN = 0.25
"""Largest pairwise distance at t_max over the noise there, of processes that shrink the data."""
VISIBLE = 0.02


@dataclass(frozen=True)
class Distances:
    """Euclidean distances between items of normalised data: the largest of all pairs, the median one to the nearest neighbour
    (of those that are not equal), and how many items of how many dimensions."""

    largest: float
    neighbour: float
    items: int
    dimensions: int


@dataclass(frozen=True)
class Suggestion:
    """Settings of an SDE, and for each the evidence: a line that begins with its name and value."""

    settings: dict[str, float]
    evidence: tuple[str, ...]


def distances(z: Tensor) -> Distances:
    """`Distances` of at most 2,000 evenly spaced items of z (N, *), fewer where they have many dimensions."""
    dimensions = math.prod(z.shape[1:])
    most = min(MOST_ITEMS, max(2, math.isqrt(MOST_PRODUCTS // dimensions)))
    x = _spaced(z, most).flatten(1).double()
    x = x - x.mean(0)
    squares = x.square().sum(1)
    nearest, largest = torch.empty(len(x), dtype=torch.float64), 0.0
    for start in range(0, len(x), 500):
        rows = slice(start, start + 500)
        between = (squares[rows, None] + squares - 2 * x[rows] @ x.T).clamp_min(0.0)
        largest = max(largest, float(between.max()))
        equal = between <= 1e-10 * (squares[rows, None] + squares)  # itself and its copies, up to rounding
        nearest[rows] = between.masked_fill(equal, math.inf).amin(1)
    apart = nearest[torch.isfinite(nearest)].sqrt()
    return Distances(math.sqrt(largest), float(apart.median()) if len(apart) else 0.0, len(x), dimensions)


def granularity(z: Tensor) -> float | None:
    """The width of a bin of data on evenly spaced levels, the smallest over the channels of (N, C, *) or the features of (N, D);
    None where a channel is continuous. Found from the values themselves: data in any units have the same after normalisation."""
    widths = []
    for channel in _spaced(z, MOST_ITEMS).double().transpose(0, 1).flatten(1):
        values = channel[:: max(1, len(channel) // 200_000)]
        values = values.sort().values
        span = float(values[-1] - values[0])
        if span == 0.0:
            continue
        gaps = values.diff()
        gaps = gaps[gaps > 1e-5 * span]  # below: the same level, rounded
        if len(gaps) + 1 > min(MOST_LEVELS, len(values) // 4):
            return None
        width = span / max(1, round(span / float(gaps.min())))
        whole = gaps / width
        if bool(((whole - whole.round()).abs() > 0.02).any()):
            return None
        widths.append(width)
    return min(widths, default=None)


def _spaced(z: Tensor, most: int) -> Tensor:
    return z if len(z) <= most else z[torch.linspace(0, len(z) - 1, most, dtype=torch.float64).round().long()]


def smallest_noise(z: Tensor, found: Distances) -> tuple[float, str]:
    """The standard deviation of noise that hides nothing of the normalised data z, and why."""
    width = granularity(z)
    if width is not None:
        sigma = max(SMALLEST, 0.5 * width / math.sqrt(12))
        return sigma, f"half the standard deviation of a bin, the data having levels {width:.3g} apart"
    each = found.neighbour / math.sqrt(found.dimensions)
    sigma = min(CONTINUOUS, max(SMALLEST, 0.5 * each))
    why = f"the nearest neighbour is {each:.3g} a dimension away (median of {found.items:,} items), half of that"
    if sigma == CONTINUOUS:
        return sigma, f"{why} or a hundredth of the data's standard deviation, whichever is smaller"
    return sigma, why


def suggest_ends(z: Tensor, sde_name: str, settings: Mapping[str, Any] | None = None) -> Suggestion:
    """Settings of the registered SDE `sde_name` for normalised data z (N, *), to three digits, with d the largest pairwise distance.

    sigma_max = d, so that noise takes every item to every other (Song and Ermon 2020, arXiv:2006.09011, technique 1). Where the
    process shrinks the data (vp, subvp, cosine), alpha at t_max leaves alpha d <= sigma/4, and an item as far out as d at most
    1e-3 nats per dimension from the prior N(0, I): beta_max and lambda_min follow.
    sigma_min: half the standard deviation of a bin of data on levels; else half the median distance to the nearest neighbour, per
    dimension, at most 0.01. lambda_max = -log sigma_min; beta_min = 1000 sigma_min^2, so that the first of a thousand steps adds
    that noise as in DDPM (Ho et al. 2020, arXiv:2006.11239), within 0.01 to 1 (vp).
    `settings`: what else is chosen, of which beta_min counts; None: nothing. ValueError for an SDE that has none of these settings,
    and for items that are all equal.
    """
    if sde_name not in SUGGESTED:
        raise ValueError(f"no setting of SDE {sde_name!r} can be auto; it is for {', '.join(SUGGESTED)}")
    found = distances(z)
    if found.largest == 0.0:
        raise ValueError(f"the {found.items:,} items that were compared are equal: choose the settings of the SDE, not auto")
    low, why_low = smallest_noise(z, found)
    far = f"largest pairwise distance {found.largest:.3g} among {found.items:,} items"
    kind = SDES[sde_name]
    last, mismatch = _last_log_snr(kind, found)
    if mismatch is None:
        why_far = f"{far} (Song and Ermon 2020)"
    else:
        why_far = f"{far} becomes {math.exp(last) * found.largest:.2g} of the noise, at most {mismatch:.1g} nats a dimension from the prior"
    # Where other settings are chosen, those that are not `auto` stay at their defaults.
    given = {} if settings is None else {k: v for k, v in {**make_sde(sde_name).settings, **settings}.items() if v != AUTO}
    chosen = {name: _digits(value) for name, value in kind.settings_of_ends(-math.log(low), last, given).items()}
    why = {
        "beta_min": "the first of a thousand steps adds noise "
        f"{math.sqrt(chosen.get('beta_min', 0.0) / 1000):.3g}, for the reason of lambda_max",
        "lambda_max": f"noise {low:.3g} at the end: {why_low}",
        "sigma_min": why_low,
    }
    return Suggestion(chosen, tuple(f"{name} {value:g}: {why.get(name, why_far)}" for name, value in chosen.items()))


def _digits(value: float) -> float:
    # Rounded, so that another machine's last bits do not make another network of the same data.
    return float(f"{value:.3g}")


def _last_log_snr(kind: type[SDE], found: Distances) -> tuple[float, float | None]:
    """The highest half log-SNR at t_max that the distances allow, and the mismatch with N(0, I) there in nats per dimension; for a
    process that does not shrink the data the one at which the noise is the largest distance, and None."""

    def mismatch(snr: float) -> float:
        log_alpha = kind.log_alpha_at(snr)
        assert log_alpha is not None
        variance = math.exp(2 * (log_alpha - snr))
        signal = math.exp(2 * log_alpha) * found.largest**2 / found.dimensions
        return 0.5 * (signal + variance - 1 - math.log(variance))

    if kind.log_alpha_at(0.0) is None:
        return -math.log(found.largest), None
    low, high = -40.0, math.log(HIDDEN / found.largest)
    if mismatch(high) > MISMATCH:
        for _ in range(60):
            middle = 0.5 * (low + high)
            low, high = (middle, high) if mismatch(middle) <= MISMATCH else (low, middle)
        high = low
    return high, mismatch(high)


def resolve_ends(config: RunConfig, data: Dataset) -> tuple[RunConfig, tuple[str, ...]]:
    """`config` with numbers for the settings of its SDE that are `auto`, and a line of evidence for each.

    The data are normalised as the model will; the same data give the same numbers. ConfigError for a setting that cannot be `auto`.
    """
    settings = config.sde.settings
    asked = [name for name, value in settings.items() if value == AUTO]
    allowed = SUGGESTED.get(config.sde.name, ())
    for name in asked:
        if name not in allowed:
            choices = ", ".join(allowed) or "none"
            raise ConfigError(f"sde.settings.{name} of SDE {config.sde.name!r} cannot be auto; of its settings these can: {choices}")
    if not asked:
        return config, ()
    try:
        found = suggest_ends(_normalised(config, data), config.sde.name, settings)
    except ValueError as error:
        raise ConfigError(str(error)) from error
    numbers = settings | {name: found.settings[name] for name in asked}
    lines = tuple(line for line in found.evidence if line.split(" ", 1)[0] in asked)
    return config.model_copy(update={"sde": config.sde.model_copy(update={"settings": numbers})}), lines


def warnings_of_ends(config: RunConfig, data: Dataset) -> list[str]:
    """A line for each end of the noise that does not suit the data: too little of it at t_max, or too much at t_min."""
    return ill_chosen(_normalised(config, data), make_sde(config.sde.name, **config.sde.settings))


def ill_chosen(z: Tensor, sde: SDE) -> list[str]:
    """As `warnings_of_ends`, of normalised data z (N, *) and an SDE; noise is measured against the data, sigma/alpha.

    At t_max it is less than half the largest pairwise distance; or at t_min more than ten times what `suggest_ends` finds and more
    than a fiftieth of the data's standard deviation.
    """
    found = distances(z)
    first, last = (math.exp(-float(sde.half_log_snr(t))) for t in (sde.t_min, sde.t_max))
    names = {name: "/".join(n for n in known if n in sde.settings) for name, known in _ENDS.items()}
    lines = []
    if last < 0.5 * found.largest:
        lines.append(
            f"the largest noise, {last:.3g}, is less than half the largest pairwise distance {found.largest:.3g}: samples may miss "
            f"part of the data; raise the noise at the end ({names['last'] or 'settings of the SDE'}; auto chooses it)"
        )
    low, why = smallest_noise(z, found)
    if first > max(10 * low, VISIBLE):
        lines.append(
            f"the smallest noise, {first:.3g}, hides detail of the data ({low:.3g} would not: {why}); "
            f"lower it ({names['first'] or 'settings of the SDE'}; auto chooses it)"
        )
    return lines


_ENDS = {"first": ("sigma_min", "lambda_max"), "last": ("sigma_max", "beta_max", "lambda_min")}


def _normalised(config: RunConfig, data: Dataset) -> Tensor:
    try:
        chains, breaks = (None, None) if data.codec is None else (data.codec.chains, data.codec.breaks)
        return Normalizer.fit(data.train, config.model.normalizer, chains, breaks).encode(_spaced(data.train, MOST_ITEMS))
    except ValueError as error:
        raise ConfigError(str(error)) from error
