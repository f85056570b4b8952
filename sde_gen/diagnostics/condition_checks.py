"""Checks of conditions: whether the network uses what it is told, and knows what to answer when it is not told."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ..conditions import Label
from ..metrics import Estimate
from ..models.denoiser import Denoiser
from .finding import MUCH, Finding, significant, std_error
from .information import RAISE_DROP, findings, information
from .level_errors import LevelErrors

DRAWS = 2
"""Noises of each item in each stratum of the information."""
TWICE = 2.0
"""A branch is wrong at a level where its error is so many times that of the best simple denoiser."""
RIDGES = (1e-3, 1e-1, 10.0)
"""Of the linear regression of items on a condition, in units of the features' mean square."""
Cond = dict[str, Tensor]


def check_conditions(model: Denoiser, measured: LevelErrors, x: Tensor, of_reference: Cond) -> list[Finding]:
    """Find conditions that are ignored, though they tell something about the items, and a null branch that was trained too little.

    measured: items and reference in normalised units, with the items' conditions. x: the same items in the data's units.
    of_reference: the reference's conditions.
    """
    cond = measured.cond
    found = _ignored_labels(measured, model) if measured.labels is not None else []
    nulls = {name: null for name, value in cond.items() if (null := model.null(name, value)) is not None}
    if len(nulls) < len(cond) or not _answers(model, measured.items, nulls):
        return found  # a model that has no null branch is not asked for one
    for name in cond:
        if name == "label" and found:
            continue
        told = information(model, x, name, cond, DRAWS, measured.seed)
        encoder = model.encoders.get(name)
        most = entropy(cond[name], encoder.classes) if isinstance(encoder, Label) else None
        lines = findings(name, told, most)
        if any(line.name == "condition tells nothing" for line in lines):
            lines = _ignored(name, measured, _features(model, name, cond), _features(model, name, of_reference)) or lines
        found += lines
    if not any(finding.name == "null branch trained too little" for finding in found):
        found += _null_branch(model, measured, nulls)
    return found


def entropy(labels: Tensor, classes: int) -> float:
    """-sum_k p_k log p_k of the classes of `labels` (n,), those that are given, in nats: the most that they can tell."""
    shares = labels[labels < classes].bincount().double()
    return float(torch.special.entr(shares / shares.sum().clamp_min(1)).sum())


@torch.no_grad()
def _answers(model: Denoiser, z: Tensor, nulls: Cond) -> bool:
    try:
        model.denoise(z[:2], model.sde.t_max, **{name: value[:2] for name, value in nulls.items()})
    except (TypeError, ValueError, IndexError, RuntimeError, AssertionError):
        return False
    return True


def _null_branch(model: Denoiser, measured: LevelErrors, nulls: Cond) -> list[Finding]:
    """Find a model that has not learned, where it is told nothing, what simple denoisers know that are told nothing."""
    without = LevelErrors(model, measured.items, measured.reference, (nulls, {}), measured.seed)
    told, untold = measured.learned(model), without.learned(model)
    behind = [significant(one.excess - MUCH * one.scale) for one in (told, untold)]
    worse = [
        [bool(significant(errors - TWICE * best)) for errors, best in zip(one.errors(one.denoiser(model)), one.best, strict=True)]
        for one in (measured, without)
    ]
    levels = sum(off and not of_told for of_told, off in zip(*worse, strict=True))
    if (behind[0] or not behind[1]) and not levels:
        return []
    text = (
        f"told nothing, the network has learned {untold.share} of what simple denoisers know that are told nothing either, and at {levels} "
        f"of {len(worse[1])} noise levels is {TWICE:g} times as wrong; told its conditions it has learned {told.share}"
    )
    numbers = {"untold": untold.share.value, "untold_error": untold.share.std_error, "told": told.share.value, "levels": levels}
    return [Finding("null branch trained too little", "warning", text, f"{RAISE_DROP}; guidance needs both branches", numbers)]


def _features(model: Denoiser, name: str, cond: Cond) -> Tensor:
    """(n, p) float64 numbers that hold the condition: indicators of classes, or its own numbers and which of them are known."""
    encoder, value = model.encoders.get(name), cond[name]
    if isinstance(encoder, Label):
        return F.one_hot(value.long(), encoder.classes + 1).double()
    flat = value.double().flatten(1) if value.ndim > 1 else value.double()[:, None]
    known = ~torch.isnan(flat)
    return torch.cat([flat.nan_to_num(), known.double()], 1)


def _ignored(name: str, measured: LevelErrors, features: Tensor, of_reference: Tensor) -> list[Finding]:
    """Find a condition that is ignored, though a linear regression of the items on it foretells them."""
    target, items = (part.double().flatten(1) for part in (measured.reference, measured.items))
    mean, centre = target.mean(0), of_reference.mean(0)
    spread = of_reference.std(0).clamp_min(1e-9 * (1 + centre.abs()))
    a, b = ((part - centre) / spread for part in (of_reference, features))
    gram = a @ a.T / len(a)
    alone = (items - mean).square().mean(1)
    gains = []
    for ridge in RIDGES:
        size = ridge * float(gram.diagonal().mean().clamp_min(1e-12))
        weights = torch.linalg.solve(gram + size * torch.eye(len(a), dtype=a.dtype, device=a.device), target - mean)
        gains.append(alone - (items - mean - b @ a.T @ weights / len(a)).square().mean(1))
    gain = max(gains, key=lambda value: float(value.mean())).cpu()
    if not significant(gain):
        return []
    possible, unit = Estimate(float(gain.mean()), std_error(gain)), float(alone.mean())
    text = (
        f"the network answers the same whatever condition {name!r} is, of which a linear regression alone foretells "
        f"{possible.value / unit:.1%} +- {possible.std_error / unit:.1%} of the data's variance"
    )
    advice = (
        "check that the condition reaches the network in training and sampling, is not always dropped (training.drop), and train longer"
    )
    return [Finding("conditioning ignored", "fault", text, advice, {"possible": possible.value, "possible_error": possible.std_error})]


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
    gain = (measured.errors(measured.denoiser(model, label=wrong)) - right).mean(0)
    best, own = (Estimate(float(value.mean()), std_error(value)) for value in (possible, gain))
    if not (significant(possible) and significant(MUCH * possible - gain)):
        return []
    unit = float(right.mean())
    costs = f"{own.value / unit:.2%} +- {own.std_error / unit:.2%}"
    text = f"a wrong label raises its error by {costs}; knowing the classes' means alone is worth {best.value / unit:.2%}"
    advice = "check that the label reaches the network in training and sampling, is not always dropped (training.drop), and train longer"
    numbers = {"gain": own.value, "gain_error": own.std_error, "possible": best.value, "possible_error": best.std_error}
    return [Finding("conditioning ignored", "fault", text, advice, numbers)]
