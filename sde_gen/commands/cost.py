"""What a run will cost: seconds of training, sampling and metrics, measured on a few steps and calls of the very configuration."""

from __future__ import annotations

import math
import time
from pathlib import Path

import torch

from .. import metrics, parallel
from ..data import Dataset
from ..data.columns.redraw import Redraw
from ..external.feature_networks import LABELS
from ..metrics import features
from ..models.score import ScoreModel
from ..sampling.automatic import flow_solver
from ..solvers import make_solver
from ..training import TrainSettings
from ..training.trainer import Trainer
from ..training.validation import LEVELS, MOST_SAMPLES
from .config import RunConfig, SamplingConfig
from .image_scores import ImageScores

STEPS, SECONDS = 5, 3.0
"""Training steps that a dry run takes after a first one; it takes no more where they have lasted so long."""
PROBED = 200
"""Items that the cost of metrics is measured on."""
SNAPSHOT_CALLS = 51
"""Network calls of each sample of a snapshot, of which there is one an evaluation."""


def snapshot_count(shape: tuple[int, ...]) -> int:
    """Samples of a snapshot."""
    return 1000 if len(shape) == 1 else 25


def seconds_per_step(model: ScoreModel, data: Dataset, config: RunConfig, device: torch.device | str) -> float:
    """Seconds of a training step, of a few taken with `model`, which is of no use afterwards. Nothing else changes: no file, no random
    state but the model's own."""
    names = list(model.encoders)
    held_out, of_held_out = data.held_out(names)
    with torch.random.fork_rng():
        cond = data.conditions(names, "all")
        redraw = None if data.codec is None else Redraw(data.codec)
        trainer = Trainer(model, data.training[0], config.training, cond, held_out, data.levels, device, of_held_out, redraw=redraw)
        with trainer.running():
            trainer.advance()
            began, taken, spent = time.monotonic(), 0, 0.0
            while taken < STEPS and spent < SECONDS:
                trainer.advance()
                taken, spent = taken + 1, time.monotonic() - began
    return spent / taken


@torch.no_grad()
def seconds_per_call(model: ScoreModel, shape: tuple[int, ...], count: int) -> float:
    """Seconds of a network call for each sample, of calls for `count` at once. Of a model in evaluation mode nothing changes."""
    like = next(model.parameters())
    x = torch.linspace(-1, 1, count * math.prod(shape), dtype=like.dtype, device=like.device).reshape(count, *shape)
    cond = {name: encoder.missing(count, like.device) for name, encoder in model.encoders.items()}
    took = []
    for _ in range(2):  # the first one allocates
        began = time.monotonic()
        model.denoise(x, model.sde.t_max, **cond)
        if like.device.type == "cuda":
            torch.cuda.synchronize()
        took.append(time.monotonic() - began)
    return took[-1] / count


def training_cost(training: TrainSettings, data: Dataset, behind: int, per_step: float, per_call: float, device: torch.device | str) -> str:
    """ "1800 steps of 64 in about 150 s (float32, 2 threads)", of a training of which `behind` steps are done."""
    left = training.steps - behind
    held = min(MOST_SAMPLES, len(data.train) if data.test is None else len(data.test))
    evaluation = (LEVELS * held + SNAPSHOT_CALLS * snapshot_count(data.shape)) * per_call
    seconds = left * per_step + math.ceil(training.evaluations * left / training.steps) * evaluation
    device = torch.device(device)
    where = torch.cuda.get_device_name(device) if device.type == "cuda" else _number(torch.get_num_threads(), "thread")
    how = f"({'bfloat16' if training.bfloat16 else 'float32'}, {where}{'' if parallel.world() == 1 else f', {parallel.world()} processes'})"
    more = "more " if behind else ""
    if training.max_seconds is not None and seconds > training.max_seconds:
        fit = int(left * training.max_seconds / seconds)
        return (
            f"about {fit} {more}steps of {training.batch} of {left}, training ends after {about(training.max_seconds)} (max_seconds) {how}"
        )
    return f"{left} {more}steps of {training.batch} in about {about(seconds)} {how}"


def sampling_cost(
    sampling: SamplingConfig, data: Dataset, per_call: float, film: int, directory: Path, device: torch.device | str = "cpu"
) -> str:
    """ "sampling 1000 with pc: 201 calls each, about 60 s; metrics about 5 s"; `film`: samples that are drawn once more, to be shown."""
    solver = make_solver(flow_solver(sampling.solver), **sampling.options)
    steps = solver.default_steps if sampling.steps is None else sampling.steps
    what = f"sampling {sampling.samples} with {sampling.solver}:"
    if solver.calls is None:
        cost = f"as many calls as the solver finds it needs, {about(sampling.samples * per_call)} for each"
    else:
        calls = solver.calls * steps + 1
        cost = f"{calls} calls each, about {about(calls * (sampling.samples / parallel.world() + film) * per_call)}"
    fit = " after fitting the grid" if sampling.grid == "fitted" else ""
    seconds = metrics_seconds(data, sampling.samples, directory)
    if sampling.features != LABELS:
        seconds += ImageScores(data, directory, sampling.features, sampling.reference, device).seconds(sampling.samples)
    return f"{what} {cost}{fit}; metrics about {about(seconds)}"


def metrics_seconds(data: Dataset, samples: int, directory: Path) -> float:
    """About what the metrics of so many samples take: the part that costs most, measured on a few items."""
    few = data.train[:PROBED]
    whole = samples + len(data.train)
    if len(data.shape) == 1:
        began = time.monotonic()
        metrics.sliced_wasserstein(few, few)
        each = (time.monotonic() - began) / (2 * len(few))
        return each * (whole + (0 if data.test is None else len(data.test) + len(data.train)))
    began = time.monotonic()
    metrics.nearest_distances(few, data.train)
    seconds = (time.monotonic() - began) * samples / len(few) * len(data.training[0]) / len(data.train)
    if not data.classifiable or data.classes is None or (directory / "features").exists():
        return seconds
    return seconds + features.fit_seconds(data.train, data.classes)


def about(seconds: float) -> str:
    """A time that is no more exact than it is known."""
    if seconds < 600:
        return f"{seconds:.2g} s" if seconds < 10 else f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"
