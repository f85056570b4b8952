"""Degraded data restored with a trained run as prior: posterior samples by any method, what they cost, and whether they are calibrated."""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import parallel, progress
from ..data import rows_drawn
from ..data.degraded import Degraded, read_degraded
from ..data.write import DataDescription
from ..diagnostics.calibration import Calibration, judge
from ..diagnostics.finding import std_error
from ..inverse import METHODS, Measurement, Posterior, posterior
from ..models.denoiser import encoded
from ..randomness import check_seed
from ..registry import canonical
from ..report.files import write_text
from ..report.restorations import picture_restorations, plot_calibration
from ..sampling.failures import SolverError
from ..sampling.sample import sample
from ..solvers import SOLVERS
from ..unknown_numbers import to_json
from .config import ConfigError
from .measurement_text import OPERATORS, parse_noise, parse_operator, spread_of
from .runs import TrainedRun, conditions_for

NO_GAPS = "0.05"
"""Noise where none is asked for, and 0 for `gaps`: cells that are given are known."""
SHOWN_LEVEL = 0.9
"""Of the coverage in the table."""
FAILURES = (SolverError, torch.linalg.LinAlgError)
"""Of one method, which is said of it: the others go on."""
TRUTHS = {"model": "truths from the model", "held_out": "held-out data"}
_OF_TRUTHS, _OF_TESTS = 1_000_003, 2_000_003
"""Added to the seed for truths from the model, and for the posteriors of the test."""


@dataclass(frozen=True)
class RestoreSettings:
    """What is restored, and how.

    operator, noise: as `parse_operator` and `parse_noise` read them; None: `gaps` of an input, and no noise there but `NO_GAPS` else.
    methods: names in METHODS. input: a file of degraded items; None: items of the run's held-out data are degraded. items: how many of
    them. samples: of each posterior; particles: of a group of `twisted`, None: as many as samples. solver, steps, seed: as `posterior`
    takes them. batch: states at a time. label: the data's own label of what is restored. calibrate: problems of the test of calibration, 0
    for none. written: samples that are written beside mean and standard deviation of an input.
    """

    operator: str | None = None
    noise: str | None = None
    methods: tuple[str, ...] = ("twisted",)
    input: str | None = None
    items: int = 8
    samples: int = 64
    particles: int | None = None
    solver: str = "dpm_sde"
    steps: int = 100
    seed: int = 0
    batch: int = 512
    label: str | None = None
    calibrate: int = 0
    written: int = 5


def checked(settings: RestoreSettings) -> RestoreSettings:
    """The settings with registered names; ConfigError, in one line, before any work, for one that cannot be."""
    try:
        names = tuple(canonical(METHODS, "method", method) for method in settings.methods)
        settings = replace(settings, methods=names, solver=canonical(SOLVERS, "solver", settings.solver))
        if settings.operator is None and settings.input is None:
            raise ValueError(f"--operator or --input is needed: {', '.join(usage for usage, *_ in OPERATORS.values())}")
        name, _ = parse_operator(settings.operator or "gaps")
        if name == "gaps" and settings.input is None:
            raise ValueError("--operator gaps are the gaps of an --input; mask random SHARE makes some")
        parse_noise(_noise_text(settings))
        if not settings.methods or len(set(settings.methods)) != len(settings.methods):
            raise ValueError(f"methods must be different names, got {','.join(settings.methods)!r}")
        for label, least in (("items", 2), ("samples", 2), ("steps", 1), ("batch", 1), ("calibrate", 0), ("written", 0)):
            if getattr(settings, label) < least:
                raise ValueError(f"{label} must be a whole number of at least {least}, got {getattr(settings, label)!r}")
        if settings.particles is not None and settings.particles < 1:
            raise ValueError(f"particles must be a whole number of at least 1, got {settings.particles!r}")
        if 0 < settings.calibrate < 20:
            raise ValueError(f"--calibrate takes at least 20 problems (0: no test), got {settings.calibrate}")
        check_seed(settings.seed)
        if settings.input is not None and not Path(settings.input).exists():
            raise ValueError(f"--input {settings.input}: no such file or folder")
    except ValueError as error:
        raise ConfigError(str(error)) from error
    return settings


