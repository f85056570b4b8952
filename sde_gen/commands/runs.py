"""One run: a directory with a trained network, and what each solver made of it."""

from __future__ import annotations

import contextlib
import json
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import parallel, report
from ..data import SOURCES, Dataset, download, load_dataset
from ..exact.empirical import best_level_loss
from ..models.score import ScoreModel
from ..networks import summary
from ..report.events import EventWriter, require_tensorboard
from ..report.files import atomic_path
from ..sampling.fitting import check_fit
from ..sampling.sample import sample
from ..solvers import GRIDS, make_solver
from ..training import CheckpointError, Objective, State, TrainResult, build_model, check_processes, fit, load, read_extra, read_state, save
from ..training.loss_summary import measure_levels
from ..version import __version__
from .config import ConfigError, RunConfig
from .noise_ends import resolve_ends, warnings_of_ends

FILM = 100
OF_TRAINING = ("snapshots", "tensorboard")
"""What a training writes as it goes: a new one begins without what another left."""
OF_NETWORK = (
    *("solvers", "compare", "likelihood"),
    *("history.json", "metrics.json", "doctor.json", "report.html", "loss.png", "samples.png", "denoising.gif"),
)
"""What was made of a trained network: it stays as long as that network's checkpoint does."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class TrainedRun:
    """A run directory, its configuration, data and trained model."""

    directory: Path
    config: RunConfig
    data: Dataset
    model: ScoreModel


def default_directory(config: RunConfig) -> Path:
    """runs/<data>-<sde>; of a path its last part, without the ending."""
    return Path("runs") / f"{Path(config.data.name).name.split('.')[0] or 'data'}-{config.sde.name}"


def choose_device(name: str | None) -> torch.device:
    """The device `name`, or CUDA where present and else the CPU; ConfigError for one that is not here."""
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
    except RuntimeError as error:
        raise ConfigError(f"unknown device {name!r}; try cpu, cuda or cuda:0") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ConfigError(f"device {name!r} was asked for, and PyTorch sees no CUDA device here; leave --device out or use cpu")
    return device


def fetch_data(config: RunConfig, say: Say = print) -> None:
    """Download the files of the configuration's data set that are not there; ConfigError where that cannot be done."""
    try:
        download(config.data.name, config.data.root, say)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def load_data(config: RunConfig) -> Dataset:
    """The configuration's data set; ConfigError where it is missing, unreadable or cannot be trained on."""
    try:
        chosen = config.data
        if chosen.root is not None and chosen.name not in SOURCES:
            raise ValueError(f"data.root is for {', '.join(SOURCES)}, whose files it holds; {chosen.name!r} reads none from there")
        column = None if chosen.label_column is None else str(chosen.label_column)
        return load_dataset(chosen.name, chosen.root, config.training.seed, chosen.limit, chosen.size, column)
    except ValueError as error:
        raise ConfigError(str(error)) from error


def check(config: RunConfig, data: Dataset) -> ScoreModel:
    """The model that the configuration describes, not trained: every name and setting is checked before any work."""
    sampling = config.sampling
    try:
        solver = make_solver(sampling.solver, **sampling.options)
        if sampling.grid == "fitted":
            check_fit(sampling.solver, solver, sampling.steps)
            if sampling.options:
                raise ValueError("a fitted grid has options of its own: leave sampling.options empty")
        elif sampling.grid is not None and sampling.grid not in GRIDS:
            raise ValueError(f"unknown grid {sampling.grid!r}; choose from {', '.join(GRIDS)}, fitted")
        if config.data.labels and data.classes is None:
            raise ValueError(f"data {data.name!r} has no labels to train on")
        model = build_model(
            data.train,
            config.sde.name,
            config.model.network,
            config.model.prediction,
            config.model.prior,
            config.model.normalizer,
            config.sde.settings,
            config.model.options,
            data.classes if config.data.labels else None,
            config.training.seed,
            config.model.variance,
        )
        Objective(config.training, model, data.levels)
        if solver.needs_variance and model.variance is None:
            raise ValueError(f"solver {sampling.solver!r} with these options needs a network that learns the variance: --learned-variance")
        model.scales(torch.full((1,), model.sde.t_max, dtype=torch.float64))  # a clock or prediction that does not suit the SDE
        return model
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error


