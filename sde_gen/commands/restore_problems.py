"""Measurements of a run's data, or of an input, and their posteriors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from .. import progress
from ..data import rows_drawn
from ..data.degraded import Degraded
from ..data.gappy_rows import GappyRows
from ..data.write import DataDescription
from ..diagnostics.calibration import Calibration, Coverage, coverage, judge, randomised_ranks
from ..inverse import Measurement, Posterior, posterior
from ..models.denoiser import Denoiser, Wrapper, encoded
from ..sampling.sample import sample
from .restore_settings import RestoreSettings
from .runs import TrainedRun, conditions_for

OF_TRUTHS, OF_TESTS = 1_000_003, 2_000_003
"""Added to the seed for truths from the model, and for the posteriors of the test."""


@dataclass(frozen=True)
class Problems:
    """Measurements y (N, *), the conditions of each, and the truths (N, *shape) where they are known."""

    y: Tensor
    cond: dict[str, Tensor] | None
    truths: Tensor | None = None


@dataclass(frozen=True)
class Task:
    """A run as a prior, and a measurement of its data."""

    run: TrainedRun
    about: DataDescription
    measurement: Measurement
    settings: RestoreSettings
    keeps: bool
    """Whether what is measured is written again as it was."""
    entrywise: bool = False
    """Whether single entries are measured without noise, so that they are the same measurement in normalised units, where it is linear
    whatever the normaliser."""

    def solve(self, problems: Problems, method: str, seed: int, show: bool = False) -> Posterior:
        """The posterior of every problem, on the CPU, `settings.batch` states at a time, on which it does not depend."""
        chosen, count, y = self.settings, self.settings.samples, problems.y
        model: Denoiser = self.run.model
        units = model.normalizer
        if self.entrywise and units is not None:
            known = ~torch.isnan(y)
            middle = units.decode(torch.zeros(1, *self.about.shape, dtype=torch.float64, device=y.device))
            y = torch.where(known, units.encode(torch.where(known, y, middle)), torch.nan)
            model = _Normalised(model)
        each = max(1, chosen.batch // max(count, chosen.particles or 0))
        common: dict[str, Any] = {"solver": chosen.solver, "steps": chosen.steps, "particles": chosen.particles, "seed": seed}
        if method != "twisted":
            common.pop("particles")
        found = []
        with progress.bar(len(problems.y), f"restoring ({method})", "item", show, leave=False) as bar:
            for first in range(0, len(y), each):
                rows = slice(first, first + each)
                cond = None if problems.cond is None else {name: value[rows] for name, value in problems.cond.items()}
                where: dict[str, Any] = {"shape": self.about.shape, "index_offset": first, "cond": cond, "progress": False}
                one = posterior(model, self.measurement, y[rows], count, method, **where, **common)
                found.append(one if units is None or model is self.run.model else replace(one, x=units.decode(one.x.double())))
                bar.update(len(y[rows]))
        parts = {name: [getattr(one, name) for one in found] for name in Posterior.__dataclass_fields__}
        return Posterior(**{name: None if each[0] is None else torch.cat(each).cpu() for name, each in parts.items()})  # type: ignore[arg-type]

    def references(self, y: Tensor) -> Tensor:
        """A point of normalised data for each measurement, which depends on it alone: from the data's mean a step down the gradient of
        |y - A(x)|^2, of unit size an entry."""
        model = self.run.model
        with torch.enable_grad():
            z = torch.zeros(len(y), *self.about.shape, dtype=torch.float32, device=y.device, requires_grad=True)
            x = z if model.normalizer is None else model.normalizer.decode(z)
            seen = self.measurement.seen(y, self.about.shape)
            clean = self.measurement.clean(x)
            rest = torch.where(seen, torch.where(seen, y, 0).to(clean.dtype) - clean, 0)
            down = -torch.autograd.grad(rest.square().sum(), z)[0]
        size = down.square().flatten(1).mean(1).sqrt().clamp_min(1e-30)
        return (down / size.reshape(-1, *[1] * (down.ndim - 1))).detach().cpu()

    def judged(self, problems: Problems, found: Posterior, seed: int) -> Calibration:
        """The calibration of posteriors, in normalised units; the coverage of entries is that of those which are not known exactly."""
        assert problems.truths is not None
        model, shape = self.run.model, found.x.shape
        truths, samples = encoded(model, problems.truths).cpu(), encoded(model, found.x.flatten(0, 1)).cpu().reshape(shape)
        whole = judge(truths, samples, found.log_weights, self.references(problems.y), seed)
        hidden = (samples != truths[:, None]).any(1).flatten(1)
        if bool(hidden.all()) or not bool(hidden.any(1).all()):
            return whole
        return replace(whole, entries=coverage_of(randomised_ranks(truths, samples, found.log_weights, seed=seed), hidden))


class _Normalised(Wrapper):
    """The model of data in normalised units."""

    def __init__(self, model: Denoiser) -> None:
        super().__init__(model)
        self.normalizer = None


def coverage_of(ranks: Tensor, hidden: Tensor) -> Coverage:
    """The coverage of some of the entries of each problem, `hidden` (P, K), at least one: the others' ranks (P, K) tell nothing."""
    every = coverage(ranks)
    inside = ((2 * ranks - 1).abs()[..., None] <= torch.tensor(every.levels, dtype=torch.float64)) & hidden[..., None]
    of_problems = inside.sum(1) / hidden.sum(1, keepdim=True)
    each = inside.sum(0)[hidden.any(0)] / hidden.sum(0)[hidden.any(0), None]
    return replace(every, value=of_problems.mean(0), std_error=of_problems.std(0) / math.sqrt(len(ranks)), each=each)