def _noise_text(settings: RestoreSettings) -> str:
    if settings.noise is not None:
        return settings.noise
    return "0" if (settings.operator or "gaps") == "gaps" else NO_GAPS


# ---------------------------------------------------------------- the run


@dataclass(frozen=True)
class _Problems:
    """Measurements y (N, *), the conditions of each, and the truths (N, *shape) where they are known."""

    y: Tensor
    cond: dict[str, Tensor] | None
    truths: Tensor | None = None


@dataclass(frozen=True)
class _Task:
    """A run as a prior, and a measurement of its data."""

    run: TrainedRun
    about: DataDescription
    measurement: Measurement
    settings: RestoreSettings
    keeps: bool
    """Whether what is measured is written again as it was."""

    def solve(self, problems: _Problems, method: str, seed: int, show: bool = False) -> Posterior:
        """The posterior of every problem, on the CPU, `settings.batch` states at a time, on which it does not depend."""
        chosen, count = self.settings, self.settings.samples
        each = max(1, chosen.batch // max(count, chosen.particles or 0))
        common: dict[str, Any] = {"solver": chosen.solver, "steps": chosen.steps, "particles": chosen.particles, "seed": seed}
        if method != "twisted":
            common.pop("particles")
        found = []
        with progress.bar(len(problems.y), f"restoring ({method})", "item", show, leave=False) as bar:
            for first in range(0, len(problems.y), each):
                rows = slice(first, first + each)
                cond = None if problems.cond is None else {name: value[rows] for name, value in problems.cond.items()}
                where: dict[str, Any] = {"shape": self.about.shape, "index_offset": first, "cond": cond, "progress": False}
                found.append(posterior(self.run.model, self.measurement, problems.y[rows], count, method, **where, **common))
                bar.update(len(problems.y[rows]))
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

    def judged(self, problems: _Problems, found: Posterior, seed: int) -> Calibration:
        """The calibration of posteriors, in normalised units."""
        assert problems.truths is not None
        model, shape = self.run.model, found.x.shape
        samples = encoded(model, found.x.flatten(0, 1)).cpu().reshape(shape)
        references = self.references(problems.y)
        return judge(encoded(model, problems.truths).cpu(), samples, found.log_weights, references, seed)


def restore_run(
    run: TrainedRun, settings: RestoreSettings, out: Path | None = None, show: bool = True, say: Callable[[str], None] = print
) -> dict[str, Any]:
    """Restore items of the run's held-out data, or of an input, by every method; say, draw and keep the results.

    restore/<operator> in the run directory gets restore.json, <method>.png and, with --calibrate, calibration.png; an input's restored
    items lie in `out` (None: restored/ there), in its own form: mean, standard deviation and samples, for each method.
    ConfigError, in one line, for an operator, noise, input or label that does not fit the run's data.
    """
    if parallel.world() > 1:
        raise ConfigError("restore works in one process: leave torchrun out")
    model = run.model
    device = next((parameter.device for parameter in model.parameters()), torch.device("cpu"))
    text = settings.operator or "gaps"
    try:
        name, build = parse_operator(text)
        about = DataDescription.of(run.data)
        operator = build(about.shape)
        spread, spread_name = spread_of(about, model)
        noise, noise_line = parse_noise(_noise_text(settings))(operator, about.shape, spread, spread_name)
        task = _Task(run, about, Measurement(operator, noise), settings, name == "gaps")
        given = None
        if settings.input is not None:
            measured = tuple(operator(torch.zeros(1, *about.shape)).shape[1:])
            given = read_degraded(Path(settings.input), about, measured)
        problems, source = _problems(task, given, device)
        tests = _tests(task, given, device) if settings.calibrate else {}
    except ValueError as error:
        raise ConfigError(str(error)) from error
    place = run.directory / "restore" / _slug(text, _noise_text(settings), settings.input)
    place.mkdir(parents=True, exist_ok=True)
    how = f"{settings.samples} samples each, {settings.steps} steps of {settings.solver}"
    say(f"restoring {len(problems.y):,} {source}: {text}, noise {noise_line}; {how}")
    rows: dict[str, dict[str, Any]] = {}
    files, written = [], []
    say(HEADER)
    for method in settings.methods:
        try:
            row, found = _by_method(task, problems, method, show)
        except FAILURES as error:
            rows[method] = {"reason": str(error)}
            say(f"| `{method}` | {error} |")
            continue
        rows[method] = row
        say(_line(method, row))
        names = about.columns if len(about.shape) == 1 else None
        pictured = (
            problems.y.cpu(),
            found.mean(),
            found.std(),
            found.resampled(settings.samples, settings.seed).x,
            place / f"{method}.png",
        )
        files.append(picture_restorations(*pictured, run.data.value_range, problems.truths, names))
        if given is not None:
            root = place / "restored" if out is None else out
            written += _write(task, given, problems, found, root if len(settings.methods) == 1 else root / method)
    for method, row in rows.items():
        for kind, test in tests.items():
            if "reason" in row:
                continue
            try:
                judged = task.judged(test, task.solve(test, method, settings.seed + _OF_TESTS, show), settings.seed)
            except FAILURES as error:
                row.setdefault("calibration", {})[kind] = {"reason": str(error)}
                say(f"calibrated {method}, {TRUTHS[kind]}: {error}")
                continue
            row.setdefault("calibration", {})[kind] = judged.to_json()
            for line in calibration_lines(method, kind, judged):
                say(line)
    curves = {
        f"{method}, {TRUTHS[kind]}": part
        for method, row in rows.items()
        for kind, part in row.get("calibration", {}).items()
        if "reason" not in part
    }
    if curves:
        files.append(plot_calibration(curves, place / "calibration.png"))
    about_it = {"operator": text, "noise": noise_line, "source": source, "items": len(problems.y), "settings": asdict(settings)}
    result = about_it | {"data": run.data.signature(), "methods": rows}
    write_text(place / "restore.json", to_json(result, 1))
    for label, paths in (("restored", written), ("pictures", files), ("numbers", [place / "restore.json"])):
        if paths:
            say(f"{label:<10}{', '.join(map(str, paths))}")
    return result


def _slug(operator: str, noise: str, source: str | None) -> str:
    parts = [*([] if source is None else [Path(source).stem]), operator, "noise", noise]
    return re.sub(r"[^A-Za-z0-9.]+", "-", " ".join(parts)).strip("-.")


def _problems(task: _Task, given: Degraded | None, device: torch.device) -> tuple[_Problems, str]:
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
        return _Problems(given.y.to(device), cond), f"items of {given.name}"
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
    return _Problems(y, cond, truths), f"{source} of {data.name}"


def _labelled(task: _Task, labels: Sequence[str | None], device: torch.device) -> dict[str, Tensor] | None:
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


def _tests(task: _Task, given: Degraded | None, device: torch.device) -> dict[str, _Problems]:
    """The problems of the test of calibration: truths of the model, drawn as its posteriors are, and held-out data."""
    run, settings = task.run, task.settings
    count, seed = settings.calibrate, settings.seed
    cond = conditions_for(run.model, run.data, count, seed + _OF_TRUTHS)
    how: dict[str, Any] = {"solver": settings.solver, "steps": settings.steps, "batch_size": settings.batch, "progress": False}
    drawn = sample(run.model, (count, *task.about.shape), seed=seed + _OF_TRUTHS, cond=cond, **how).x
    found = {"model": (drawn, cond)}
    items, known = run.data.held_out(list(run.model.encoders))
    if items is not None and len(items) >= 20:
        rows = rows_drawn(len(items), count, seed)
        found["held_out"] = (items[rows].to(device), {name: value[rows].to(device) for name, value in known.items()})
    tests = {}
    for name, (truths, labels) in found.items():
        y = task.measurement.simulate(truths, seed + _OF_TRUTHS)
        if given is not None and given.y.shape[1:] == y.shape[1:]:  # the gaps of the input, row after row
            gaps = torch.isnan(given.y)[torch.arange(len(y)) % len(given.y)].to(y.device)
            y = torch.where(gaps, torch.nan, y)
        tests[name] = _Problems(y, labels, truths.cpu())
    return tests


def _by_method(task: _Task, problems: _Problems, method: str, show: bool) -> tuple[dict[str, Any], Posterior]:
    """The row of one method, and its posteriors."""
    began = time.monotonic()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        try:
            found = task.solve(problems, method, task.settings.seed, show)
        except (ValueError, TypeError) as error:
            raise ConfigError(f"method {method!r}: {error}") from error
    row: dict[str, Any] = {"seconds": time.monotonic() - began, "network_calls": float(found.nfe.double().mean())}
    row |= {"samples": found.x.shape[1], "ess": float(found.ess.double().mean())}
    row["warnings"] = [str(one.message) for one in caught if one.category is UserWarning]
    if found.log_evidence is not None and found.log_evidence_error is not None:
        each = found.log_evidence.double()
        row["log_evidence"] = {"value": float(each.mean()), "std_error": _error(each)}
        row["evidence_error"] = float(found.log_evidence_error.double().square().mean().sqrt())
    if problems.truths is not None:
        off = (found.mean() - problems.truths).double().square().flatten(1).mean(1).sqrt()
        row["error"] = {"value": float(off.mean()), "std_error": _error(off)}
        row["coverage"] = task.judged(problems, found, task.settings.seed).to_json()["coverage"]["entries"]
    return row, found


def _error(values: Tensor) -> float:
    return std_error(values) if len(values) > 1 else math.nan


def _write(task: _Task, given: Degraded, problems: _Problems, found: Posterior, root: Path) -> list[Path]:
    """Mean, standard deviation and samples of an input, in its own form."""
    mean, std = found.mean(), found.std()
    samples = found.resampled(task.settings.written, task.settings.seed).x if task.settings.written else found.x[:, :0]
    if task.keeps:
        seen = ~torch.isnan(given.y)
        mean, std = torch.where(seen, given.y, mean.double()), torch.where(seen, 0.0, std.double())
        samples = torch.where(seen[:, None], given.y[:, None], samples.double())
    paths = [given.write(root / "mean", mean, False), given.write(root / "std", std, False)]
    return paths + [given.write(root / f"sample-{k + 1}", samples[:, k]) for k in range(samples.shape[1])]


# ---------------------------------------------------------------- in words


HEADER = (
    "| method | network calls | seconds | error of the mean | 90 % coverage | log evidence | effective samples |\n"
    "|---|---|---|---|---|---|---|"
)
COLUMNS = (
    "Network calls, without vector-Jacobian products, and log evidence (nats) are those of one item. Error of the mean: of the posterior's "
    "mean, in the data's units (root mean square). 90 % coverage: the share of entries inside the central 90 % of their posterior."
)


def _line(method: str, row: dict[str, Any]) -> str:
    def estimate(key: str, digits: int) -> str:
        return f"{row[key]['value']:.{digits}f} +- {row[key]['std_error']:.{digits}f}" if key in row else "-"

    cells = [f"`{method}`", f"{row['network_calls']:,.0f}", f"{row['seconds']:.1f}", estimate("error", 3)]
    cells += [f"{shown_coverage(row['coverage'])[0]:.1%}" if "coverage" in row else "-", estimate("log_evidence", 2)]
    return "| " + " | ".join([*cells, f"{row['ess']:.1f} of {row['samples']}"]) + " |"


def shown_coverage(part: dict[str, Any]) -> tuple[float, float, float]:
    """The coverage at `SHOWN_LEVEL`, with its band."""
    at = part["levels"].index(SHOWN_LEVEL)
    return part["value"][at], *part["band"][at]


def calibration_lines(method: str, kind: str, found: Calibration) -> list[str]:
    """What a test of calibration found."""
    verdict = "calibrated" if found.calibrated else "NOT calibrated"
    tests = f"ranks p = {found.sbc.p_value:.2g}, regions p = {found.region_p:.2g}, TARP p = {found.tarp_p:.2g}"
    return [
        f"calibration {method}, {found.problems} {TRUTHS[kind]}: {verdict} ({tests}); energy score {found.energy}",
        f"{'':<11} entries {found.entries}",
        f"{'':<11} regions {found.regions}",
    ]
