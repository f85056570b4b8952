"""Degraded data restored with a trained run as prior: posterior samples by any method, what they cost, and whether they are calibrated."""

from __future__ import annotations

import math
import re
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import parallel
from ..data import tables
from ..data.columns import Codec
from ..data.degraded import Degraded, read_degraded
from ..data.gappy_rows import GappyRows, fill, read_gappy, write_filled
from ..data.write import DataDescription
from ..diagnostics.calibration import Calibration
from ..diagnostics.finding import std_error
from ..inverse import Measurement, Posterior
from ..report.files import write_text
from ..report.restorations import picture_restorations, plot_calibration
from ..sampling.failures import SolverError
from ..unknown_numbers import to_json
from .config import ConfigError
from .measurement_text import parse_noise, parse_operator, spread_of
from .restore_problems import OF_TESTS, Problems, Task, problems_of, tests_of
from .restore_settings import RestoreSettings, noise_text
from .runs import TrainedRun

SHOWN_LEVEL = 0.9
"""Of the coverage in the table."""
FEW = 4
"""Independent particles, on which neither a spread nor the error of an evidence can be founded."""
FAILURES = (SolverError, torch.linalg.LinAlgError)
"""Of one method, which is said of it: the others go on."""
TRUTHS = {"model": "truths from the model", "held_out": "held-out data"}


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
        noise, noise_line = parse_noise(noise_text(settings))(operator, about.shape, spread, spread_name)
        entrywise = name == "gaps" and about.codec is not None and noise_text(settings) == "0"
        task = Task(run, about, Measurement(operator, noise), settings, name == "gaps", entrywise)
        given: Degraded | GappyRows | None = None
        if settings.input is not None:
            measured = tuple(operator(torch.zeros(1, *about.shape)).shape[1:])
            if about.codec is not None and Path(settings.input).suffix.lower() in tables.ENDINGS:
                given = _rows(Path(settings.input), about, run.config.data.missing, name)
            else:
                given = read_degraded(Path(settings.input), about, measured)
        problems, source = problems_of(task, given, device)
        tests = tests_of(task, given, device) if settings.calibrate else {}
    except ValueError as error:
        raise ConfigError(str(error)) from error
    place = run.directory / "restore" / _slug(text, noise_text(settings), settings.input)
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
        for warning in row["warnings"]:
            say(f"warning   {method}: {warning}")
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
            root = root if len(settings.methods) == 1 else root / method
            if isinstance(given, GappyRows):
                written += _write_rows(task, given, found, root)
            else:
                written += _write(task, given, problems, found, root)
    files += _calibrated(task, rows, tests, place / "calibration.png", show, say)
    about_it = {"operator": text, "noise": noise_line, "source": source, "items": len(problems.y), "settings": asdict(settings)}
    result = about_it | {"data": run.data.signature(), "methods": rows}
    write_text(place / "restore.json", to_json(result, 1))
    for label, paths in (("restored", written), ("pictures", files), ("numbers", [place / "restore.json"])):
        if paths:
            say(f"{label:<10}{', '.join(map(str, paths))}")
    return result


def _calibrated(
    task: Task, rows: dict[str, dict[str, Any]], tests: dict[str, Problems], picture: Path, show: bool, say: Callable[[str], None]
) -> list[Path]:
    """Put the calibration of each method into its row, say it and draw it; gives the pictures."""
    for method, row in rows.items():
        for kind, test in tests.items():
            if "reason" in row:
                continue
            try:
                judged = task.judged(test, task.solve(test, method, task.settings.seed + OF_TESTS, show), task.settings.seed)
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
    return [plot_calibration(curves, picture)] if curves else []


def _slug(operator: str, noise: str, source: str | None) -> str:
    parts = [*([] if source is None else [Path(source).stem]), operator, "noise", noise]
    return re.sub(r"[^A-Za-z0-9.]+", "-", " ".join(parts)).strip("-.")


def _by_method(task: Task, problems: Problems, method: str, show: bool) -> tuple[dict[str, Any], Posterior]:
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
    row["particles"] = row["samples"]
    if method == "twisted" and task.settings.particles is not None:
        size = task.settings.particles  # whole groups of them
        row["particles"] = -(-row["samples"] // size) * size
    row["warnings"] = [str(one.message) for one in caught if one.category is UserWarning]
    if found.lineages is not None:
        row["lineages"] = float(found.lineages.double().mean())
        few = int((found.lineages < FEW).sum())
        if few:
            row["warnings"].append(
                f"the particles of {few} of {len(found.lineages)} items come from fewer than {FEW} of those at the start: "
                "spread and evidence are not to be trusted there; more --particles, or more --noise"
            )
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


def _rows(path: Path, about: DataDescription, missing: float | str | None, operator: str) -> GappyRows:
    """Rows of a table of kinds with gaps."""
    if operator != "gaps":
        raise ValueError(
            f"{path.name}: rows of a table of kinds (words, counts, gaps) are restored from their gaps alone, not by {operator!r}"
        )
    label = None if about.label_column is None else about.label_column[0]
    return read_gappy(path, Codec.from_config(about.codec), missing, label)


def _write_rows(task: Task, given: GappyRows, found: Posterior, root: Path) -> list[Path]:
    """The table with its gaps filled, how uncertain what fills them is, and samples."""
    weights, x = found.weights.double().numpy(), found.x.double().numpy()
    columns, uncertain, taken = fill(given.codec, given.rows, x, weights)
    known = np.zeros(len(x), dtype=bool)
    spread = [replace(column, values=np.round(v, 6), missing=known, dtype=None) for column, v in zip(columns, uncertain, strict=True)]
    paths = [write_filled(given, root / "filled", columns), write_filled(given, root / "uncertainty", spread, False)]
    rng = np.random.default_rng(task.settings.seed)
    for k in range(task.settings.written):
        chosen = (taken.cumsum(1) > rng.random((len(taken), 1))).argmax(1)
        paths.append(write_filled(given, root / f"sample-{k + 1}", given.codec.decode(x[np.arange(len(x)), chosen])))
    return paths


def _write(task: Task, given: Degraded, problems: Problems, found: Posterior, root: Path) -> list[Path]:
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
    "| method | network calls | seconds | error of the mean | 90 % coverage | log evidence | effective samples | of so many lineages |\n"
    "|---|---|---|---|---|---|---|---|"
)
COLUMNS = (
    "Network calls, without vector-Jacobian products, and log evidence (nats) are those of one item. Error of the mean: of the posterior's "
    "mean, in the data's units (root mean square). 90 % coverage: the share of entries inside the central 90 % of their posterior. "
    "Effective samples are counted by weight, lineages by the particles of the start that samples come from: so many are independent."
)


def _line(method: str, row: dict[str, Any]) -> str:
    def estimate(key: str, digits: int) -> str:
        return f"{row[key]['value']:.{digits}f} +- {row[key]['std_error']:.{digits}f}" if key in row else "-"

    cells = [f"`{method}`", f"{row['network_calls']:,.0f}", f"{row['seconds']:.1f}", estimate("error", 3)]
    cells += [f"{shown_coverage(row['coverage'])[0]:.1%}" if "coverage" in row else "-", estimate("log_evidence", 2)]
    cells += [f"{row['ess']:.1f} of {row['particles']}", f"{row['lineages']:.1f}" if "lineages" in row else "-"]
    return "| " + " | ".join(cells) + " |"


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
