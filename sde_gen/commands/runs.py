"""One run: a directory with a trained network, and what each solver made of it."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .. import parallel, report, threads
from ..data import Dataset
from ..data.columns.redraw import Redraw
from ..data.dataset import subset
from ..data.write import DataDescription
from ..locks import held
from ..models.denoiser import Denoiser
from ..models.score import ScoreModel
from ..networks import summary
from ..report.events import EventWriter, require_tensorboard
from ..report.files import write_text
from ..sampling.sample import sample
from ..training import CheckpointError, TrainResult, check_processes, fit, read_extra, save
from ..unknown_numbers import to_json
from .config import ConfigError, RunConfig, recipe_note
from .cost import SNAPSHOT_CALLS, sampling_cost, seconds_per_call, seconds_per_step, snapshot_count, training_cost
from .image_scores import check_settings
from .noise_ends import resolve_ends, warnings_of_ends
from .reuse import Earlier, going_on, read_earlier
from .run_data import check, default_directory, load_data
from .training_files import TRAINING_FILES, conditions_of, environment, make_missing_files, missing_files

FILM = 100
PICTURED, LEAST_PICTURED = 2_000_000, 2000
LEAST_SNAPSHOT = 4
"""A snapshot of fewer samples, where more cost too much, is left out."""
OF_TRAINING = ("snapshots", "tensorboard")
"""What a training writes as it goes: a new one begins without what another left."""
OF_NETWORK = (
    *("solvers", "compare", "likelihood", "restore"),
    *(*TRAINING_FILES, "config.yaml", "doctor.json", "report.html", "samples.png", "denoising.gif", "conditions.png"),
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


def open_run(
    config: RunConfig,
    directory: Path | None = None,
    device: torch.device | str = "cpu",
    retrain: bool = False,
    progress: bool = True,
    checkpoint_seconds: float | None = None,
    say: Say = print,
    tensorboard: bool = False,
    hold: contextlib.ExitStack | None = None,
    thread_count: int | None = None,
    sampled: bool = False,
) -> TrainedRun:
    """The run of `config`: its trained network is reused where the directory holds it, a training that was stopped goes on, as does
    one of fewer steps or seconds, else it is trained now. What a killed command left out of the files of the training is made.

    `tensorboard`: a training writes event files in tensorboard/ too. `hold`: the directory stays this thread's to write to until this
    stack ends, for a command that leaves more there; without it, until this returns. `thread_count`: the number of threads that the
    user asks for; a training that goes on keeps the one that it began with otherwise. `sampled`: the command goes on to sample as the
    configuration says, of which the cost is said as well.
    ConfigError where the directory holds a network of other settings, or a training that would go on with other data than it began
    with, and `retrain` is not set, or tensorboard is not installed; LockError where another process writes to the directory.
    """
    config = config.anchored()
    directory = default_directory(config) if directory is None else directory
    checkpoint = directory / "checkpoint"
    data = load_data(config)
    for note in data.notes:
        say(f"data      {note}")
    config, evidence = resolve_ends(config, data)
    for line in evidence:
        say(f"noise     {line}")
    model = check(config, data)
    if sampled:
        check_settings(config.sampling.features, config.sampling.reference, data)
    if not directory.exists():  # before anything is written
        _check_training(config, tensorboard)
    with contextlib.ExitStack() as until_returned:
        if parallel.rank() == 0:
            _check_directory(directory)
            if hold is not None or retrain or not _is_finished(directory):
                directory.mkdir(parents=True, exist_ok=True)
                remedy = "wait for it, or --out DIR works beside it" if sampled else "wait for it"
                (until_returned if hold is None else hold).enter_context(held(directory, remedy))
        earlier = None
        if not retrain and _is_there(checkpoint):
            earlier = read_earlier(checkpoint, config, data)
            if earlier.changed is not None:
                say(f"warning   {earlier.changed}; sde-gen run --retrain trains on the data as they are")
        parallel.wait()  # until all have seen the directory as it was
        if earlier is not None and earlier.state is None:
            spent = f"{earlier.extra['steps']} steps, {earlier.extra['seconds']:.0f} s of training"
            say(f"reusing   the network in {checkpoint} ({spent}); --retrain trains again")
            run = TrainedRun(directory, config, data, earlier.model.to(device))
            if sampled:
                say(f"expected  {_sampling_cost(run.model, run)}")
        else:
            if earlier is not None:
                say(going_on(checkpoint, earlier, config.training))
                began = earlier.extra.get("environment", {}).get("threads")
                kept = threads.keep(began, thread_count) if isinstance(began, int) and torch.device(device).type == "cpu" else None
                if kept is not None:
                    say(f"threads   {kept}")
            _check_training(config, tensorboard)
            assert isinstance(model.network, torch.nn.Module)
            for line in warnings_of_ends(config, data):
                say(f"warning   {line}")
            say(f"network   {summary(model.network, data.shape)}")
            chosen = recipe_note(config, data.shape)
            if chosen is not None:
                say(f"recipe    {chosen}")
            run = TrainedRun(directory, config, data, model)
            result = _train(run, device, progress, checkpoint_seconds, earlier, tensorboard, say, sampled)
            rate = result.steps * config.training.batch / result.seconds
            skipped = f", {result.skipped} steps skipped as not finite" if result.skipped else ""
            together = f", {parallel.world()} processes" if parallel.world() > 1 else ""
            done = f"{result.steps} steps of {config.training.batch} in {result.seconds:.0f} s"
            say(f"trained   {done} ({rate:.0f} samples/s{together}{skipped})")
            run = replace(run, model=result.model)
        if parallel.rank() == 0:
            if not (directory / "config.yaml").exists():  # of a network that an earlier version was killed before it had sampled
                write_text(directory / "config.yaml", config.to_yaml())
            make_missing_files(directory, run.model, data, config, say, progress)
        return run


def cost_lines(config: RunConfig, data: Dataset, model: ScoreModel, directory: Path, device: torch.device | str) -> list[str]:
    """What the run will cost, from a few training steps and network calls of `model`, which is of no use afterwards."""
    if parallel.world() > 1:
        return ["the cost is measured by one process: leave torchrun out"]
    per_step = seconds_per_step(model, data, config, device)
    run = TrainedRun(directory, config, data, model.eval())
    per_call = seconds_per_call(model, data.shape, min(config.training.batch, config.sampling.samples))
    training = training_cost(config.training, data, 0, per_step, per_call, device)
    after = "; then " if config.training.max_seconds is not None else "; "
    return [
        f"expected  {training}{after}{_sampling_cost(model, run, per_call)}",
        "          (measured on a few steps and calls, which leave nothing behind; a training that is there already is not counted)",
    ]


def _sampling_cost(model: ScoreModel, run: TrainedRun, per_call: float | None = None) -> str:
    sampling = run.config.sampling
    if per_call is None:
        per_call = seconds_per_call(model, run.data.shape, min(run.config.training.batch, sampling.samples))
    return sampling_cost(sampling, run.data, per_call, film_count(run), run.directory, next(model.parameters()).device)


def pictured(data: Dataset) -> Tensor:
    """The training items that pictures show samples beside: all, or of long vectors so many drawn ones as hold `PICTURED` numbers."""
    most = max(LEAST_PICTURED, PICTURED // data.shape[0])
    return data.train if len(data.shape) > 1 or len(data.train) <= most else data.train[subset(len(data.train), most, 0)]


def film_count(run: TrainedRun) -> int:
    """Samples of the film of how they come about."""
    return min(run.config.sampling.samples, 2000 if len(run.data.shape) == 1 else FILM)


def _is_there(checkpoint: Path) -> bool:
    """Whether anything was ever saved there, readable or not; results without their network count as well."""
    saved = checkpoint.exists() and any(not path.name.startswith(".part-") for path in checkpoint.iterdir())
    return saved or (checkpoint.parent / "metrics.json").exists()


def _is_finished(directory: Path) -> bool:
    """Whether the directory has a trained network and all files of its training."""
    try:
        return bool(read_extra(directory / "checkpoint").get("complete")) and not missing_files(directory)
    except CheckpointError:
        return False


def _check_directory(directory: Path) -> None:
    existing = next(path for path in (directory, *directory.absolute().parents) if path.exists())
    if not existing.is_dir():
        raise ConfigError(f"cannot write to {directory}: {existing} is not a directory")
    try:
        with tempfile.TemporaryFile(prefix=".sde_gen-write-test-", dir=existing):
            pass
    except OSError as error:
        raise ConfigError(f"cannot write to {directory}: {error.strerror}") from error


def _check_training(config: RunConfig, tensorboard: bool) -> None:
    check_world(config)
    if tensorboard:
        try:
            require_tensorboard()
        except ImportError as error:
            raise ConfigError(str(error)) from error


def check_world(config: RunConfig) -> None:
    """ConfigError for training settings that the processes at hand cannot train with."""
    try:
        check_processes(config.training, parallel.world())
    except ValueError as error:
        raise ConfigError(str(error)) from error


def _train(
    run: TrainedRun,
    device: torch.device | str,
    progress: bool,
    checkpoint_seconds: float | None,
    earlier: Earlier | None,
    tensorboard: bool,
    say: Say,
    sampled: bool,
) -> TrainResult:
    """Train the run's model, from where `earlier` left it; `sampled`: whether the command goes on to sample it."""
    directory, config, data = run.directory, run.config, run.data
    resume = None if earlier is None else earlier.state
    snapshot_seconds = 0.0  # that the last one took
    replaces = True  # what lies here was made of another network, until the first save

    def evaluated(step: int, result: TrainResult) -> None:
        nonlocal snapshot_seconds
        wanted = snapshot_count(data.shape)
        count = result.trainer.affordable(SNAPSHOT_CALLS, wanted)
        if count < min(LEAST_SNAPSHOT, wanted) or snapshot_seconds > result.trainer.allowance:
            return
        began = time.monotonic()
        common: dict[str, Any] = {
            "seed": config.sampling.seed,
            "progress": False,
            "on_failure": "mask",
            "cond": conditions_for(result.model, data, count, config.sampling.seed, alike=True),
        }
        out = sample(result.model, (count, *data.shape), "em", steps=50, **common)
        report.picture_samples(out.x.cpu(), snapshots / f"step-{step:06d}.png", pictured(data), data.value_range)
        snapshot_seconds = time.monotonic() - began

    def keep(step: int, result: TrainResult, complete: bool = False) -> None:
        nonlocal replaces
        if replaces:
            _remove(directory, OF_NETWORK)
        extra: dict[str, Any] = {"complete": complete, "steps": step, "seconds": result.seconds, "skipped": result.skipped}
        extra |= {"linear": result.linear, "environment": environment(device), "identity": config.identity(), "data": signature}
        extra["data_description"] = description
        if earlier is not None and earlier.ends:
            extra["earlier_ends"] = list(earlier.ends)
        # A training that has ended keeps its state too: it can go on to more steps.
        save(result.raw, directory / "checkpoint", ema=result.model.network, extra=extra, state=result.state())  # type: ignore[arg-type]
        if replaces:
            write_text(directory / "config.yaml", config.to_yaml())
            replaces = False

    def expect(per_step: float, result: TrainResult) -> None:
        per_call = seconds_per_call(result.model, data.shape, min(config.training.batch, config.sampling.samples))
        behind = 0 if resume is None else int(resume[1]["step"])
        cost = training_cost(config.training, data, behind, per_step, per_call, device)
        after = "; then " if config.training.max_seconds is not None else "; "
        say(f"expected  {cost}" + (f"{after}{_sampling_cost(result.model, run, per_call)}" if sampled else ""))

    def note(entry: dict[str, Any]) -> None:
        with log.open("a", encoding="utf-8") as file:
            file.write(to_json(entry) + "\n")
        if events is not None:
            events.add(entry)

    snapshots, log, signature = directory / "snapshots", directory / "history.jsonl", data.signature()
    description = DataDescription.of(data).to_config()
    first = parallel.rank() == 0
    if first:
        if resume is None:
            _remove(directory, OF_TRAINING)
        snapshots.mkdir(exist_ok=True)
        lines = [] if resume is None else resume[1]["history"]
        write_text(log, "".join(to_json(entry) + "\n" for entry in lines))
    names = conditions_of(config, data)
    held_out, of_held_out = data.held_out(names)
    with contextlib.ExitStack() as stack:
        events = None
        if tensorboard and first:
            step = 0 if resume is None else int(resume[1]["step"])
            events = stack.enter_context(EventWriter(directory / "tensorboard", config.training.batch, step))
        return fit(
            run.model,
            data.training[0],
            config.training,
            data.conditions(names, "all"),
            held_out=held_out,
            held_out_cond=of_held_out,
            levels=data.levels,
            device=device,
            progress=progress,
            on_evaluate=evaluated,
            on_checkpoint=keep,
            checkpoint_seconds=checkpoint_seconds,
            on_log=note,
            resume=resume,
            on_pace=None if config.training.shard else expect,
            on_finish=lambda result: keep(result.steps, result, complete=True),
            redraw=None if data.codec is None else Redraw(data.codec),
        )


def _remove(directory: Path, parts: Sequence[str]) -> None:
    for path in (directory / part for part in parts):
        if path.is_dir():
            shutil.rmtree(path, ignore_errors=True)
        else:
            path.unlink(missing_ok=True)


def conditions_for(model: Denoiser, data: Dataset, count: int, seed: int, alike: bool = False) -> dict[str, Tensor] | None:
    """Conditions for `count` samples of a model, those of drawn training items, every class as often where `alike`; None for a model
    that takes none."""
    return data.draw_conditions(list(model.encoders), count, seed, alike) if model.encoders else None
