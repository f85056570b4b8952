"""The loss by noise level in two sentences: whether the network is learning, and whether it memorises its training data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from ..data import rows_drawn
from ..models.moments import Moments
from ..models.score import ScoreModel
from ..unknown_numbers import shown_number
from .validation import MOST_SAMPLES, Validation

RANGES = (("small noise", 2.0, math.inf), ("middle", -2.0, 2.0), ("large noise", -math.inf, -2.0))
"""Of the half log-SNR, for data of unit variance: the noise is below a seventh of the data, about as large, above seven times."""
SURE = 3.0
"""Standard errors beyond which two losses differ."""
SMALL = 0.01
"""Losses over the zero network's that differ by no more are taken for equal, however sure the difference."""
HARDLY, MOSTLY = 0.1, 0.5
"""Of the way from the loss on held-out data to that of a network that has memorised the training data."""


@torch.no_grad()
def measure_levels(
    model: ScoreModel,
    train: Tensor,
    held_out: Tensor | None,
    seed: int = 0,
    train_cond: Mapping[str, Tensor] | None = None,
    held_out_cond: Mapping[str, Tensor] | None = None,
    count: int = MOST_SAMPLES,
) -> dict[str, list[float]]:
    """The loss by noise level, over a zero network's, of training and held-out items by the same noise.

    train, held_out: (N, *) and (M, *) in their own units; at most `count` of each are drawn, as a training with this seed draws its own.
    seed: of the draw and the noise.
    train_cond, held_out_cond: their conditions, (N, *) and (M, *).

    Returns "training", "held_out" and, as "training_error" and "held_out_error", their standard errors over the items.
    """
    normalizer = model.normalizer
    device = next((p.device for p in model.parameters()), train.device)
    found: dict[str, list[float]] = {}
    for name, items, of_items in (("training", train, train_cond), ("held_out", held_out, held_out_cond)):
        if items is None:
            continue
        rows = rows_drawn(len(items), min(count, MOST_SAMPLES), seed)
        x_0 = items[rows].to(device)
        x_0 = (x_0 if normalizer is None else normalizer.encode(x_0)).float()
        cond = model.conditions({key: value[rows] for key, value in (of_items or {}).items()}, len(rows), device)
        moments = model.moments if model.moments is not None else Moments.fit(x_0)
        each = Validation.prepare(model, x_0, moments, cond, seed).measure_each(model)
        found[name] = each.mean(1).tolist()
        spread = each.std(1) if len(x_0) > 1 else torch.full_like(each[:, 0], math.nan)  # one item does not tell it
        found[f"{name}_error"] = (spread / math.sqrt(max(2, len(x_0)))).tolist()
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
            heart = f", memorised {shown_number(_mean(linear['best'], rows), '.2f')}" if "best" in linear else ""
            parts.append(
                f"{name} {shown_number(own, '.2f')} (best linear {shown_number(best, '.2f')}{heart}): {_learning(own, best, error)}"
            )
    lines = [f"learning  error over a zero network's, {'; '.join(parts)}"]
    memory = _memory(levels, linear)
    if memory:
        ratio = "" if neighbour_ratio is None or not math.isfinite(neighbour_ratio) else f"; nearest-neighbour ratio {neighbour_ratio:.2f}"
        lines.append(f"memory    {memory}{ratio}")
    return lines


def _mean(values: Sequence[float], rows: Sequence[int]) -> float:
    return sum(values[k] for k in rows) / len(rows)


def _learning(own: float, best: float, error: float) -> str:
    """The verdict on a loss: where it stands to the zero network's, 1, and to the best linear denoiser's, beyond `SURE` errors."""
    if not math.isfinite(own):
        return "not finite"
    margin = max(SURE * error, SMALL)
    linear = min(best, 1.0)  # one that is worse than zero is no measure
    if own > 1 + margin:
        return "worse than zero"
    if own < linear - margin:
        return "learning, better than linear" if best <= 1 + SMALL else "learning, better than zero, which linear is not"
    if own < 1 - margin:
        return "learning, as good as linear" if own <= linear + margin else "learning, not yet as good as linear"
    if own >= 1 - SMALL:
        return LIKE_ZERO if linear >= 1 - SMALL else NO_BETTER if own > linear + margin else f"like zero, within +- {margin:.2f} of linear"
    return f"not told from zero within +- {shown_number(margin, '.2f')}"


def _memory(levels: Sequence[float], linear: Mapping[str, Sequence[float]]) -> str:
    """Of the range in which the network is nearest to having memorised the training data."""
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
        return "no noise level where memorising the training data would show"
    share, name, a, b, least = max(found)
    numbers = f"{a:.2f} on training data, {b:.2f} on held-out data, {least:.2f} if it were memorised"
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
        if all(part.endswith((LIKE_ZERO, *BAD)) for part in parts) and parts[0].endswith(LIKE_ZERO):
            found.append("the loss is a zero network's at every noise level: nothing was learned, or the data hold nothing to learn")
    return found


LIKE_ZERO = "like zero, which no linear denoiser betters here"
NO_BETTER = "no better than zero"
BAD = (NO_BETTER, "worse than zero", "not finite")
"""Verdicts on a range of noise in which the network is of no use."""
