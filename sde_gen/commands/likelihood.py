"""What a trained run says of data: bits per dimension or nats with error bars, pictures, and data that it has not seen."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import parallel, report
from ..data import rows_drawn
from ..discrete import DiscreteChain, Elbo, elbo, elbo_continuous
from ..likelihood.bits_per_dim import DEQUANTISATIONS, BitsPerDim, bits_per_dim, matching_time
from ..likelihood.classify import STRATA, classify
from ..likelihood.divergence import DIVERGENCES
from ..likelihood.flow import log_likelihood_together, prior_mismatch
from ..metrics import share
from ..models.denoiser import counted
from ..randomness import check_seed
from ..registry import lookup
from ..report.files import write_text
from ..sdes.base import check_positive
from ..unknown_numbers import shown_number, to_json
from .config import ConfigError
from .runs import TrainedRun

MOST_STRANGE = 100
"""Images of each kind that is not in the data."""
SEED_OF_ORDER = 0
CHAINS = {1000: 64, 50: 25}
"""Steps of the discrete view, and how many of its terms are drawn for each image."""
CONTINUOUS_TERMS = 64
CLASSIFIED, CLASSIFY_DRAWS, LEAST_CLASSIFIED = 60_000, 2, 20
"""Network evaluations that are spent on classifying held-out items, noises of each in each stratum, and the fewest items worth it."""
REASONS = {
    "std_error": "one item has no standard error",
    "trace": "one probe (--probes) does not tell the trace's error",
    "dequantisation": "one draw (--draws) does not tell the dequantisation's error",
    "each": "items that did not converge have no value",
    "term_errors": "a term that one item or none drew has no error, and one that none drew no value",
}
"""Why a field of likelihood.json is not known."""
TWO_NUMBERS = (
    "the flow and the chain are two models that agree only where the network is the exact score, each bounded in its own way: neither "
    "must be the smaller"
)


@dataclass(frozen=True)
class LikelihoodSettings:
    """images: of each part at most; the rest as in `bits_per_dim` and `log_likelihood`."""

    images: int = 300
    dequantization: str = "truncated_normal"
    draws: int = 1
    divergence: str | None = None
    probes: int = 2
    tolerance: float = 3e-5
    seed: int = 0
    batch: int = 256


Cond = dict[str, Tensor]


def check_settings(settings: LikelihoodSettings) -> None:
    """ConfigError, in one line, before any work, for a setting that cannot be."""
    try:
        for name in ("images", "draws", "probes", "batch"):
            value = getattr(settings, name)
            if value < 1:
                raise ValueError(f"{name} must be a whole number of at least 1, got {value!r}")
        check_positive("tolerance", settings.tolerance)
        check_seed(settings.seed)
        lookup(dict.fromkeys(DEQUANTISATIONS), "dequantization", settings.dequantization)
        if settings.divergence is not None:
            lookup(DIVERGENCES, "divergence", settings.divergence)
    except (TypeError, ValueError) as error:
        raise ConfigError(str(error)) from error


def likelihood_run(run: TrainedRun, settings: LikelihoodSettings, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Score the run's training and held-out data and, for images, noise, inverted and constant ones; say, draw and keep the results.

    likelihood/ in the run directory gets likelihood.json, histogram.png and, for images, extremes.png. Data of integers (the data set
    has `levels`) are measured in bits per dimension by both dequantisations and by the bounds of the discrete view and its limit, with
    terms.png; others by their density in nats per dimension. Under torchrun all processes call this and share the data out; every one
    of them gets the results, the first one writes and draws.
    """
    place = run.directory / "likelihood"
    place.mkdir(parents=True, exist_ok=True)
    parts = _parts(run, settings)
    discrete = run.data.levels is not None
    unit = "bits/dim" if discrete else "nats/dim"
    found = {name: (_bits if discrete else _nats)(run, x, cond, settings) for name, (x, cond) in parts.items()}
    for name, (value, _) in found.items():
        say(f"{name:<10}{value['line']}")
    other = next(name for name in ("uniform", "truncated_normal") if name != settings.dequantization)
    measured = "held-out" if "held-out" in parts else "training"
    if discrete:
        x, cond = parts[measured]
        beside = _bits(run, x, cond, settings, other)[0]
        say(f"{'':<10}{beside['line']} {measured} by {other.replace('_', '-')} dequantisation: a bound of its own kind")
        found[f"{measured}, {other}"] = (beside, beside["each"])
        masked = run.model.valid(run.model.conditions(cond, len(x), x.device)) is not None
        bounds = {} if masked else _bounds(run, x, cond, settings)  # those of a chain are for data without a mask
        for k, (name, bound) in enumerate(bounds.items()):
            what = "the limit of ever more steps" if name == "continuous" else f"the same weights as a {name}"
            say(f"{'chain' if k == 0 else '':<10}{bound} {measured}, {what}")
            found[f"{measured}, {name}"] = (_fields(bound), bound.each)
        if bounds:
            say(f"{'':<10}({TWO_NUMBERS})")
    if "held-out" in found:
        a, b = (found[name][0] for name in ("training", "held-out"))
        gap = (b["value"] - a["value"]) * (1 if discrete else -1)
        error = math.hypot(a["std_error"], b["std_error"])
        say(f"{'gap':<10}held-out data is {gap:.3f} +- {shown_number(error, '.3f')} {unit} less likely than training data")
    classified = _classified(run, *parts["held-out"], settings) if "held-out" in parts else {}
    if classified:
        say(f"{'classes':<10}{classified['line']}")
    mismatch = prior_mismatch(run.model, torch.Size(run.data.shape))
    if not discrete:
        blur = math.exp(-float(run.model.sde.half_log_snr(run.model.sde.t_min)))
        say(f"{'density':<10}of the data blurred by {blur:.2g} of their standard deviation, the noise at t_min")
    say(f"{'prior':<10}{mismatch:.1g} nats from the data's own Gaussian at t_max")
    result = {
        "unit": unit,
        "settings": vars(settings),
        "data": run.data.signature(),
        "prior_mismatch_nats": mismatch,
        "parts": {name: {k: v.tolist() if isinstance(v, Tensor) else v for k, v in value.items()} for name, (value, _) in found.items()},
    }
    if classified:
        result["classified"] = classified
    if parallel.rank() > 0:
        return result
    values = {name: each for name, (_, each) in found.items() if name in parts}
    report.plot_likelihoods(values, place / "histogram.png", unit)
    files = ["histogram.png"]
    if discrete and bounds:
        chains = {name: bound for name, bound in bounds.items() if name != "continuous" and "fixed_large" not in name}
        report.plot_terms(chains, place / "terms.png", bounds["continuous"])
        files.append("terms.png")
    x = parts[measured][0]
    if x.ndim == 4:
        report.picture_extremes(x, found[measured][1], place / "extremes.png", run.data.value_range, unit, discrete)
        files.append("extremes.png")
    write_text(place / "likelihood.json", to_json(result, 1))
    say(f"pictures  {', '.join(str(place / name) for name in files)}")
    say(f"numbers   {place / 'likelihood.json'}")
    return result


