"""What a run directory holds, as far as it can be read, and what a reader of its numbers must be warned of."""

from __future__ import annotations

import math
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from ..diagnostics.information import Information, findings
from ..training import CheckpointError, read_extra
from ..training.loss_summary import summarise_losses, warnings_of_losses
from ..unknown_numbers import from_json, number, with_nan
from .config import ConfigError, RunConfig, read_config, resolve

CHANCE = 0.05
"""Of new data: the share that is as near to a training item as the nearest 5 % of held-out data are."""
SURE = 2.0
"""Standard errors beyond which a share of memorised samples is warned of."""
FAR = {"neighbour_ratio": 1.5, "frechet_distance": 10.0, "sliced_wasserstein": 3.0}
"""Times what held-out data have, by two standard errors at least, beyond which samples stray from the data (the Frechet distance is a
square)."""
LEAST_CONFIRMED = 0.8
"""Of the share of held-out data whose class the features' classifier confirms: below it, by two standard errors, samples are warned of."""
LARGE = 0.1
"""Of a likelihood: the solver's own estimate of its error beyond which the number says little."""
DISTANCES = {"frechet_distance": "Fréchet distance", "sliced_wasserstein": "sliced Wasserstein distance"}
OF_IMAGES = {"fid": "FID", "imagenet_distance": "Fréchet distance in ImageNet features"}
"""Distances in features that are the same for everybody."""


@dataclass
class SavedRun:
    """What a run directory holds; `lost` names what was there and could not be read."""

    directory: Path
    config: RunConfig
    metrics: dict[str, Any] = field(default_factory=dict)
    history: dict[str, Any] = field(default_factory=dict)
    likelihood: dict[str, Any] = field(default_factory=dict)
    comparison: dict[str, Any] = field(default_factory=dict)
    restorations: list[dict[str, Any]] = field(default_factory=list)
    findings: list[dict[str, Any]] | None = None
    lost: list[str] = field(default_factory=list)
    name: str = ""

    def __post_init__(self) -> None:
        self.name = self.name or self.directory.absolute().name or str(self.directory)

    @property
    def solvers(self) -> dict[str, dict[str, Any]]:
        solvers: dict[str, dict[str, Any]] = self.metrics.get("solvers", {})
        return solvers

    def loss_summary(self) -> list[str]:
        """What the training's loss by noise level says."""
        if not self.history:
            return []
        ratios = [scores["neighbour_ratio"]["value"] for scores in self.solvers.values() if "neighbour_ratio" in scores]
        return summarise_losses(
            self.history["history"], self.history["linear"] | self.history.get("items", {}), ratios[-1] if ratios else None
        )


def read_run(directory: Path) -> SavedRun:
    """What lies in a run directory; ConfigError where it is none."""
    file = directory / "config.yaml"
    if not file.is_file():
        raise ConfigError(f"{directory} is not a run directory: it has no config.yaml")
    found = SavedRun(directory, resolve(read_config(file)))
    for name, part, kind in (
        ("metrics", "metrics.json", dict),
        ("history", "history.json", dict),
        ("likelihood", "likelihood/likelihood.json", dict),
        ("comparison", "compare/compare.json", dict),
        ("findings", "doctor.json", list),
    ):
        path = directory / part
        if not path.exists():
            continue
        try:
            value = from_json(path.read_text(encoding="utf-8"))
            solvers = value.get("solvers", {}) if isinstance(value, dict) else {}
            if not isinstance(value, kind) or not isinstance(solvers, dict):
                raise ValueError
            setattr(found, name, with_nan(value) if name == "history" else value)
        except (OSError, ValueError, RecursionError):
            found.lost.append(part)
    for path in sorted((directory / "restore").glob("*/restore.json")):
        try:
            value = from_json(path.read_text(encoding="utf-8"))
            if not isinstance(value, dict):
                raise ValueError
            found.restorations.append(value | {"place": path.parent})
        except (OSError, ValueError, RecursionError):
            found.lost.append(path.relative_to(directory).as_posix())
    return found


def warnings(run: SavedRun) -> list[str]:
    """What a reader of the run's numbers must know, each in one line."""
    lines = [f"{part} is there and cannot be read; what it holds is missing here" for part in run.lost]
    checks = (_of_training, _of_data, _of_solvers, _of_conditions, _of_comparison, _of_likelihood, _of_restorations, _of_findings)
    for check in checks:
        try:
            lines += check(run)
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            lines.append(f"the run's files are not what the commands write ({error!r})")
    return lines


def _of_training(run: SavedRun) -> list[str]:
    lines = []
    try:
        if not read_extra(run.directory / "checkpoint").get("complete"):
            lines.append("the training has not ended; the same command goes on from its last checkpoint")
    except CheckpointError:
        lines.append("there is no readable checkpoint: these numbers cannot be made again without training again")
    skipped = run.metrics.get("training", {}).get("skipped", 0)
    if skipped:
        lines.append(f"{skipped} training steps were skipped because their loss or gradients were not finite")
    summary = run.loss_summary()
    if not summary:
        lines.append("there is no loss by noise level: nothing tells whether the network has learned")
    return lines + warnings_of_losses(summary)


