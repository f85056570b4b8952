"""Solvers against one another on one trained network: the same seeds, distance against network calls and seconds."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .. import parallel, report
from ..data import rows_drawn
from ..external.feature_networks import LABELS, features_named
from ..randomness import check_seed
from ..registry import lookup
from ..report.files import write_text
from ..sampling.automatic import flow_solver
from ..sampling.sample import sample_together
from ..solvers import SOLVERS, make_solver
from ..unknown_numbers import shown_estimate, to_json
from .config import ConfigError
from .image_scores import ImageScores, check_settings
from .runs import TrainedRun, conditions_for
from .sample_metrics import COLUMN_UNITS, SampleMetrics

CALLS = (5, 10, 20, 50, 100)
LONGEST = {"ancestral": (200, 1000)}
"""Budgets beyond the common ones, for the solver that the question at the end is about."""
TOLERANCES = (1e-2, 1e-3, 1e-4)
QUESTION, ASKED = "ancestral", 20
SHOWN = 10
"""Images of each solver in the picture."""


@dataclass(frozen=True)
class CompareSettings:
    """solvers: names; calls: network calls for each sample to compare them at; samples: of each; seed: the same for all; features: what
    images are compared in, None for the run's own setting; reference: an .npz of moments of them to compare with."""

    solvers: tuple[str, ...] = ("ancestral", "ddim", "ode", "pc", "dpm", "angle")
    calls: tuple[int, ...] | None = None
    samples: int = 200
    seed: int = 0
    batch: int = 100
    features: str | None = None
    reference: str | None = None


def check_compare(settings: CompareSettings) -> None:
    """ConfigError, in one line, before any work, for a setting that cannot be."""
    try:
        if not settings.solvers or len(set(settings.solvers)) != len(settings.solvers):
            raise ValueError(f"solvers must be different names, got {','.join(settings.solvers)!r}")
        for name in settings.solvers:
            lookup(SOLVERS, "solver", flow_solver(name))
        for label, value, least in (("samples", settings.samples, 20), ("batch", settings.batch, 1)):
            if value < least:
                raise ValueError(f"{label} must be a whole number of at least {least}, got {value!r}")
        check_seed(settings.seed)
        if settings.features is not None:
            features_named(settings.features)
        if settings.calls is not None and (not settings.calls or min(settings.calls) < 2):
            raise ValueError(f"calls must be whole numbers of at least 2, got {','.join(map(str, settings.calls))!r}")
    except ValueError as error:
        raise ConfigError(str(error)) from error


def compare_run(run: TrainedRun, settings: CompareSettings, say: Callable[[str], None] = print) -> dict[str, Any]:
    """Sample with every solver at every budget, measure, and leave compare/ in the run directory: table.md, compare.json,
    distance.png, samples.png. The line "answer" says how many calls ancestral sampling needs to match the flow at 20.

    Under torchrun all processes call this and share out the samples, their features and nearest neighbours; the rest and the files are
    the first one's alone, and the others get an empty dictionary."""
    image_scores = _image_scores(run, settings)
    if image_scores is None and not run.data.classifiable and len(run.data.shape) > 1:
        lack = "no labels" if run.data.train_labels is None else "training items of one class alone"
        raise ConfigError(f"data {run.data.name!r} has {lack}, and so no features to measure distances with; --features has others")
    place = run.directory / "compare"
    place.mkdir(parents=True, exist_ok=True)
    measured = _Measured(SampleMetrics(run.data, run.directory, settings.seed), image_scores)
    sample_metrics, key = measured.sample_metrics, measured.key
    size = sample_metrics.common_size(settings.samples) or settings.samples
    rows: list[dict[str, Any]] = []
    shown: dict[str, tuple[int, Tensor]] = {}
    header = HEADER.format(measured.called)
    say(header)
    for name in settings.solvers:
        for options in budgets(name, settings.calls):
            row, x = _point(run, settings, name, options, measured, size)
            rows.append(row)
            if parallel.rank() == 0:
                say(_line(row))
            # A row of the picture is at the budget that the question asks about, or the nearest there is.
            if name not in shown or abs(row["calls"] - ASKED) < abs(shown[name][0] - ASKED):
                shown[name] = (row["calls"], x[:SHOWN])
    real = _real(run, settings, measured, size)
    if parallel.rank() > 0:
        return {}
    if real is not None:
        say(_line(real))
    answer_line = answer(rows)
    lines = [_line(row) for row in (*rows, *([] if real is None else [real]))]
    units = f", in {COLUMN_UNITS}" if key == "sliced_wasserstein" else ""
    table = [header, *lines, "", f"{settings.samples} samples of each; distances at {size} items{units}. {COLUMNS}", "", answer_line]
    write_text(place / "table.md", "\n".join(table) + "\n")
    found: dict[str, Any] = {"settings": vars(settings), "distance": key, "rows": rows, "held_out": real, "answer": answer_line}
    if image_scores is not None:
        found["image_scores"] = image_scores.about | {"reference": image_scores.reference.what}
        say(f"features  {image_scores.network.source}; to {image_scores.reference.what}")
    found |= {"distance_size": size} | ({"distance_unit": COLUMN_UNITS} if units else {})
    found["data"] = run.data.signature()
    if real is None:
        held = 0 if run.data.test is None else len(run.data.test)
        found["held_out_reason"] = f"{held} items are held out, fewer than the {size} at which distances are taken"
    write_text(place / "compare.json", to_json(found, 1))
    report.plot_comparison(rows, place / "distance.png", key.replace("_", " "), None if real is None else real["distance"])
    files = ["distance.png"]
    if len(run.data.shape) == 3:
        labels = [f"{name}, {calls} calls" for name, (calls, _) in shown.items()]
        report.picture_rows([x for _, x in shown.values()], labels, place / "samples.png", run.data.value_range)
        files.append("samples.png")
    say(f"pictures  {', '.join(str(place / name) for name in files)}")
    say(f"numbers   {place / 'table.md'}, {place / 'compare.json'}")
    say(f"distances {size} items each{units}")
    say(answer_line)
    return {"rows": rows, "held_out": real, "answer": answer_line}


