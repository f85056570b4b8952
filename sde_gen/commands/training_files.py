"""The files that a finished training leaves beside its checkpoint, made from it and the data: history.json, metrics.json, loss.png and
forward.png. A command that was killed before it had made them all leaves the rest to the next one."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from .. import progress, report
from ..data import Dataset
from ..exact.empirical import affordable_states, best_level_loss
from ..models.score import ScoreModel
from ..report.files import write_text
from ..training import read_extra, read_state
from ..training.loss_summary import measure_levels
from ..unknown_numbers import from_json, to_json
from ..version import __version__
from .config import RunConfig
from .cost import seconds_per_call

TRAINING_FILES = ("history.json", "metrics.json", "loss.png", "forward.png")
"""A training is finished when its checkpoint says so and these are there."""
MOST_ITEMS, LEAST, MOST_NUMBERS = 256, 8, 1 << 26
"""Items of which the losses by level at the end are measured, and the numbers of all their states at all levels."""
SHARE, SECONDS = 0.05, 10.0
"""They cost at most this share of the training, or so many seconds."""
PARTS_OF_METRICS = ("steps", "seconds", "skipped", "environment", "earlier_ends")


def missing_files(directory: Path) -> list[str]:
    """Which of `TRAINING_FILES` are not there, or are not what a training leaves."""
    read = {"history.json": history_of, "metrics.json": metrics_of}
    return [name for name in TRAINING_FILES if (read[name](directory) is None if name in read else not (directory / name).is_file())]


def metrics_of(directory: Path) -> dict[str, Any] | None:
    """What metrics.json holds; None where it is not there, or not what the commands write."""
    found = _read(directory / "metrics.json")
    whole = isinstance(found, dict) and isinstance(found.get("solvers"), dict) and isinstance(found.get("training", {}), dict)
    return found if whole else None


def history_of(directory: Path) -> dict[str, Any] | None:
    """What history.json holds; None where it is not there, or not what the commands write."""
    found = _read(directory / "history.json")
    whole = isinstance(found, dict) and _is_history(found.get("history")) and isinstance(found.get("linear"), dict)
    return found if whole else None


def _read(path: Path) -> Any:
    """The value of a JSON file; None where it cannot be read."""
    try:
        return from_json(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _is_history(entries: Any) -> bool:
    """Whether these are the losses of a training, at least one."""
    return isinstance(entries, list) and bool(entries) and all(isinstance(one, dict) and {"step", "loss"} <= one.keys() for one in entries)


def make_missing_files(
    directory: Path, model: ScoreModel, data: Dataset, config: RunConfig, say: Callable[[str], None] = print, show: bool = True
) -> None:
    """Make what is missing of `TRAINING_FILES`; `model`: the trained one, `show`: its progress. Says what cannot be made any more."""
    missing = missing_files(directory)
    if not missing:
        return
    broken = [name for name in missing if (directory / name).exists()]
    extra = read_extra(directory / "checkpoint")
    with progress.bar(len(missing), "training's files", "file", show, leave=False) as bar:
        if "history.json" in missing:
            _write_history(directory, model, data, config, extra)
            bar.update()
        if "metrics.json" in missing:
            training = {name: extra[name] for name in PARTS_OF_METRICS if name in extra}
            write_text(directory / "metrics.json", to_json({"training": training, "solvers": _solvers(directory)}, 2))
            bar.update()
        known = history_of(directory)
        if "loss.png" in missing and known is not None:
            with contextlib.suppress(KeyError, TypeError, ValueError, IndexError):  # entries that the commands do not write
                report.plot_loss(known["history"], directory / "loss.png", known["linear"])
            bar.update()
        if "forward.png" in missing:
            _forward_picture(model, data, directory / "forward.png")
            bar.update()
    lost = missing_files(directory)
    again = [name for name in broken if name not in lost]
    if again:
        say(f"warning   {', '.join(again)} held something else than the commands write: made again from the checkpoint")
    if lost:
        say(f"warning   {', '.join(lost)} cannot be made: the files of the training and its checkpoint do not hold what they show")


def _solvers(directory: Path) -> dict[str, dict[str, Any]]:
    """The metrics of each solver from its own folder, the last measured one last."""
    files = sorted((directory / "solvers").glob("*/metrics.json"), key=lambda path: path.stat().st_mtime)
    return {path.parent.name: scores for path in files if isinstance(scores := _read(path), dict)}


def conditions_of(config: RunConfig, data: Dataset) -> list[str]:
    """The names of what the configuration's network is told of each item."""
    return [*(["label"] if config.data.labels else []), *data.cond]


