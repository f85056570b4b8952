"""What a solver makes of a trained network: samples, pictures, metrics, and the lines that a run ends with."""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import metrics, parallel, report
from .. import progress as progress_bars
from ..data import Dataset, rows_drawn
from ..data.write import DataDescription, in_words, write_npz
from ..external.feature_networks import LABELS
from ..models.score import ScoreModel
from ..report.files import atomic_path, write_text
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
from .runs import TrainedRun, conditions_for, film_count, pictured
from .training_files import environment, history_of, metrics_of, shown_state

FRAMES = 40
CALIBRATION = 128
MOST_NUMBERS = 20_000_000
"""Sliced Wasserstein distances sort projections of so many numbers for each split of their error bars: some seconds."""
MOST_REFERENCE, MOST_HELD_OUT = 10_000, 2_000
"""Neighbours and kernels cost the square of the set: at most so many training and held-out items are drawn for them."""
LEAST_PART = 20
"""Distances are not made of fewer items: where the held-out part has fewer, it is not measured beside the samples."""
MOST_CLASSES, SPLITS = 50, 16
"""Classes that are measured one by one, those with the most samples, and the splits that make the error bars of each."""
COLUMN_UNITS = "units of each column's standard deviation"


def sample_run(run: TrainedRun, device: torch.device | str = "cpu", progress: bool = True) -> dict[str, Any]:
    """Sample with the configuration's solver, draw the pictures and measure: the metrics, also written as JSON.

    Under torchrun all processes call this: each draws its share of the samples and works out its share of their features and nearest
    neighbours; the rest of the metrics, the film and the files are the first one's alone, and the others get an empty dictionary.
    Pictures and metrics stand in solvers/<solver>; samples.png, denoising.gif and metrics.json in the run directory show
    the last solver's and all solvers'.
    """
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
    _film(run, place / "denoising.gif", common)
    report.picture_samples(x, place / "samples.png", pictured(run.data), run.data.value_range)
    with atomic_path(place / "samples.npz") as temporary:
        given = {name: in_words(value, run.data.cond_names.get(name)) for name, value in (cond or {}).items() if name != "label"}
        valid = run.model.valid(run.model.conditions(cond, len(x), out.x.device))
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
    scores |= compare_columns(run.data, x, place)
    if fit_line is not None:
        scores["fit"] = fit_line
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
            known = fit_grid(run.model, settings.solver, steps, run.data.shape, CALIBRATION, cond=cond)
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


