"""What a solver makes of a trained network: samples, pictures, metrics, and the lines that a run ends with."""

from __future__ import annotations

import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import parallel, report
from ..data.captions import texts_of
from ..data.write import DataDescription, in_words, write_npz
from ..external.feature_networks import LABELS
from ..models.score import ScoreModel
from ..report.files import atomic_path, write_text
from ..sampling.automatic import AUTO, choose_solver
from ..sampling.failures import SolverError
from ..sampling.fitted import FittedGrid, find_fitted
from ..sampling.fitting import fit_grid
from ..sampling.sample import Samples, sample, sample_together
from ..solvers import make_solver
from ..training import save_fitted
from ..training.loss_summary import summarise_losses
from ..unknown_numbers import from_json, shown_estimate, shown_number, to_json, with_nan
from .by_condition import PICTURE, class_lines, information_lines, information_of_run, keep_information, picture_run, titled
from .image_scores import ImageScores, lines_of
from .of_columns import column_lines, compare_columns
from .of_fields import picture_space
from .runs import TrainedRun, conditions_for, film_count, pictured
from .sample_metrics import measure
from .training_files import environment, history_of, metrics_of, shown_state

FRAMES = 40
CALIBRATION = 128


def sample_run(run: TrainedRun, device: torch.device | str = "cpu", progress: bool = True) -> dict[str, Any]:
    """Sample with the configuration's solver, draw the pictures and measure: the metrics, also written as JSON.

    Under torchrun all processes call this: each draws its share of the samples and works out its share of their features and nearest
    neighbours; the rest of the metrics, the film and the files are the first one's alone, and the others get an empty dictionary.
    Pictures and metrics stand in solvers/<solver>; samples.png, denoising.gif and metrics.json in the run directory show
    the last solver's and all solvers'.
    """
    run, picked = _with_solver(run)
    settings = run.config.sampling
    common: dict[str, Any] = {
        "solver": settings.solver,
        "steps": settings.steps,
        "grid": settings.grid,
        "seed": settings.seed,
        **settings.options,
    }
    fit_line = _fit(run) if settings.grid == "fitted" else None
    began = time.monotonic()
    shape = (settings.samples, *run.data.shape)
    cond = conditions_for(run.model, run.data, settings.samples, settings.seed)
    place = run.directory / "solvers" / settings.solver
    drawing = 0.0

    def show(x: Tensor) -> None:
        nonlocal drawing
        start = time.monotonic()
        place.mkdir(parents=True, exist_ok=True)
        report.picture_samples(x.cpu(), place / "samples.png", pictured(run.data), run.data.value_range)
        drawing = time.monotonic() - start

    out = _sample(run.model, shape, cond, show, batch_size=settings.batch, progress=progress, **common)
    if out.x.device.type == "cuda":
        torch.cuda.synchronize()
    seconds = time.monotonic() - began - drawing
    x = out.x.cpu()
    scores = measure(run.data, x, run.directory, settings.seed, progress, (cond or {}).get("label"))
    if settings.features != LABELS:
        image_scores = ImageScores(run.data, run.directory, settings.features, settings.reference, device, settings.seed)
        scores["image_scores"] = image_scores.beside_held_out(x)
    if parallel.rank() > 0:
        return {}
    place.mkdir(parents=True, exist_ok=True)
    valid = run.model.valid(run.model.conditions(cond, len(x), out.x.device))
    _film(run, place / "denoising.gif", common)
    report.picture_samples(x, place / "samples.png", pictured(run.data), run.data.value_range)
    valid = run.model.valid(run.model.conditions(cond, len(x), out.x.device))
    picture_space(run.data, x, valid, place)
    with atomic_path(place / "samples.npz") as temporary:
        texts = {name: np.array(texts_of(value)) for name, value in (cond or {}).items() if name in run.data.texts}
        numbers = {name: in_words(value, run.data.cond_names.get(name)) for name, value in (cond or {}).items() if name not in texts}
        given = {name: value for name, value in (numbers | texts).items() if name != "label"}
        known = None if valid is None else valid.cpu().numpy()
        write_npz(temporary, x, (cond or {}).get("label"), DataDescription.of(run.data), given, known)
    scores |= {
        "samples": settings.samples,
        "network_calls": float(out.nfe.double().mean()),
        "seconds": seconds,
        "fitted": out.fitted,
        "settings": settings.model_dump(mode="json"),
        "environment": environment(out.x.device),
        "data": run.data.signature(),
    }
    scores |= compare_columns(run.data, x, place, valid)
    scores |= {name: line for name, line in (("fit", fit_line), ("auto", picked)) if line is not None}
    write_text(place / "metrics.json", to_json(scores, 2))
    _collect(run, settings.solver, scores)
    if run.model.encoders:
        scores["information"] = information_of_run(run)
        keep_information(run, scores["information"])
        picture_run(run)
    for name in ("samples.png", "denoising.gif"):
        shutil.copyfile(place / name, run.directory / name)
    write_text(run.directory / "config.yaml", run.config.to_yaml())
    return scores


