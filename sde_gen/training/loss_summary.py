"""The loss by noise level in two sentences: whether the network is learning, and whether it memorises its training data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..models.moments import Moments
from ..models.score import ScoreModel
from .validation import Validation

RANGES = (("small noise", 2.0, math.inf), ("middle", -2.0, 2.0), ("large noise", -math.inf, -2.0))
"""Of the half log-SNR, for data of unit variance: the noise is below a seventh of the data, about as large, above seven times."""
SURE = 3.0
"""Standard errors beyond which two losses differ."""
HARDLY, MOSTLY = 0.1, 0.5
"""Of the way from the loss on held-out data to that of a network that knows the training data by heart."""


@torch.no_grad()
def measure_levels(model: ScoreModel, train: Tensor, held_out: Tensor | None, seed: int = 0) -> dict[str, list[float]]:
    """The loss by noise level, over a zero network's, of training and held-out items (in their own units) by the same noise:
    "training", "held_out" and, as "training_error" and "held_out_error", their standard errors over the items."""
    normalizer = model.normalizer
    device = next((p.device for p in model.parameters()), train.device)
    found: dict[str, list[float]] = {}
    for name, items in (("training", train), ("held_out", held_out)):
        if items is None:
            continue
        x_0 = items[:128].to(device)
        x_0 = x_0 if normalizer is None else normalizer.encode(x_0)
        validation = Validation.prepare(model, x_0, model.moments if model.moments is not None else Moments.fit(x_0), seed=seed)
        states = zip(validation._noised(model), validation.zero, strict=True)
        each = torch.stack([(model.denoise(x, t) - x_0).double().square().flatten(1).mean(1) / zero for (t, x, _, _), zero in states])
        found[name] = each.mean(1).tolist()
        found[f"{name}_error"] = (each.std(1) / math.sqrt(max(2, len(x_0)))).tolist()
    return found


def summarise_losses(
    history: Sequence[Mapping[str, Any]], linear: Mapping[str, Sequence[float]], neighbour_ratio: float | None = None
) -> list[str]:
    """One or two lines on a training: `history` and `linear` as history.json has them, the latter with what `measure_levels` gives
    ("items" there);
    `neighbour_ratio`: of the samples (`metrics.neighbour_ratio`). Without a loss by noise level there is nothing to say: []."""
    measured = [entry for entry in history if "level_loss" in entry]
    if not measured:
        return []
    loss, levels = measured[-1]["level_loss"], measured[-1]["levels"]
    errors = linear.get("held_out_error") or linear.get("training_error") or [0.0] * len(levels)
    parts = []
    for name, low, high in RANGES:
        rows = [k for k, level in enumerate(levels) if low <= level < high]
        if rows:
            own, best, error = (_mean(values, rows) for values in (loss, linear["linear"], errors))
            parts.append(f"{name} {own:.2f} (best linear {best:.2f}): {_learning(own, best, error)}")
    lines = [f"learning  error over a zero network's, {'; '.join(parts)}"]
    memory = _memory(levels, linear)
    if memory:
        ratio = "" if neighbour_ratio is None or not math.isfinite(neighbour_ratio) else f"; nearest-neighbour ratio {neighbour_ratio:.2f}"
        lines.append(f"memory    {memory}{ratio}")
    return lines


def _mean(values: Sequence[float], rows: Sequence[int]) -> float:
    return sum(values[k] for k in rows) / len(rows)


def _learning(own: float, best: float, error: float) -> str:
    if not math.isfinite(own):
        return "not finite"
    margin = SURE * error
    if own < best - margin:
        return "learning, better than linear"
    if own <= best + margin:
        return "as good as linear" if best < 1 - margin else "no linear denoiser does anything here, nor does it"
    if own < 1 - margin:
        return "learning, not yet as good as linear"
    return "no better than zero" if own <= 1 + margin else "worse than zero"


def _memory(levels: Sequence[float], linear: Mapping[str, Sequence[float]]) -> str:
    """Of the range in which the network is nearest to knowing the training data by heart."""
    if "held_out" not in linear or "training" not in linear:
        return ""
    train, held, best = linear["training"], linear["held_out"], linear.get("best") or [0.0] * len(levels)
    found = []
    for name, low, high in RANGES:
        rows = [k for k, level in enumerate(levels) if low <= level < high]
        if not rows:
            continue
        a, b, least = (_mean(values, rows) for values in (train, held, best))
        error = math.hypot(_mean(linear["training_error"], rows), _mean(linear["held_out_error"], rows))
        # Where the best that the training data allows is no better than what held-out data gets, there is nothing to memorise.
        if b - least > SURE * error:
            share = (b - a) / (b - least)
            found.append((share if b - a > SURE * error else 0.0, name, a, b, least))
    if not found:
        return "no noise level where knowing the training data by heart would show"
    share, name, a, b, least = max(found)
    numbers = f"{a:.2f} on training data, {b:.2f} on held-out data, {least:.2f} if it were known by heart"
    verdict = "memorises" if share > MOSTLY else "memorises in part" if share > HARDLY else "does not memorise"
    return f"{verdict} ({name}: {numbers})"


def warnings_of_losses(lines: Sequence[str]) -> list[str]:
    """Of the lines of `summarise_losses`, what is wrong with the training, a line each."""
    found = []
    for line in lines:
        text = line[10:]
        if line.startswith("memory"):
            found += [f"the network {text}"] if text.startswith("memorises") else []
            continue
        parts = text.removeprefix("error over a zero network's, ").split("; ")
        found += [f"the loss over a zero network's at {part}" for part in parts if part.endswith(BAD)]
    return found


BAD = ("no better than zero", "worse than zero", "not finite")
"""Verdicts on a range of noise in which the network is of no use."""