class SampleMetrics:
    """Distances of samples to a run's training data; what depends on the data alone is worked out once, at its first use.

    data: the run's; directory: where the feature network is kept; seed: of the error bars' splits. Under torchrun all processes
    ask it the same and share out features and nearest neighbours; what it answers stands in the first.
    """

    def __init__(self, data: Dataset, directory: Path, seed: int = 0) -> None:
        self.data, self.directory, self.seed = data, directory, seed

    @cached_property
    def features(self) -> metrics.FeatureNet:
        with parallel.first_alone():  # it fits the network, the others read it
            return metrics.cached_features(self.data, self.directory / "features")

    @cached_property
    def reference(self) -> Tensor:
        """The training vectors that others are compared with: all of them, or so many drawn ones as hold `MOST_NUMBERS`."""
        most = max(MOST_REFERENCE, MOST_NUMBERS // self.data.shape[0])
        return self.data.train if len(self.data.train) <= most else self.data.draw(most, self.seed)[0]

    @cached_property
    def of_train(self) -> Tensor:
        return self.features_of(self.data.train)

    def features_of(self, x: Tensor) -> Tensor:
        """(N, 64) of items (N, *shape)."""
        return parallel.by_shares(self.features.features, x)

    def nearest(self, x: Tensor) -> Tensor:
        """Distances (N,) of items (N, *shape) to the nearest of all training items, also where these lie on disk: a copy of an item is
        one whether or not the item is among those in memory."""
        items = self.data.training[0]
        if isinstance(items, Tensor):
            return parallel.by_shares(lambda part: metrics.nearest_distances(part, items), x)

        def nearest(part: Tensor) -> Tensor:
            found = part.new_full((len(part),), math.inf, dtype=torch.float64)
            for _, piece in items.pieces():
                found = torch.minimum(found, metrics.nearest_distances(part, piece))
            return found

        return parallel.by_shares(nearest, x)

    def common_size(self, samples: int) -> int | None:
        """The number of items at which the distances of so many samples and of the held-out part can stand side by side; None where
        that part is too small or not there."""
        held = 0 if self.data.test is None else len(self.data.test)
        return min(samples, held) if min(samples, held) >= LEAST_PART else None

    def of_held_out(self, size: int) -> dict[str, Any]:
        """The distance of held-out data, by parts of `size` items as the samples': what a perfect network's samples would score."""
        held = self.data.test
        if held is None:
            return {}
        if len(self.data.shape) == 1:
            if parallel.rank() > 0:
                return {}
            return {"held_out_sliced_wasserstein": _numbers(self._sliced(held, size))}
        if not self.data.classifiable:
            return {}
        theirs, of_train = self.features_of(held), self.of_train
        if parallel.rank() > 0:
            return {}
        return {"held_out_frechet_distance": _numbers(metrics.frechet_distance(theirs, of_train, seed=self.seed, size=_part(theirs, size)))}

    def _sliced(self, x: Tensor, size: int | None) -> metrics.Estimate:
        return metrics.sliced_wasserstein(x, self.reference, seed=self.seed, size=_part(x, size), scale="reference")

    @cached_property
    def held_out_near(self) -> Tensor | None:
        """Distance of held-out items to the nearest training item; None where there are none."""
        held = self.data.test
        return None if held is None or len(held) < 2 else self.nearest(held[rows_drawn(len(held), MOST_HELD_OUT, self.seed)])

    def __call__(self, x: Tensor, size: int | None = None) -> dict[str, Any]:
        """The metrics of samples (N, *shape) in the data's own units, N >= 20, by name: {"value", "std_error"} each.

        size: distances are those of so many items, as means over random parts of the samples; None, or no fewer than N, takes all.
        """
        data, seed = self.data, self.seed
        scores: dict[str, Any] = {}
        images = len(data.shape) > 1
        # What all processes do comes first.
        ours = self.features_of(x) if images and data.classifiable else None
        of_train = None if ours is None else self.of_train
        nearest = self.nearest(x) if images and self.held_out_near is not None else None
        if parallel.rank() > 0:
            return {}
        if not images:
            scores["sliced_wasserstein"] = _numbers(self._sliced(x, size))
            scores["distance_unit"] = COLUMN_UNITS
            if data.modes is not None:
                scores["mode_fractions"] = [_numbers(fraction) for fraction in metrics.mode_fractions(x, data.modes)]
            return scores
        if ours is not None and of_train is not None:
            accuracy = self.features.accuracy
            judged = "no held-out labels to test it on" if accuracy is None else f"{accuracy:.1%} held-out accuracy"
            scores["features"] = f"{type(self.features).__name__} trained on the labels of {data.name}: {judged}"
            near = of_train[rows_drawn(len(of_train), MOST_REFERENCE, seed)]
            scores["frechet_distance"] = _numbers(metrics.frechet_distance(ours, of_train, seed=seed, size=_part(ours, size)))
            scores["kernel_distance"] = _numbers(metrics.kernel_distance(ours, near))
            precision, recall = metrics.precision_recall(ours, near)
            scores |= {"precision": _numbers(precision), "recall": _numbers(recall)}
        if nearest is not None and self.held_out_near is not None:
            scores["memorised_fraction"] = _numbers(metrics.memorised_of(nearest, self.held_out_near))
            scores["neighbour_ratio"] = _numbers(metrics.neighbour_ratio(nearest, self.held_out_near))
        return scores

    def by_class(self, x: Tensor, labels: Tensor) -> dict[str, Any]:
        """The samples (N, *shape) of each class that they were drawn for, labels (N,) int64.

        "confirmed": the share of all that the features' classifier takes for that class; "judge": its accuracy on held-out items, or
        None. "classes": a row for each class, with "name",
        "samples", "confirmed", "distance" to that class's training items and "held_out", that of its held-out items; None where there
        are fewer than `LEAST_PART` samples or items, with a "reason". "size": at so many items, one number for all classes.
        "distance": which it is.
        """
        data = self.data
        images = len(data.shape) > 1
        held_labels = None if data.test is None else data.test_labels
        features = self.features_of(x)
        ours = features if images else x
        of_train = self.of_train if images else data.train
        held = None if held_labels is None or data.test is None else self.features_of(data.test) if images else data.test
        if parallel.rank() > 0:
            return {}
        assert data.train_labels is not None
        guess = self.features.head(features).argmax(1)
        counts, in_train = (part.bincount(minlength=data.classes or 0).tolist() for part in (labels, data.train_labels))
        in_held = [0] * len(counts) if held_labels is None else held_labels.bincount(minlength=len(counts)).tolist()
        order = sorted(range(len(counts)), key=lambda k: -counts[k])[:MOST_CLASSES]
        known = [k for k in order if min(counts[k], in_train[k]) >= LEAST_PART]
        beside = [k for k in known if in_held[k] >= LEAST_PART]
        size = min([counts[k] for k in known] + [in_held[k] for k in beside], default=None)

        def distance(items: Tensor, of_items: Tensor, k: int) -> dict[str, Any]:
            mine, theirs = items[of_items == k], of_train[data.train_labels == k][:MOST_REFERENCE]
            common: dict[str, Any] = {"bootstrap": SPLITS, "seed": self.seed, "size": _part(mine, size)}
            if images:
                return _numbers(metrics.frechet_distance(mine, theirs, **common))
            return _numbers(metrics.sliced_wasserstein(mine, theirs, scale=self.spread, **common))

        rows = []
        for k in sorted(order):
            if not counts[k] and not in_train[k]:
                continue
            name = str(k if data.label_names is None else data.label_names[k])
            row: dict[str, Any] = {"name": name, "samples": counts[k], "distance": None, "held_out": None, "confirmed": None}
            if counts[k]:
                row["confirmed"] = _numbers(metrics.share(guess[labels == k] == k))
            if k in known:
                row["distance"] = distance(ours, labels, k)
            else:
                row["reason"] = f"{counts[k]} samples and {in_train[k]} training items of {name}; {LEAST_PART} of each are needed"
            if k in beside and held is not None and held_labels is not None:
                row["held_out"] = distance(held, held_labels, k)
            rows.append(row)
        which = "frechet_distance" if images else "sliced_wasserstein"
        confirmed = _numbers(metrics.share(guess == labels))
        return {"size": size, "distance": which, "confirmed": confirmed, "judge": self.features.accuracy, "classes": rows}

    @property
    def spread(self) -> Tensor:
        """The standard deviation of each entry of the training vectors, 1 where it does not vary."""
        std = self.reference.double().std(0)
        return torch.where(std > 0, std, 1.0)


def measure(
    data: Dataset, x: Tensor, directory: Path, seed: int = 0, progress: bool = False, labels: Tensor | None = None
) -> dict[str, Any]:
    """Distances of samples `x` to the training data (see `SampleMetrics`), held-out data measured the same way beside them: both at the
    same number of items, "distance_size". labels: (N,) classes that the samples were drawn for, which adds "by_class"."""
    sample_metrics = SampleMetrics(data, directory, seed)
    size = sample_metrics.common_size(len(x))
    with progress_bars.bar(None, "metrics", "part", progress and parallel.rank() == 0, leave=False):
        scores = sample_metrics(x, size)
        beside = {} if size is None else sample_metrics.of_held_out(size)
        if labels is not None and data.classifiable:
            beside |= {"by_class": sample_metrics.by_class(x, labels.cpu())}
    if "frechet_distance" in scores or "sliced_wasserstein" in scores:
        scores["distance_size"] = len(x) if size is None else size
    return scores | beside


def _part(x: Tensor, size: int | None) -> int | None:
    return None if size is None or size >= len(x) else size


def _numbers(estimate: metrics.Estimate) -> dict[str, Any]:
    reason = {"reason": estimate.reason} if estimate.reason else {}
    return {"value": estimate.value, "std_error": estimate.std_error, **reason}


def _collect(run: TrainedRun, solver: str, scores: dict[str, Any]) -> None:
    known = metrics_of(run.directory) or {}
    known["solvers"] = known.get("solvers", {}) | {solver: scores}
    write_text(run.directory / "metrics.json", to_json(known, 2))


def report_lines(run: TrainedRun, scores: dict[str, Any]) -> Sequence[str]:
    """What a run prints at its end."""
    settings, place = run.config.sampling, run.directory / "solvers" / run.config.sampling.solver
    calls, seconds, samples = scores["network_calls"], scores["seconds"], scores["samples"]

    def number(key: str, digits: int = 3) -> str:
        return shown_estimate(scores[key], digits)

    fitted = ", fitted grid" if scores["fitted"] else ""
    rate = f"{seconds:.1f} s ({samples / seconds:.1f} samples/s)"
    lines = [f"sampled   {samples} with {settings.solver}{fitted}: {calls:.0f} network calls per sample, {rate}"]
    if "fit" in scores:
        lines.insert(0, f"fitted    {scores['fit']}")
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
