"""What a run of a conditional network measures and shows beside: what its conditions tell, and samples of each by strength of guidance."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import report
from ..conditions import Condition, Label, Map, SequenceCondition, TellsValid, Text
from ..data import rows_drawn
from ..data.captions import texts_of
from ..diagnostics.condition_checks import entropy
from ..diagnostics.information import LEVELS, information
from ..guidance import guide
from ..report.files import write_text
from ..sampling.sample import sample
from ..unknown_numbers import shown_estimate, to_json
from .runs import TrainedRun, pictured
from .training_files import metrics_of

ITEMS, LEAST_ITEMS, DRAWS = 256, 32, 2
"""Items whose information is measured, at most and at least, and noises of each in each of its strata."""
SHARE = 0.05
"""Network evaluations for the information of one condition, of those of the training (a step counts three for a sample)."""
STRENGTHS = (1.0, 1.5, 2.0, 4.0)
SOLVER, STEPS = "dpm", 20
ROWS, LEAST_ROWS, EACH = 10, 2, 4
"""Conditions of the picture, at most and at least, and samples of each at most, of points `MOST_POINTS`."""
MOST_POINTS = 100
PICTURE = "conditions.png"
LONGEST = 18
"""Letters of a condition beside its samples."""


def information_of_run(run: TrainedRun) -> dict[str, dict[str, Any]]:
    """What each condition of the run's network tells, by name: the fields of `Information`, "items" and "part", what it was measured on,
    and "most", the nats that a label can tell; or a "reason" why it is not measured.

    It is of the network, so that what metrics.json holds already is not measured again. Held-out items are taken where there are some.
    """
    names = list(run.model.encoders)
    known = (metrics_of(run.directory) or {}).get("information")
    if isinstance(known, dict) and list(known) == names:
        return known
    data, training = run.data, run.config.training
    x, cond = data.held_out(names)
    part = "held-out"
    if x is None or len(x) < LEAST_ITEMS:
        x, cond, part = data.train, data.conditions(names), "training"  # type: ignore[assignment]
    affordable = int(SHARE * 3 * training.steps * training.batch / (2 * LEVELS))
    rows = rows_drawn(len(x), max(LEAST_ITEMS, min(ITEMS, affordable)), training.seed)
    x, cond = x[rows], {name: value[rows] for name, value in cond.items()}
    draws = max(1, min(DRAWS, affordable // len(x)))
    dropped = training.shares_dropped(names)
    found: dict[str, dict[str, Any]] = {}
    for name, encoder in run.model.encoders.items():
        if isinstance(encoder, TellsValid):
            found[name] = {"reason": "it says which entries are data, and is always told"}
            continue
        if name not in dropped:
            found[name] = {"reason": "the network was never without it in training (training.drop is 0)"}
            continue
        measured = information(run.model, x, name, cond, draws, training.seed, max(1, training.part // 2))
        most = entropy(cond[name], encoder.classes) if isinstance(encoder, Label) else None
        found[name] = asdict(measured) | {"part": part, "most": most}
    return found


def picture_run(run: TrainedRun) -> Path | None:
    """Draw `PICTURE` in the run directory: samples of a few conditions at each of `STRENGTHS` from the same noise, by a fast solver. It is
    of the network: one that is there stays. None for a network that takes no conditions."""
    path = run.directory / PICTURE
    names = list(run.model.encoders)
    if not names or path.exists():
        return path if names else None
    data, settings = run.data, run.config.sampling
    vectors = len(data.shape) == 1
    count = max(LEAST_ROWS, min(ROWS, settings.samples // 16, data.classes or ROWS if "label" in names else ROWS))
    each = max(8, min(MOST_POINTS, settings.samples // 100)) if vectors else max(1, min(EACH, settings.samples // 250))
    drawn = data.draw_conditions(names, count, settings.seed, alike=True)
    cond = {name: value.repeat_interleave(each, 0) for name, value in drawn.items()}
    dropped = list(run.config.training.shares_dropped(names))
    columns = {}
    for strength in STRENGTHS if dropped else STRENGTHS[:1]:
        model = run.model if strength == 1 else guide(run.model, strength, drop=dropped)
        shape = (count * each, *data.shape)
        common: dict[str, Any] = {"seed": settings.seed, "batch_size": max(1, settings.batch // 2), "progress": False}
        out = sample(model, shape, SOLVER, STEPS, cond=cond, on_failure="mask", **common)
        columns[f"strength {strength:g}"] = out.x.cpu()
    maps = {name: value for name, value in drawn.items() if isinstance(run.model.encoders[name], Map)}
    words = [_words(run.model.encoders, drawn, k) for k in range(count)]
    report.picture_conditions(columns, words, path, data.value_range, maps, pictured(data) if vectors else None)
    return path


def _words(encoders: Mapping[str, Condition], cond: Mapping[str, Tensor], row: int) -> str:
    """What the conditions of a row are, a line each; a map is shown and not told."""
    lines = []
    for name, encoder in encoders.items():
        value = cond[name][row]
        if isinstance(encoder, Map):
            continue
        if isinstance(encoder, Label):
            text = encoder.word(int(value))
        elif isinstance(encoder, Text):
            text = texts_of(value[None])[0]
        elif isinstance(encoder, SequenceCondition):
            text = f"{int((~torch.isnan(value).any(1)).sum())} places"
        else:
            numbers = value.double().reshape(-1)
            text = ", ".join("?" if number != number else f"{number:.3g}" for number in numbers[:3].tolist())
            text += ", ..." if len(numbers) > 3 else ""
        line = text if len(encoders) == 1 and (name == "label" or isinstance(encoder, Text)) else f"{name} {text}"
        lines.append(line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}...")
    return "\n".join(lines) or f"{row + 1}"


def keep_information(run: TrainedRun, found: Mapping[str, Any]) -> None:
    """Leave it in metrics.json."""
    write_text(run.directory / "metrics.json", to_json((metrics_of(run.directory) or {"solvers": {}}) | {"information": found}, 2))


def information_lines(found: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """ "label tells 2.31 +- 0.05 nats (by distance of branches 2.40 +- 0.03)", a line for each condition."""
    lines = []
    for name, one in found.items():
        if "reason" in one:
            lines.append(f"{name}: what it tells is not measured, as {one['reason']}")
            continue
        first, second = (
            shown_estimate({"value": one[key], "std_error": one[error]}, 2)
            for key, error in (("value", "std_error"), ("orthogonal", "orthogonal_error"))
        )
        most = f"; {one['most']:.2f} at most" if one.get("most") is not None else ""
        on = "" if one["part"] == "held-out" else f", on {one['part']} items"
        lines.append(f"{name} tells {first} nats (by distance of branches {second}{most}{on})")
    return lines


def class_lines(scores: Mapping[str, Any]) -> list[str]:
    """The line or two on the classes of a solver's samples."""
    found = scores.get("by_class")
    if not found:
        return []
    judge = "" if found["judge"] is None else f" (of held-out data {found['judge']:.3f})"
    lines = [f"{shown_estimate(found['confirmed'], 3)} of the samples are taken for the class that they were drawn for{judge}"]
    measured = [one for one in found["classes"] if one["distance"] is not None]
    if measured:
        ends = [pick(measured, key=lambda one: float(one["distance"]["value"])) for pick in (min, max)]
        digits = 1 if found["distance"] == "frechet_distance" else 3
        shown = " to ".join(f"{shown_estimate(one['distance'], digits)} ({one['name']})" for one in ends)
        held = [float(one["held_out"]["value"]) for one in measured if one["held_out"] is not None]
        beside = f"; held-out data {min(held):.{digits}f} to {max(held):.{digits}f}" if held else ""
        what = "Frechet" if found["distance"] == "frechet_distance" else "sliced Wasserstein"
        lines.append(f"{what} distance by class {shown}{beside} (each at {found['size']} items)")
    elif found["classes"]:
        lines.append(f"distances by class are not measured: {found['classes'][0].get('reason', '')}")
    return lines


def titled(title: str, lines: Sequence[str]) -> list[str]:
    """The lines of the terminal under one title."""
    return [f"{title if k == 0 else '':<10}{line}" for k, line in enumerate(lines)]