def category_names(data: Dataset, name: str) -> list[int | str] | None:
    """The files' own words for the classes of a condition, in their order; None for one that is no category."""
    if name == "label":
        return list(data.label_names or range(data.classes or 0))
    return list(data.cond_names[name]) if name in data.cond_names else None


def _write_history(directory: Path, model: ScoreModel, data: Dataset, config: RunConfig, extra: dict[str, Any]) -> None:
    history = _history(directory, extra)
    if history is None or "linear" not in extra:
        return
    names = conditions_of(config, data)
    levels = extra["linear"]["levels"]
    most = max(LEAST, MOST_NUMBERS // (len(levels) * math.prod(data.shape)))  # all states of all levels are in memory together
    samples = min(most, affordable_states(data.train, len(levels)))
    of_labels = data.train_labels if "label" in names else None
    linear = extra["linear"] | {"best": best_level_loss(model, data.train, levels, of_labels, samples)}
    per_call = seconds_per_call(model, data.shape, LEAST)
    affordable = max(SECONDS, SHARE * float(extra.get("seconds", 0.0))) / (per_call * 2 * len(levels))
    count = max(LEAST, min(MOST_ITEMS, int(affordable)))
    of_train: dict[str, Any] = data.conditions(names)
    items = measure_levels(model, data.train, data.held_out(names)[0], config.training.seed, of_train, data.held_out(names)[1], count)
    write_text(directory / "history.json", to_json({"history": history, "linear": linear, "items": items}, 1))


def _history(directory: Path, extra: dict[str, Any]) -> list[dict[str, Any]] | None:
    """The losses of the whole training: of history.jsonl, or of the checkpoint where that file is not whole."""
    try:
        lines = (directory / "history.jsonl").read_text(encoding="utf-8").splitlines()
        history = [from_json(line) for line in lines]
        if _is_history(history) and history[-1]["step"] == extra["steps"]:
            return history
    except (OSError, ValueError, KeyError):
        pass
    state = read_state(directory / "checkpoint")
    kept = None if state is None else state[1].get("history")
    return kept if _is_history(kept) else None


def _forward_picture(model: ScoreModel, data: Dataset, path: Path) -> None:
    sde = model.sde
    vectors = len(data.shape) == 1
    x_0 = (data.test if data.test is not None else data.train)[: 2000 if vectors else 5]
    assert model.normalizer is not None
    lambdas = torch.linspace(float(sde.half_log_snr(sde.t_min)), float(sde.half_log_snr(sde.t_max)), 9, dtype=torch.float64)[1:]
    times = sde.time_of(lambdas).clamp(sde.t_min, sde.t_max)
    z = model.normalizer.encode(x_0.to(next(model.parameters()).device))
    noise = torch.randn(z.shape, generator=torch.Generator().manual_seed(0)).to(z)
    columns, labels = [x_0], ["data\n\n"]
    for t in times:
        alpha, sigma = (float(value) for value in sde.marginal(t))
        columns.append(shown_state(model, alpha * z + sigma * noise, float(t)))
        labels.append(report.level_label(float(t), sigma, float(sde.half_log_snr(t))))
    report.picture_forward(torch.stack(columns, dim=1), labels, path, data.value_range)


def shown_state(model: ScoreModel, x: torch.Tensor, t: float) -> torch.Tensor:
    """A state at unit variance in the data's units, so that every SDE's noise looks alike on a picture."""
    alpha, sigma = (float(value) for value in model.sde.marginal(torch.tensor(t, dtype=torch.float64)))
    std = model.data_std or 1.0
    assert model.normalizer is not None
    return model.normalizer.decode(x * (std / (alpha**2 * std**2 + sigma**2) ** 0.5)).cpu()


def environment(device: torch.device | str) -> dict[str, Any]:
    """What numbers were made with: versions, device and threads."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"sde_gen": __version__, "torch": torch.__version__, "device": name, "threads": torch.get_num_threads()}
