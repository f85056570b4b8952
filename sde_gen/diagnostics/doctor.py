"""Why samples are bad: the causes that users meet, each told apart by measurements with error bars."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..conditions import Label
from ..data import Dataset, as_items, rows_drawn
from ..metrics import Estimate
from ..models.denoiser import Denoiser
from ..models.measured_moments import LARGEST, measure_moments
from ..models.moments import Moments
from ..models.score import CLOCKS, PREDICTIONS, ScoreModel
from .finding import SIGNIFICANCE, Finding, significant, std_error
from .level_errors import ITEMS, REFERENCE, Learned, LevelErrors
from .sampling_checks import check_prior, check_samples

MUCH = 0.2
"""Another explanation, or other weights, is named where it is better by this share of what can be learned."""
TIED, CANDIDATES = 0.01, 3
"""Explanations whose errors differ by less than the first are one; the second is how many are measured in full after a first look."""
HALF = 0.5
"""An explanation must account for this share of what can be learned, and a network must have learned it."""


def diagnose(
    model: Denoiser,
    data: Dataset | Tensor,
    raw: Denoiser | None = None,
    sampling: Mapping[str, Any] | None = None,
    seed: int = 0,
    samples: int | None = None,
) -> list[Finding]:
    """Name the causes of bad samples; the list is empty where nothing wrong is found.

    Each explanation is judged by the share of what can be learned that the model has learned under it, measured on the same noised
    items (`LevelErrors`). A cause is named where it changes that share by more than `MUCH` beyond `SIGNIFICANCE` standard errors.
    Faults that make others unmeasurable are reported alone. Whether the network's output and clock mean what the model says is asked
    of a `ScoreModel` alone; every other Denoiser gets all other checks.

    model: any Denoiser. The only condition that it is given is the data's labels, as `label`, where its network has `classes`.
    data: a data set, of which the held-out part is measured on where it has 32 items or more; or items (N, *), N at least 32. Both
        are in their own units.
    raw: the model with its last weights, where `model` has averaged ones.
    sampling: the arguments of `sample` that the samples in question were drawn with ("solver", "steps", "grid" and the solver's
        options). None leaves the solver alone.
    seed: seeds the choice of items, the noise and the samples.
    samples: so many samples are drawn to check the solver. None draws as many as `CALLS` network evaluations allow, from 32 to 1,000;
        0 draws none.

    Raises ValueError for fewer than 32 items, and TypeError for a model that is no Denoiser or cannot be called with these data, or
    data of another kind.
    """
    for name, given in (("model", model), *(() if raw is None else (("raw", raw),))):
        if not isinstance(given, Denoiser):
            raise TypeError(f"{name} must be a Denoiser such as ScoreModel, got {type(given).__name__}")
    if not isinstance(data, Dataset | Tensor):
        raise TypeError(f"data must be a Dataset or a tensor (N, *), got {type(data).__name__}")
    x, labels, reference, of_reference = _parts(data, seed, _classes(model) is not None)
    findings = _broken_weights(model, raw)
    if any(finding.severity == "fault" for finding in findings):
        return findings
    device = next((p.device for p in model.parameters()), x.device)
    encode = (lambda part: part) if model.normalizer is None else model.normalizer.encode
    z, z_reference = (encode(part.to(device)).float() for part in (x, reference))
    classes = _classes(model)
    known = None
    if classes is not None and labels is not None and of_reference is not None:
        known = labels.to(device), of_reference.to(device)
    for given in (model,) if raw is None else (model, raw):
        _check_call(given, z, None if known is None else known[0])
    wrong_range = _data_range(model, z_reference)
    if wrong_range is not None:
        return [*findings, wrong_range]
    with torch.no_grad():
        measured = LevelErrors(model, z, z_reference, known, seed)
        learned = measured.learned(model)
        if not all(map(math.isfinite, learned.by_level)):
            bad = sum(not math.isfinite(level) for level in learned.by_level)
            text = f"finite weights, but answers that are not finite at {bad} of {len(learned.by_level)} noise levels"
            advice = "look for overflow: bfloat16 or float16, a clock that grows without bound, an unnormalised input"
            return [*findings, Finding("NaN answers", "fault", text, advice, {"levels": bad})]
        examined = model
        if raw is not None:
            young = _young_average(measured, learned, raw)
            if young is not None:
                findings.append(young)
                examined, learned = raw, measured.learned(raw)
        meaning = _wrong_meaning(measured, examined, learned) if isinstance(examined, ScoreModel) else None
        if meaning is not None:
            findings.append(meaning)
        if known is not None and meaning is None:
            findings += _ignored_labels(measured, examined)
        if not any(finding.severity == "fault" for finding in findings):
            findings += _not_learned(measured.learned(examined, columns=True)) or _bad_levels(measured, examined)
        findings += check_prior(model, measured)
        if sampling is not None and samples != 0 and not any(finding.severity == "fault" for finding in findings):
            findings += check_samples(model, reference, of_reference, classes, dict(sampling), seed, samples)
    return findings


def _classes(model: Denoiser) -> int | None:
    """The number of the model's labels; None where it takes none."""
    label = model.encoders.get("label")
    return label.classes if isinstance(label, Label) else None