def _parts(run: TrainedRun, settings: LikelihoodSettings) -> dict[str, tuple[Tensor, Cond]]:
    data, generator, names = run.data, torch.Generator().manual_seed(SEED_OF_ORDER), list(run.model.encoders)

    def part(x: Tensor, cond: Mapping[str, Any], rows: Tensor) -> tuple[Tensor, Cond]:
        return x[rows], {name: value[rows] for name, value in cond.items()}

    parts = {"training": part(data.train, data.conditions(names), torch.randperm(len(data.train), generator=generator)[: settings.images])}
    held_out, of_held_out = data.held_out(names)
    if held_out is not None:
        parts["held-out"] = part(held_out, of_held_out, rows_drawn(len(held_out), settings.images, SEED_OF_ORDER))
    if data.levels is not None:
        x, cond = parts["held-out" if held_out is not None else "training"]
        x, cond = part(x, cond, rows_drawn(len(x), MOST_STRANGE, SEED_OF_ORDER))
        shape = tuple(x.shape)
        parts["noise"] = torch.randint(0, data.levels, shape, generator=generator).float(), cond
        parts["inverted"] = data.levels - 1 - x, cond
        grey = torch.randint(0, data.levels, (shape[0], *(1,) * len(data.shape)), generator=generator)
        parts["constant"] = grey.float().expand(shape).contiguous(), cond
    return parts


def _classified(run: TrainedRun, x: Tensor, cond: Cond, settings: LikelihoodSettings) -> dict[str, Any]:
    """How many of as many items as `CLASSIFIED` network evaluations allow are classified right by their denoising errors, drawn from x;
    empty for a network that is told no label."""
    labels = run.data.train_labels
    if "label" not in run.model.encoders or labels is None or not run.data.classifiable:
        return {}
    counts = labels.bincount(minlength=run.data.classes or 0)
    count, chance = CLASSIFIED // (len(counts) * STRATA * CLASSIFY_DRAWS), float(counts.max() / counts.sum())
    if count < LEAST_CLASSIFIED:
        line = f"not classified: with {len(counts)} classes {CLASSIFIED:,} network evaluations are enough for {count} items alone"
        return {"items": 0, "line": line}
    rows = rows_drawn(len(x), count, settings.seed)
    given, batch = {name: value[rows] for name, value in cond.items()}, max(len(counts), settings.batch)
    found = classify(run.model, x[rows], len(counts), counts, draws=CLASSIFY_DRAWS, seed=settings.seed, batch_size=batch, cond=given)
    right = share(found.label.cpu() == given["label"])
    value = f"{right.value:.1%} +- {right.std_error:.1%}"
    line = f"{value} of {len(rows)} held-out items are classified right by their denoising errors (the largest class alone: {chance:.1%})"
    return {"value": right.value, "std_error": right.std_error, "items": len(rows), "chance": chance, "line": line}