def problems_of(task: Task, given: Degraded | GappyRows | None, device: torch.device) -> tuple[Problems, str]:
    """What is restored, and what it is called."""
    data, settings = task.run.data, task.settings
    if given is not None:
        if bool(torch.isnan(given.y).flatten(1).all(1).any()):
            row = int(torch.isnan(given.y).flatten(1).all(1).nonzero()[0, 0])
            raise ValueError(f"{given.name}: item {row} has nothing but gaps; at least one entry of each is needed")
        if len(given.y) < 1:
            raise ValueError(f"{given.name}: holds no items")
        labels = [settings.label] * len(given.y) if settings.label is not None else given.labels
        cond = None if labels is None else _labelled(task, list(labels), device)
        return Problems(given.y.to(device), cond), f"items of {given.name}"
    names = list(task.run.model.encoders)
    items, known = data.held_out(names)
    source = "held-out items"
    if items is None:
        items, known, source = data.train, data.conditions(names), "training items, of which none are held out,"  # type: ignore[assignment]
    chosen = rows_drawn(len(items), settings.items, settings.seed)
    truths = items[chosen]
    cond = {name: value[chosen].to(device) for name, value in known.items()}
    if settings.label is not None:
        cond |= _labelled(task, [settings.label] * len(truths), device) or {}
    y = task.measurement.simulate(truths.to(device), settings.seed)
    return Problems(y, cond, truths), f"{source} of {data.name}"


def _labelled(task: Task, labels: Sequence[str | None], device: torch.device) -> dict[str, Tensor] | None:
    """The condition of each item's own label; items without one are given none. None where the network knows no labels."""
    model, known = task.run.model, task.about.label_names
    if "label" not in model.encoders or known is None:
        if task.settings.label is not None:
            raise ValueError(f"--label {task.settings.label}: this network was trained without labels (sde-gen run --labels)")
        return None
    names = [str(name) for name in known]
    for label in labels:
        if label is not None and label not in names:
            raise ValueError(f"label {label!r}: no such label; choose from {', '.join(names[:20])}{', ...' * (len(names) > 20)}")
    rows = torch.tensor([0 if label is None else names.index(label) for label in labels], device=device)
    absent = torch.tensor([label is None for label in labels], device=device)
    if bool(absent.all()):
        return None
    if bool(absent.any()):
        null = model.null("label", rows)
        if null is None:
            raise ValueError(f"{int(absent.sum())} items have no label, and this network was trained with one for each; --label gives one")
        rows = torch.where(absent, null, rows)
    return {"label": rows}


def tests_of(task: Task, given: Degraded | GappyRows | None, device: torch.device) -> dict[str, Problems]:
    """The problems of the test of calibration: truths of the model, drawn as its posteriors are, and held-out data."""
    run, settings = task.run, task.settings
    count, seed = settings.calibrate, settings.seed
    cond = conditions_for(run.model, run.data, count, seed + OF_TRUTHS)
    how: dict[str, Any] = {"solver": settings.solver, "steps": settings.steps, "batch_size": settings.batch, "progress": False}
    drawn = sample(run.model, (count, *task.about.shape), seed=seed + OF_TRUTHS, cond=cond, **how).x
    found = {"model": (drawn, cond)}
    items, known = run.data.held_out(list(run.model.encoders))
    if items is not None and len(items) >= 20:
        rows = rows_drawn(len(items), count, seed)
        found["held_out"] = (items[rows].to(device), {name: value[rows].to(device) for name, value in known.items()})
    tests = {}
    for name, (truths, labels) in found.items():
        y = task.measurement.simulate(truths, seed + OF_TRUTHS)
        if given is not None and given.y.shape[1:] == y.shape[1:]:  # the gaps of the input, row after row
            gaps = torch.isnan(given.y)[torch.arange(len(y)) % len(given.y)].to(y.device)
            y = torch.where(gaps, torch.nan, y)
        tests[name] = Problems(y, labels, truths.cpu())
    return tests