def _of_data(run: SavedRun) -> list[str]:
    try:
        trained = read_extra(run.directory / "checkpoint").get("data")
    except CheckpointError:
        return []
    measured = run.solvers | {"the likelihood": run.likelihood, "the comparison": run.comparison}
    measured |= {f"restored from {part.get('operator')}": part for part in run.restorations}
    other = [name for name, scores in measured.items() if trained and scores.get("data", trained) != trained]
    return [f"{name}: measured against other data than the network was trained on" for name in other]


def _of_solvers(run: SavedRun) -> list[str]:
    lines = []
    for name, scores in run.solvers.items():
        copied = scores.get("memorised_fraction")
        if copied and number(copied["value"]) > CHANCE + SURE * number(copied["std_error"]):
            share = f"{number(copied['value']):.3f} ± {number(copied['std_error']):.3f}"
            lines.append(f"{name}: {share} of the samples are nearer to a training item than 95 % of held-out ones are (chance: {CHANCE})")
        ratio = scores.get("neighbour_ratio")
        if ratio and number(ratio["value"]) - SURE * number(ratio["std_error"]) > FAR["neighbour_ratio"]:
            value = f"{number(ratio['value']):.2f} ± {number(ratio['std_error']):.2f}"
            lines.append(f"{name}: the samples are {value} times as far from the training data as held-out data: noisy, blurred or astray")
        for key, label in DISTANCES.items():
            lines += _far(name, label, scores.get(key), scores.get(f"held_out_{key}"), FAR[key])
            if key in scores and not math.isfinite(number(scores[key]["value"])):
                lines.append(f"{name}: the {label} is not finite")
    return lines


def _of_conditions(run: SavedRun) -> list[str]:
    lines = []
    names = {field.name for field in fields(Information)}
    for name, one in run.metrics.get("information", {}).items():
        if "reason" not in one:
            measured = Information(**{key: value for key, value in with_nan(one).items() if key in names})
            lines += [f"{found.name}: {found.evidence}; {found.advice}" for found in findings(name, measured, one.get("most"))]
    for name, scores in run.solvers.items():
        by_class = scores.get("by_class", {})
        share, judge = by_class.get("confirmed"), number(by_class.get("judge"))
        if share and number(share["value"]) + SURE * number(share["std_error"]) < LEAST_CONFIRMED * judge:
            value = f"{number(share['value']):.3f} ± {number(share['std_error']):.3f}"
            lines.append(
                f"{name}: {value} of the samples alone are taken for the class that they were drawn for, of held-out data {judge:.3f}"
            )
    return lines


def _far(name: str, label: str, ours: dict[str, Any] | None, held_out: dict[str, Any] | None, most: float) -> list[str]:
    """Warn of a distance of samples that is more than `most` times that of as many held-out items, beyond the errors of both."""
    if ours is None or held_out is None:
        return []
    (value, error), (least, of_least) = ((number(one["value"]), number(one["std_error"])) for one in (ours, held_out))
    if not value - most * least > SURE * math.hypot(error, most * of_least):
        return []
    return [
        f"{name}: the {label} to the training data, {value:.3g} ± {error:.2g}, is far above held-out data's, {least:.3g} ± {of_least:.2g}"
    ]


def _of_comparison(run: SavedRun) -> list[str]:
    rows = run.comparison.get("rows", [])
    return [f"{row['solver']} at {row['calls']} calls: {row['failed']} samples were not finite" for row in rows if row["failed"]]


def _of_likelihood(run: SavedRun) -> list[str]:
    lines = []
    unit = run.likelihood.get("unit")
    for name, part in run.likelihood.get("parts", {}).items():
        solver, value = number(part.get("solver")), number(part["value"])
        if solver > LARGE * max(1.0, abs(value)):
            lines.append(f"likelihood of {name}: the solver's estimate of its own error is {solver:.2g} {unit}; lower --tolerance")
        if number(part.get("converged", 1.0)) < 1:
            lines.append(f"likelihood of {name}: {1 - part['converged']:.1%} of the items did not converge and are left out")
        if not math.isfinite(value):
            lines.append(f"likelihood of {name}: not finite")
    return lines


def _of_restorations(run: SavedRun) -> list[str]:
    lines = []
    for part in run.restorations:
        for method, row in part["methods"].items():
            name = f"restored from {part['operator']} by {method}"
            if "reason" in row:
                lines.append(f"{name}: {row['reason']}")
            test = row.get("calibration", {}).get("model", {})
            if test.get("calibrated") is False:
                lines.append(f"{name}: its posteriors are not calibrated (p = {number(test['p_value']):.2g}): do not trust their spread")
            lines += [f"{name}: {line}" for line in row.get("warnings", [])]
    return lines


def _of_findings(run: SavedRun) -> list[str]:
    return [f"doctor: {found['name']}: {found['evidence']}; {found['advice']}" for found in run.findings or []]