def _options(settings: LikelihoodSettings) -> dict[str, Any]:
    names = ("divergence", "probes", "seed")
    chosen = {name: getattr(settings, name) for name in names}
    return chosen | {"rtol": settings.tolerance, "atol": settings.tolerance, "batch_size": settings.batch}


def _bits(
    run: TrainedRun, x: Tensor, cond: Cond, settings: LikelihoodSettings, dequantization: str | None = None
) -> tuple[dict[str, Any], Tensor]:
    kind = settings.dequantization if dequantization is None else dequantization
    found: BitsPerDim = bits_per_dim(
        run.model, x.long(), run.data.levels, kind, settings.draws, together=True, cond=cond, **_options(settings)
    )
    fields = {name: value for name, value in vars(found).items() if name not in ("each_error", "each_solver")}
    return _with_reason(fields | {"line": str(found), "dequantization": kind, "images": len(x)}), found.each


def _bounds(run: TrainedRun, x: Tensor, cond: Cond, settings: LikelihoodSettings) -> dict[str, Elbo]:
    """The ELBO of the discrete view and of its limit, all from the time at which truncated-normal dequantisation takes the flow's
    density, with the same noise."""
    model = run.model
    try:
        t = matching_time(model, x.shape[1:], 1.0)[0]
    except ValueError:  # channels of different scales have no such time
        t = model.sde.t_min
    common: dict[str, Any] = {"seed": settings.seed, "cond": cond, "batch_size": settings.batch, "together": True}
    bounds = {}
    for steps, terms in CHAINS.items():
        chain = DiscreteChain.from_sde(model.sde, steps, "half_log_snr", t)
        for variance in ("fixed_small",) if getattr(model, "variance", None) is None else ("fixed_small", "fixed_large", "learned"):
            name = f"chain of {steps} steps" + (f", {variance}" if variance != "fixed_small" else "")
            bounds[name] = elbo(model, x.long(), chain, run.data.levels, variance=variance, terms=terms, **common)
    bounds["continuous"] = elbo_continuous(model, x.long(), run.data.levels, t, CONTINUOUS_TERMS, **common)
    return bounds


def _fields(bound: Elbo) -> dict[str, Any]:
    """What likelihood.json keeps of a bound."""
    parts = {name: getattr(bound, name).value for name in ("decoder", "diffusion", "prior")}
    curves = {name: getattr(bound, name) for name in ("times", "edges", "terms", "term_errors")}
    whole = {"value": bound.value, "std_error": bound.std_error, "each": bound.each, "line": str(bound), "images": len(bound.each)}
    return _with_reason(whole | parts | {"t_min": float(bound.times[0]), "half_log_snr": curves.pop("edges")} | curves)


def _nats(run: TrainedRun, x: Tensor, cond: Cond, settings: LikelihoodSettings) -> tuple[dict[str, Any], Tensor]:
    found = log_likelihood_together(run.model, x, cond=cond, **_options(settings))
    valid = run.model.valid(run.model.conditions(cond, len(x), found.log_prob.device))
    used, dim = found.converged, x[0].numel() if valid is None else float(counted(valid, x.shape).double().mean())
    log_prob, what, codec = found.log_prob, "log-density", run.data.codec
    if codec is not None:  # of a row of the table: a column is a dimension
        there = x if valid is None else x.masked_fill(~valid.to(x.device), math.nan)
        drawn = torch.from_numpy(codec.log_q(there.cpu().numpy())).to(log_prob)
        log_prob, dim, what = log_prob - drawn, len(codec.names), "bound on log P of a row, over its columns"
        if valid is not None:  # of the values that are there
            dim = float(there[:, [place.start for place in codec.places]].isnan().logical_not().sum(1).double().mean())
    each = (log_prob / dim).double().cpu()
    count = int(used.sum())
    if not count:
        raise ValueError("no log-likelihood converged")
    error = float(each[used.cpu()].std()) / math.sqrt(count) if count > 1 else math.nan
    trace = float(found.std_error[used].double().square().sum().sqrt()) / count / dim
    solver = float(found.solver_error[used].double().mean()) / dim
    value = float(each[used.cpu()].mean())
    lost = "" if count == len(x) else f"; {len(x) - count} of {len(x)} did not converge and are left out"
    of_items, of_trace = shown_number(error, ".4f"), shown_number(trace, ".4f")
    line = f"{value:.4f} +- {of_items} nats/dim ({what}; trace {of_trace}; solver {solver:.1g}{lost})"
    fields = {"value": value, "std_error": error, "trace": trace, "solver": solver, "each": each, "line": line, "images": count}
    return _with_reason(fields), each


def _with_reason(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields, and beside them why some are not known, where some are not."""
    unknown = [name for name in REASONS if bool(torch.as_tensor(fields.get(name, 0.0)).isnan().any())]
    return fields | ({"reason": "; ".join(REASONS[name] for name in unknown)} if unknown else {})