@torch.no_grad()
def _check_call(model: Denoiser, z: Tensor, labels: Tensor | None) -> None:
    """TypeError, one line, for a model that cannot denoise such items."""
    cond = {} if labels is None else {"label": labels[:2]}
    try:
        model.denoise(z[:2], model.sde.t_max, **cond)
    except (TypeError, ValueError, IndexError, RuntimeError) as error:
        reason = " ".join(str(error).split())
        raise TypeError(
            f"diagnose cannot call this {type(model).__name__} with items of shape {tuple(z.shape[1:])} and "
            f"{'no condition' if labels is None else 'a label each'}: {reason}"
        ) from error


def _parts(data: Dataset | Tensor, seed: int, labelled: bool) -> tuple[Tensor, Tensor | None, Tensor, Tensor | None]:
    """Items to measure on with their labels, and others for reference with theirs."""
    generator = torch.Generator().manual_seed(seed)
    train, labels = (data, None) if isinstance(data, Tensor) else (data.train, data.train_labels)
    train = train if train.is_floating_point() else as_items(train)
    bad = int((~torch.isfinite(train)).sum())
    if bad:
        raise ValueError(f"data holds {bad} NaN or infinite value(s) among {train.numel()}; finite numbers are needed")
    if len(train) < 32:
        raise ValueError(f"data has {len(train)} items; at least 32 are needed to measure anything")
    order = torch.randperm(len(train), generator=generator)
    held, cond = (None, {}) if isinstance(data, Tensor) else data.held_out(("label",) if labelled and labels is not None else ())
    of_held = cond.get("label")
    if held is not None and len(held) >= 32:
        rows = rows_drawn(len(held), ITEMS, seed)
        x, of_x = held[rows], None if of_held is None else of_held[rows]
    else:
        count = min(ITEMS, len(train) // 2)
        x, of_x = train[order[:count]], None if labels is None else labels[order[:count]]
        order = order[count:]
    order = order[:REFERENCE]
    return x, of_x, train[order], None if labels is None else labels[order]


def _broken_weights(model: Denoiser, raw: Denoiser | None) -> list[Finding]:
    findings = []
    for name, owner in (("averaged weights" if raw is not None else "weights", model), ("last weights", raw)):
        weights = {} if owner is None else {key: value for key, value in owner.state_dict().items() if value.is_floating_point()}
        bad = {key: count for key, value in weights.items() if (count := int((~torch.isfinite(value)).sum()))}
        if bad:
            text = f"{sum(bad.values())} of the {name} are NaN or infinite, in {len(bad)} tensors ({', '.join(list(bad)[:3])}, ...)"
            advice = (
                "go back to a checkpoint from before, then a lower lr, a longer warmup or a smaller clip; without bfloat16 if it was on"
            )
            findings.append(Finding("NaN weights", "fault" if owner is model else "warning", text, advice, {"values": sum(bad.values())}))
    return findings


def _data_range(model: Denoiser, z: Tensor) -> Finding | None:
    """Find data whose mean or spread, encoded, is not that of the data that the model was trained on, as far as it knows them."""
    shape = tuple(z.shape[1:])
    known, source = model.moments, "the model's moments"
    if known is None and z[0].numel() <= LARGEST:
        known, source = measure_moments(model, shape, z.dtype, z.device), "what the model itself says of its data at high noise"
    if known is None:
        if model.data_std is None:
            return None
        known, source = Moments(torch.zeros(shape), variance=torch.full(shape, model.data_std**2)), "data_std"
    mean, variances, vectors = known.axes(shape)
    per_element = variances if vectors is None else vectors.square() @ variances
    flat = z.flatten(1).double()
    expected = float(per_element.mean().sqrt())
    if not expected > 0:
        return None
    # Means over elements, so that each item gives one number and the items' spread gives the error.
    shift = (flat - mean).mean(1) / expected
    square = (flat - flat.mean(0)).square().mean(1)
    ratio = Estimate(float(square.mean()) ** 0.5 / expected, std_error(square) / (2 * float(square.mean()) ** 0.5 * expected + 1e-300))
    off = Estimate(float(shift.mean()), std_error(shift))
    far = abs(off.value) - SIGNIFICANCE * off.std_error > HALF
    scaled = ratio.value + SIGNIFICANCE * ratio.std_error < HALF or ratio.value - SIGNIFICANCE * ratio.std_error > 1 / HALF
    if not (far or scaled):
        return None
    ends = float(((flat == flat.amin()) | (flat == flat.amax())).double().mean())
    text = f"the data's standard deviation is {ratio} times, and its mean {off} standard deviations from, that of {source}"
    clipped = f"; {ends:.0%} of the values sit at the two ends: clipped?" if ends > MUCH else ""
    advice = (
        "give the data in the units that the model was trained in (0..255, 0..1 or -1..1?), or fit the normaliser to these and train again"
    )
    numbers = {
        "std_ratio": ratio.value,
        "std_ratio_error": ratio.std_error,
        "shift": off.value,
        "shift_error": off.std_error,
        "at_ends": ends,
    }
    return Finding("wrong data range", "fault", text + clipped, advice, numbers)


def _young_average(measured: LevelErrors, learned: Learned, raw: Denoiser) -> Finding | None:
    of_raw = measured.learned(raw)
    if not significant(learned.excess - of_raw.excess - MUCH * learned.scale):
        return None
    text = f"the averaged weights have learned {learned.share} of what can be learned, the last ones {of_raw.share}"
    advice = "sample with the last weights (load(..., ema=False)), train longer, or average over less: a smaller ema_width (ema decay)"
    return Finding("EMA too young", "fault", text, advice, {"averaged": learned.share.value, "raw": of_raw.share.value})


@dataclass(frozen=True)
class _Explanation:
    name: str
    text: str
    advice: str
    model: ScoreModel


def _with_clock(model: ScoreModel, map_: Callable[[Tensor], Tensor]) -> ScoreModel:
    network = model.network
    return model.with_network(lambda x, c, **cond: network(x, map_(c), **cond))


def _explanations(model: ScoreModel) -> Iterator[_Explanation]:
    """The same network understood in other ways, with one thing changed at a time."""
    network, sde = model.network, model.sde
    advice = "turn the sign: the target is the score grad log p, noise is -sigma times it, and the network's answer has the other sign"
    yield _Explanation("flipped sign", "minus the output", advice, model.with_network(lambda x, c, **cond: -network(x, c, **cond)))
    for name in PREDICTIONS:
        if name == model.prediction or (name == "edm" and model.data_std is None):
            continue
        settings = model.settings() | {"prediction": name}
        other = ScoreModel(network, sde, **settings, normalizer=model.normalizer, moments=model.moments)
        yield _Explanation("wrong prediction type", f"the output as {name!r}", f"use prediction={name!r} with this network", other)
    clocks: dict[str, Callable[[Tensor], Tensor]] = {}
    for name in CLOCKS:
        if name != model.clock:
            settings = model.settings() | {"clock": name}
            other = ScoreModel(network, sde, **settings, normalizer=model.normalizer, moments=model.moments)
            yield _Explanation("wrong time scale", f"the clock {name!r}", f"use clock={name!r} with this network", other)
    for factor in (1000.0, 0.001, 4.0, 0.25, 2.0, 0.5, -1.0):
        clocks[f"{factor:g} times the clock {model.clock!r}"] = partial(torch.mul, other=factor)
    ends = [float(CLOCKS[model.clock](sde, torch.tensor(t, dtype=torch.float64))) for t in (sde.t_min, sde.t_max)]
    for part in (-0.25, -0.125, 0.125, 0.25):
        shift = part * abs(ends[1] - ends[0])
        clocks[f"the clock {model.clock!r} {shift:+.3g}"] = partial(torch.add, other=shift)
    total = ends[0] + ends[1]
    clocks[f"the clock {model.clock!r} run backwards ({total:.3g} - c)"] = lambda c: total - c
    for text, map_ in clocks.items():
        yield _Explanation(
            "wrong time scale", text, f"tell this network {text}: wrap it, or register it in CLOCKS", _with_clock(model, map_)
        )
    if model.data_std is not None:
        settings = model.settings() | {"scale_input": not model.scale_input}
        other = ScoreModel(network, sde, **settings, normalizer=model.normalizer, moments=model.moments)
        text = f"scale_input={not model.scale_input}"
        yield _Explanation("wrong input scale", text, f"use {text} with this network", other)


def _wrong_meaning(measured: LevelErrors, model: ScoreModel, learned: Learned) -> Finding | None:
    """Find another meaning of the network's input or output that explains its answers far better than the declared one."""
    part = measured.thinned(64, 2)
    screened: list[tuple[float, int, _Explanation]] = []
    for number, explanation in enumerate(_explanations(model)):
        try:
            screened.append((float(part.learned(explanation.model).excess.mean()), number, explanation))
        except (ValueError, TypeError, RuntimeError, IndexError):
            continue  # a clock or prediction that does not exist for this SDE, or a network that refuses such a clock
    screened.sort(key=lambda item: item[:2])
    found: list[tuple[int, _Explanation, Learned]] = []
    for _, number, explanation in screened[:CANDIDATES]:
        other = measured.learned(explanation.model)
        if significant(learned.excess - other.excess - MUCH * learned.scale) and significant(other.learned) and other.share.value > HALF:
            found.append((number, explanation, other))
    if not found:
        return None
    # The first of all that explain equally well: on VP a "v" network with its sign turned is an "edm" one.
    least = min(float(other.excess.mean()) for _, _, other in found)
    found = sorted((item for item in found if float(item[2].excess.mean()) <= least + TIED), key=lambda item: item[0])
    _, best, other = found[0]
    alike = f" (the same with {', '.join(explanation.text for _, explanation, _ in found[1:])})" if len(found) > 1 else ""
    correlation = _correlation(measured, model)
    text = (
        f"as declared ({model.prediction!r}, clock {model.clock!r}) it has learned {learned.share} of what can be learned, "
        f"with {best.text} {other.share}{alike}; its output correlates {correlation:+.2f} with the declared target"
    )
    numbers = {"declared": learned.share.value, "declared_error": learned.share.std_error, "explained": other.share.value}
    return Finding(best.name, "fault", text, best.advice, numbers | {"explained_error": other.share.std_error, "correlation": correlation})


def _correlation(measured: LevelErrors, model: ScoreModel) -> float:
    """The correlation of the network's output with its target, as a mean over levels."""
    denoise = measured.denoiser(model)
    values = []
    for t, x in measured.states():
        skip = float(model.scales(torch.tensor(t, dtype=torch.float64)).skip)
        output, target = (denoise(x, t) - skip * x).double().flatten(), (measured.items - skip * x).double().flatten()
        size = float(output.norm() * target.norm())
        values.append(float(output @ target) / size if size > 0 and math.isfinite(size) else 0.0)
    return sum(values) / len(values)


def _ignored_labels(measured: LevelErrors, model: Denoiser) -> list[Finding]:
    """Find a model that does not use the labels, though they tell something about the items."""
    assert measured.labels is not None
    labels, of_reference = measured.labels
    classes = of_reference.unique()
    if len(classes) < 2 or not bool(torch.isin(labels, classes).all()):
        return []
    possible = (measured.errors(measured.linear) - measured.errors(measured.linear_by_class())).mean(0)
    wrong = labels.roll(1)
    position = torch.searchsorted(classes, labels)
    wrong = torch.where(wrong == labels, classes[(position + 1) % len(classes)], wrong)
    right = measured.errors(measured.denoiser(model))
    gain = (measured.errors(measured.denoiser(model, wrong)) - right).mean(0)
    best, own = (Estimate(float(value.mean()), std_error(value)) for value in (possible, gain))
    if not (significant(possible) and significant(MUCH * possible - gain)):
        return []
    unit = float(right.mean())
    costs = f"{own.value / unit:.2%} +- {own.std_error / unit:.2%}"
    text = f"a wrong label raises its error by {costs}; knowing the classes' means alone is worth {best.value / unit:.2%}"
    advice = (
        "check that the label reaches the network in training and sampling, is not always the null label (label_dropout), and train longer"
    )
    numbers = {"gain": own.value, "gain_error": own.std_error, "possible": best.value, "possible_error": best.std_error}
    return [Finding("conditioning ignored", "fault", text, advice, numbers)]


def _not_learned(learned: Learned) -> list[Finding]:
    share = learned.share
    if not (significant(learned.learnable) and significant(learned.excess - HALF * learned.scale)):
        return []
    text = (
        f"the network has learned {share} of what simple denoisers know of this data "
        "(1: linear, nearest neighbours or each entry alone; 0: answers 0)"
    )
    advice = "train longer, try another lr, and see the loss by noise level in loss.png; no other explanation of its output fits better"
    return [Finding("not learned", "fault", text, advice, {"share": share.value, "share_error": share.std_error})]


def _bad_levels(measured: LevelErrors, model: Denoiser) -> list[Finding]:
    """Find noise levels at which E[x_0 | x_t], which is what sampling uses, is worse than the input scaled by one number.

    In the units of a noise or score prediction the same error looks small.
    """
    errors = measured.errors(measured.denoiser(model))
    scaling = Moments(measured.moments.mean, variance=measured.reference.double().var(0).mean())
    simple = measured.errors(lambda x, t: scaling.denoise(x, *measured.marginal(t)))
    bad = [k for k in range(len(errors)) if significant(errors[k] - simple[k] / HALF)]
    if not bad:
        return []
    worst = max(bad, key=lambda k: float(errors[k].mean() / simple[k].mean()))
    times, unit = float(errors[worst].mean() / simple[worst].mean()), float(simple[worst].mean())
    lambdas = measured.lambdas[bad].tolist()
    text = (
        f"at {len(bad)} of {len(errors)} noise levels (half log-SNR {min(lambdas):.1f} to {max(lambdas):.1f}) E[x_0 | x_t] is up to "
        f"{times:.3g} +- {std_error(errors[worst]) / unit:.2g} times as wrong as the input scaled"
    )
    advice = "use prediction 'edm' or 'v' (noise and score predictions divide their errors by alpha/sigma), or train these levels more"
    numbers = {"levels": len(bad), "worst": times, "lowest": min(lambdas), "highest": max(lambdas)}
    return [Finding("bad noise levels", "fault", text, advice, numbers)]