def _with_solver(run: TrainedRun) -> tuple[TrainedRun, str | None]:
    """The run with the solver that "auto" stands for, and what is said of it; None where the configuration names one."""
    chosen = run.config.sampling
    if chosen.solver != AUTO:
        return run, None
    choice = choose_solver(run.model, chosen.steps, run.model.encoders, chosen.options, own_grid=chosen.grid in (None, "fitted"))
    sampling = chosen.model_copy(update={"solver": choice.solver})
    return replace(run, config=run.config.model_copy(update={"sampling": sampling})), str(choice)


def _sample(
    model: ScoreModel,
    shape: tuple[int, ...],
    cond: dict[str, Tensor] | None,
    show: Callable[[Tensor], None],
    batch_size: int,
    **common: Any,
) -> Samples:
    """The samples of `sample_together`; of several batches that one process draws, `show` is given the first as soon as it is there."""
    count, first = shape[0], batch_size
    if parallel.world() > 1 or count <= first:
        return sample_together(model, shape, cond, batch_size=batch_size, **common)
    of_first, of_rest = ({key: value[rows] for key, value in (cond or {}).items()} for rows in (slice(first), slice(first, None)))
    start = sample(model, (first, *shape[1:]), cond=of_first, batch_size=batch_size, **common)
    show(start.x)
    try:
        rest = sample(model, (count - first, *shape[1:]), cond=of_rest, batch_size=batch_size, index_offset=first, **common)
    except SolverError as error:
        healthy = torch.cat((torch.arange(first), error.healthy + first))
        x = torch.cat((start.x, error.x))
        raise SolverError(error.solver, error.time, error.step, error.failed + first, healthy, x) from None
    x, nfe, failed = (torch.cat(pair) for pair in ((start.x, rest.x), (start.nfe, rest.nfe), (start.failed, rest.failed)))
    return replace(rest, x=x, nfe=nfe, failed=failed)


def _fit(run: TrainedRun) -> str:
    """Fit the grid that the configuration asks for, unless the checkpoint has it, and keep it there; says what it gained."""
    settings = run.config.sampling
    steps = make_solver(settings.solver).default_steps if settings.steps is None else settings.steps
    began = time.monotonic()
    cond = conditions_for(run.model, run.data, CALIBRATION, settings.seed)
    known = find_fitted(run.model, settings.solver, steps, cond or ())
    how = "stored with the checkpoint"
    if known is None:
        if parallel.rank() == 0:
            known = fit_grid(run.model, settings.solver, steps, run.data.shape, CALIBRATION, cond=cond, method="regression")
            save_fitted(run.model, run.directory / "checkpoint")
        known = FittedGrid.from_config(from_json(parallel.broadcast_text("" if known is None else to_json(asdict(known)))))
        run.model.fitted[known.key] = known
        how = f"fitted in {time.monotonic() - began:.0f} s, {known.nfe} network evaluations of one sample"
    before, after = (shown_number(error, ".2g") for error in (known.default_error, known.error))
    return f"{settings.solver} at {steps} steps: distance to the exact flow {before} -> {after} ({how})"


def _film(run: TrainedRun, path: Path, common: dict[str, Any]) -> None:
    frames: list[tuple[float, Tensor]] = []
    count = film_count(run)

    def keep(step: int, t: float, x: Tensor) -> None:
        frames.append((t, shown_state(run.model, x, t)))

    cond = conditions_for(run.model, run.data, count, run.config.sampling.seed, alike=True)
    out = sample(run.model, (count, *run.data.shape), step_hook=keep, progress=False, on_failure="mask", cond=cond, **common)
    spread = torch.linspace(0, len(frames) - 1, min(FRAMES, len(frames))).round().long().tolist()
    shown = [frames[index] for index in spread]
    labels = [f"t = {t:.3f}" for t, _ in shown]
    report.picture_film([*(x for _, x in shown), out.x.cpu()], path, run.data.value_range, [*labels, "denoised"])