def open_run(
    config: RunConfig,
    directory: Path | None = None,
    device: torch.device | str = "cpu",
    retrain: bool = False,
    progress: bool = True,
    checkpoint_seconds: float | None = None,
    say: Say = print,
    tensorboard: bool = False,
) -> TrainedRun:
    """The run of `config`: its trained network is reused where the directory holds it, a training that was stopped goes on, else
    it is trained now.

    `tensorboard`: a training writes event files in tensorboard/ too. ConfigError where the directory holds a network of other training
    settings and `retrain` is not set, or tensorboard is not installed.
    """
    directory = default_directory(config) if directory is None else directory
    checkpoint = directory / "checkpoint"
    data = load_data(config)
    for note in data.notes:
        say(f"data      {note}")
    config, evidence = resolve_ends(config, data)
    for line in evidence:
        say(f"noise     {line}")
    model = check(config, data)
    if parallel.rank() == 0:
        _check_directory(directory)
    resume = None
    if (checkpoint.exists() or (directory / "config.yaml").exists()) and not retrain:
        trained, resume = _reusable(checkpoint, config)
        changed = changed_data(checkpoint, config, data)
        if changed:
            say(f"warning   {changed}; --retrain trains on the data as they are")
        if resume is None:
            extra = read_extra(checkpoint)
            spent = f"{extra['steps']} steps, {extra['seconds']:.0f} s of training"
            say(f"reusing   the network in {checkpoint} ({spent}); --retrain trains again")
            parallel.wait()
            return TrainedRun(directory, config, data, trained.to(device))
        say(f"resuming  the training in {checkpoint} at step {resume[1]['step']} of {config.training.steps}; --retrain starts again")
    check_world(config)
    if tensorboard:
        try:
            require_tensorboard()
        except ImportError as error:
            raise ConfigError(str(error)) from error
    parallel.wait()  # until all have seen the directory as it was
    assert isinstance(model.network, torch.nn.Module)
    for line in warnings_of_ends(config, data):
        say(f"warning   {line}")
    say(f"network   {summary(model.network, data.shape)}")
    if parallel.rank() == 0:
        directory.mkdir(parents=True, exist_ok=True)
        write_text(directory / "config.yaml", config.to_yaml())
    result = _train(model, data, config, directory, device, progress, checkpoint_seconds, resume, tensorboard)
    rate = result.steps * config.training.batch / result.seconds
    skipped = f", {result.skipped} steps skipped as not finite" if result.skipped else ""
    together = f", {parallel.world()} processes" if parallel.world() > 1 else ""
    say(f"trained   {result.steps} steps of {config.training.batch} in {result.seconds:.0f} s ({rate:.0f} samples/s{together}{skipped})")
    return TrainedRun(directory, config, data, result.model)


def _check_directory(directory: Path) -> None:
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"cannot write to {directory}: {existing} is not a directory")
    probe = existing / ".sde_gen-write-test"
    try:
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise ConfigError(f"cannot write to {directory}: {error.strerror}") from error


def check_world(config: RunConfig) -> None:
    """ConfigError for training settings that the processes at hand cannot train with."""
    try:
        check_processes(config.training, parallel.world())
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _reusable(checkpoint: Path, config: RunConfig) -> tuple[ScoreModel, State | None]:
    """The trained network of a run directory, and, where its training has not ended, the state that it goes on from."""
    try:
        extra = read_extra(checkpoint)
        model = load(checkpoint)
        resume = None if extra.get("complete") else read_state(checkpoint)
        if not isinstance(extra.get("steps"), int) or not isinstance(extra.get("seconds"), int | float):
            raise CheckpointError(f"the checkpoint at {checkpoint} does not say how long it was trained")
    except CheckpointError as error:
        raise ConfigError(f"{error}; --retrain replaces it, --out DIR trains beside it") from error
    if resume is not None and not _is_state(resume[1]):
        raise ConfigError(f"the state of the training in {checkpoint} is no such state; --retrain replaces it, --out DIR trains beside it")
    different = _differences(_with_new_settings(extra.get("identity", {})), config.identity())
    if different:
        shown = "; ".join(f"{key} {json.dumps(old)} -> {json.dumps(new)}" for key, old, new in different[:3])
        raise ConfigError(f"{checkpoint} holds a network of other settings ({shown}): --retrain replaces it, --out DIR trains beside it")
    if not extra.get("complete") and resume is None:
        raise ConfigError(f"{checkpoint} was left at step {extra.get('steps')} with no state to go on from: --retrain trains again")
    return model, resume


def changed_data(checkpoint: Path, config: RunConfig, data: Dataset) -> str | None:
    """How the data differ from those that the network in `checkpoint` was trained on, or None; ConfigError where it does not fit them."""
    known, now = read_extra(checkpoint).get("data"), data.signature()
    if not isinstance(known, dict) or known == now:
        return None
    what = f"the network in {checkpoint} was trained on other data of this name"
    for key in ("shape", "classes") if config.data.labels else ("shape",):
        if known.get(key) != now[key]:
            change = f"{key} {json.dumps(known.get(key))}, now {json.dumps(now[key])}"
            raise ConfigError(f"{what} ({change}): --retrain replaces it, --out DIR trains beside it")
    values = ", of other values" if known.get("items") == now["items"] else ""
    return f"{what} ({known.get('items')} items, now {now['items']}{values})"


def _is_state(values: dict[str, Any]) -> bool:
    history = values.get("history")
    return isinstance(values.get("step"), int) and isinstance(history, list) and all(isinstance(entry, dict) for entry in history)


def _with_new_settings(identity: dict[str, Any]) -> dict[str, Any]:
    """An identity with the settings that did not exist when it was saved, at their defaults."""
    with contextlib.suppress(ValueError):
        return RunConfig.model_validate(identity).identity()
    return identity