def budgets(name: str, calls: Sequence[int] | None) -> list[dict[str, Any]]:
    """The options with which `sample` spends about so many network calls, the last denoising one included: steps for a solver of
    fixed steps, tolerances for an adaptive one."""
    solver = make_solver(flow_solver(name))
    if solver.adaptive:
        return [{"rtol": tolerance, "atol": tolerance} for tolerance in TOLERANCES] if hasattr(solver, "atol") else [{}]
    chosen = (*CALLS, *LONGEST.get(name, ())) if calls is None else calls
    each = solver.calls or 1
    steps = [max(1, (number - 1) // each) for number in chosen]
    return [{"steps": number} for number in dict.fromkeys(steps)]


def _point(
    run: TrainedRun, settings: CompareSettings, name: str, options: dict[str, Any], measured: _Measured, size: int
) -> tuple[dict[str, Any], Tensor]:
    """One solver at one budget: its row of the table and its samples."""
    shape = (settings.samples, *run.data.shape)
    common: dict[str, Any] = {"seed": settings.seed, "progress": False, "batch_size": settings.batch, "on_failure": "mask"}
    device = next(run.model.parameters()).device
    began = time.monotonic()
    cond = conditions_for(run.model, run.data, settings.samples, settings.seed)
    out = sample_together(run.model, shape, solver=name, cond=cond, **common, **options)
    if device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.monotonic() - began
    row: dict[str, Any] = {"solver": name, "options": options, "calls": round(float(out.nfe.double().mean())), "seconds": seconds}
    x = out.x.cpu()
    good = x[~out.failed.cpu()]
    row["failed"] = len(x) - len(good)
    row |= {"fitted": True} if out.fitted else {}
    row |= {"auto": out.picked} if out.picked is not None else {}
    if len(good) >= max(20, len(x) // 2):
        row |= measured(good, size)
    else:
        row["reason"] = f"not measured: {row['failed']} of {len(x)} samples are not finite"
    return row, x


def _real(run: TrainedRun, settings: CompareSettings, measured: _Measured, size: int) -> dict[str, Any] | None:
    """The row of `size` held-out items: what a perfect solver of a perfect network would score. Precision and recall, which depend on
    the number too, are left out where there are fewer of them than samples."""
    held = run.data.test
    if held is None or len(held) < size:
        return None
    scores = measured(held[rows_drawn(len(held), size, settings.seed)])
    if size < settings.samples:
        scores = {name: value for name, value in scores.items() if name not in ("precision", "recall")}
    return {"solver": "held-out data", "calls": 0, "seconds": 0.0, "failed": 0} | scores


def _image_scores(run: TrainedRun, settings: CompareSettings) -> ImageScores | None:
    """What scores images by features that others have, where the settings or the run's ask for it."""
    own = run.config.sampling
    features = own.features if settings.features is None else settings.features
    reference = settings.reference or (own.reference if settings.features is None else None)
    check_settings(features, reference, run.data)
    if features == LABELS:
        return None
    device = next(run.model.parameters()).device
    return ImageScores(run.data, run.directory, features, reference, device, settings.seed)


@dataclass(frozen=True)
class _Measured:
    """What a row says of its samples: the distance that solvers are compared by, and the rest."""

    sample_metrics: SampleMetrics
    image_scores: ImageScores | None

    @property
    def key(self) -> str:
        if self.image_scores is not None:
            return self.image_scores.key
        return "sliced_wasserstein" if len(self.sample_metrics.data.shape) == 1 else "frechet_distance"

    @property
    def called(self) -> str:
        """As the head of a column."""
        of_images = None if self.image_scores is None else self.image_scores.network.distance
        return of_images or {"frechet_distance": "Frechet distance", "sliced_wasserstein": "sliced Wasserstein distance"}[self.key]

    def __call__(self, x: Tensor, size: int | None = None) -> dict[str, Any]:
        scores = self.sample_metrics(x, size)
        of_images = None if self.image_scores is None else self.image_scores(x, None if size is None or size >= len(x) else size)
        if parallel.rank() > 0:
            return {}
        distance = scores[self.key] if of_images is None else of_images["distance"]
        names = ("precision", "recall", "memorised_fraction", "neighbour_ratio")
        return {"distance": distance} | {name: scores[name] for name in names if name in scores}


HEADER = "| solver | calls | seconds | {} | precision | recall | memorised | neighbour ratio |\n|---|---|---|---|---|---|---|---|"
QUALITIES_ARE = (
    "Memorised: the share of samples nearer to a training item than 95 % of held-out data are (new data: 0.05, copies: 1). Neighbour "
    "ratio: mean distance to the nearest training item over that of held-out data (new data: 1, copies: 0)."
)
COLUMNS = f"Distances depend on the number of items: those of one comparison are taken at the same one. {QUALITIES_ARE}"


def _line(row: dict[str, Any]) -> str:
    def number(name: str, digits: int = 2) -> str:
        return shown_estimate(row[name], digits) if name in row else "-"

    failed = f" ({row['failed']} failed)" if row["failed"] else ""
    name = f"`{row['solver']}`{' (' + row['auto'].split(',')[0] + ')' if 'auto' in row else ''}{', fitted' if row.get('fitted') else ''}"
    cells = [name, f"{row['calls']}{failed}", f"{row['seconds']:.1f}"] if row["calls"] else [row["solver"], "-", "-"]
    return "| " + " | ".join([*cells, *map(number, ("distance", "precision", "recall", "memorised_fraction", "neighbour_ratio"))]) + " |"


def answer(rows: Sequence[dict[str, Any]]) -> str:
    """How many calls ancestral sampling needs to match the best flow solver at 20 calls, from the rows of the table."""
    mine = [row for row in rows if row["solver"] == QUESTION and "distance" in row]
    flows = [row for row in rows if not make_solver(flow_solver(row["solver"])).stochastic and "distance" in row]
    near = [row for row in flows if 0.8 * ASKED <= row["calls"] <= 1.3 * ASKED]
    if not mine or not near:
        return f"answer    how many calls {QUESTION} needs to match the flow at {ASKED} is not in these rows: they lack one of the two"
    best = min(near, key=lambda row: float(row["distance"]["value"]))
    goal, error = best["distance"]["value"], best["distance"]["std_error"]
    what = f"the flow at {best['calls']} calls (`{best['solver']}`, {goal:.2f} +- {error:.2f})"
    for row in sorted(mine, key=lambda row: int(row["calls"])):
        value, spread = row["distance"]["value"], row["distance"]["std_error"]
        if value <= goal + math.hypot(error, spread):
            return (
                f"answer    {QUESTION} needs {row['calls']} calls ({value:.2f} +- {spread:.2f}) to match {what} within one standard error"
            )
    return f"answer    {QUESTION} does not match {what} within one standard error up to {max(row['calls'] for row in mine)} calls"