def _collect(run: TrainedRun, solver: str, scores: dict[str, Any]) -> None:
    known = metrics_of(run.directory) or {}
    known["solvers"] = known.get("solvers", {}) | {solver: scores}
    write_text(run.directory / "metrics.json", to_json(known, 2))


def report_lines(run: TrainedRun, scores: dict[str, Any]) -> Sequence[str]:
    """What a run prints at its end."""
    solver = scores["settings"]["solver"]
    place = run.directory / "solvers" / solver
    calls, seconds, samples = scores["network_calls"], scores["seconds"], scores["samples"]

    def number(key: str, digits: int = 3) -> str:
        return shown_estimate(scores[key], digits)

    fitted = ", fitted grid" if scores["fitted"] else ""
    rate = f"{seconds:.1f} s ({samples / seconds:.1f} samples/s)"
    lines = [f"sampled   {samples} with {solver}{fitted}: {calls:.0f} network calls per sample, {rate}"]
    if "fit" in scores:
        lines.insert(0, f"fitted    {scores['fit']}")
    if "auto" in scores:
        lines.insert(0, f"auto      {scores['auto']}")
    if "frechet_distance" in scores:
        beside = f"; held-out real data: {number('held_out_frechet_distance')}" if "held_out_frechet_distance" in scores else ""
        lines.append(f"Frechet   distance to the training data {number('frechet_distance')}{beside} ({_size(scores, beside)})")
        lines.append(f"          ({scores['features']}; not Inception FID)")
        lines.append(
            f"          precision {number('precision')}, recall {number('recall')}, kernel distance {number('kernel_distance', 5)}"
        )
    if "sliced_wasserstein" in scores:
        beside = f"; held-out data: {number('held_out_sliced_wasserstein', 4)}" if "held_out_sliced_wasserstein" in scores else ""
        said = f"{_size(scores, beside)}, in {scores['distance_unit']}"
        lines.append(f"distance  sliced Wasserstein to the training data {number('sliced_wasserstein', 4)}{beside} ({said})")
    if "mode_fractions" in scores:
        shares = "  ".join(f"{100 * share['value']:.1f}" for share in scores["mode_fractions"])
        lines.append(f"modes     {shares} % of the samples ({100 / len(scores['mode_fractions']):.1f} % each would be even)")
    if "memorised_fraction" in scores:
        lines.append(
            f"memorised {number('memorised_fraction')} of samples nearer to a training item than 95 % of held-out ones (chance: 0.05)"
        )
        lines.append(
            f"          nearest-neighbour ratio {number('neighbour_ratio')}: distance to the nearest training item over held-out data's "
            "(1: like new data, 0: copies)"
        )
        lines += [f"          (not known: {reason})" for reason in dict.fromkeys(_reasons(scores, "memorised_fraction", "neighbour_ratio"))]
    if "image_scores" in scores:
        lines += titled("images", lines_of(scores["image_scores"]))
    lines += titled("classes", class_lines(scores))
    lines += column_lines(scores["table"]) if "table" in scores else []
    lines += titled("condition", information_lines(scores.get("information", {})))
    lines += _learned(run, scores)
    lines.append(f"samples   {place / 'samples.npz'}, in the data's own units; sde-gen sample draws more, in other formats")
    training = [run.directory / name for name in (PICTURE, "forward.png", "loss.png")]
    lines += [
        f"pictures  {place / 'samples.png'}, {place / 'denoising.gif'}",
        "          " + ", ".join([*(str(path) for path in training if path.exists()), f"{run.directory / 'snapshots'}/"]),
        f"numbers   {run.directory / 'metrics.json'}, {run.directory / 'config.yaml'}, {run.directory / 'checkpoint'}/",
    ]
    return lines


def _reasons(scores: dict[str, Any], *names: str) -> list[str]:
    return [scores[name]["reason"] for name in names if "reason" in scores[name]]


def _size(scores: dict[str, Any], beside: str) -> str:
    return f"{'each ' if beside else ''}at {scores['distance_size']} items"


def _learned(run: TrainedRun, scores: dict[str, Any]) -> list[str]:
    """What the training's loss by noise level says, where the run directory has it."""
    try:
        found = with_nan(history_of(run.directory))
        return summarise_losses(found["history"], found["linear"] | found.get("items", {}), scores.get("neighbour_ratio", {}).get("value"))
    except (ValueError, KeyError, TypeError, IndexError, AttributeError):
        return []