def _differences(old: Any, new: Any, key: str = "") -> list[tuple[str, Any, Any]]:
    if isinstance(old, dict) and isinstance(new, dict):
        keys = dict.fromkeys([*old, *new])
        return [item for name in keys for item in _differences(old.get(name), new.get(name), f"{key}.{name}".lstrip("."))]
    return [] if old == new else [(key, old, new)]


def _train(
    model: ScoreModel,
    data: Dataset,
    config: RunConfig,
    directory: Path,
    device: torch.device | str,
    progress: bool,
    checkpoint_seconds: float | None,
    resume: State | None,
    tensorboard: bool,
) -> TrainResult:
    replaces = resume is None  # what lies here was made of another network, until the first save

    def evaluated(step: int, result: TrainResult) -> None:
        count = 1000 if len(data.shape) == 1 else 25
        common: dict[str, Any] = {
            "seed": config.sampling.seed,
            "progress": False,
            "on_failure": "mask",
            "cond": class_labels(result.model, count),
        }
        out = sample(result.model, (count, *data.shape), "em", steps=50, **common)
        report.picture_samples(out.x.cpu(), snapshots / f"step-{step:06d}.png", data.train, data.value_range)

    def keep(step: int, result: TrainResult, complete: bool = False) -> None:
        nonlocal replaces
        if replaces:
            _remove(directory, OF_NETWORK)
            replaces = False
        extra = {"complete": complete, "steps": step, "seconds": result.seconds, "identity": config.identity(), "data": signature}
        state = None if complete else result.state()
        save(result.raw, directory / "checkpoint", ema=result.model.network, extra=extra, state=state)  # type: ignore[arg-type]

    def note(entry: dict[str, Any]) -> None:
        with log.open("a", encoding="utf-8") as file:
            file.write(json.dumps(entry) + "\n")
        if events is not None:
            events.add(entry)

    snapshots, log, signature = directory / "snapshots", directory / "history.jsonl", data.signature()
    first = parallel.rank() == 0
    if first:
        if resume is None:
            _remove(directory, OF_TRAINING)
        snapshots.mkdir(exist_ok=True)
        lines = [] if resume is None else resume[1]["history"]
        write_text(log, "".join(json.dumps(entry) + "\n" for entry in lines))
    items, labels = data.training
    with contextlib.ExitStack() as stack:
        events = None
        if tensorboard and first:
            step = 0 if resume is None else int(resume[1]["step"])
            events = stack.enter_context(EventWriter(directory / "tensorboard", config.training.batch, step))
        result = fit(
            model,
            items,
            config.training,
            labels if config.data.labels else None,
            held_out=data.test,
            levels=data.levels,
            device=device,
            progress=progress,
            on_evaluate=evaluated,
            on_checkpoint=keep,
            checkpoint_seconds=checkpoint_seconds,
            on_log=note,
            resume=resume,
        )
    if not first:
        return result
    keep(result.steps, result, complete=True)
    training = {"steps": result.steps, "seconds": result.seconds, "skipped": result.skipped, "environment": environment(device)}
    of_labels = data.train_labels if config.data.labels else None
    linear = result.linear | {"best": best_level_loss(result.model, data.train, result.linear["levels"], of_labels)}
    items_loss = measure_levels(result.model, data.train, data.test, config.training.seed)
    write_text(directory / "history.json", json.dumps({"history": result.history, "linear": linear, "items": items_loss}, indent=1))
    write_text(directory / "metrics.json", json.dumps({"training": training, "solvers": {}}, indent=2))
    report.plot_loss(result.history, directory / "loss.png", linear)
    _forward_picture(result.model, data, directory / "forward.png")
    return result


def _remove(directory: Path, parts: Sequence[str]) -> None:
    for path in (directory / part for part in parts):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


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


def environment(device: torch.device | str) -> dict[str, Any]:
    """What numbers were made with: versions, device and threads."""
    device = torch.device(device)
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    return {"sde_gen": __version__, "torch": torch.__version__, "device": name, "threads": torch.get_num_threads()}


def class_labels(model: ScoreModel, count: int) -> dict[str, Tensor] | None:
    """Labels for `count` samples of a conditional network, sample i of class i mod classes; None for any other network."""
    classes = getattr(model.network, "classes", None)
    return None if classes is None else {"label": torch.arange(count) % classes}


def shown_state(model: ScoreModel, x: Tensor, t: float) -> Tensor:
    """A state at unit variance in the data's units, so that every SDE's noise looks alike on a picture."""
    alpha, sigma = (float(value) for value in model.sde.marginal(torch.tensor(t, dtype=torch.float64)))
    std = model.data_std or 1.0
    assert model.normalizer is not None
    return model.normalizer.decode(x * (std / (alpha**2 * std**2 + sigma**2) ** 0.5)).cpu()


def write_text(path: Path, text: str) -> None:
    with atomic_path(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
