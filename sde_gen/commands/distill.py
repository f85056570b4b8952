"""A flow map of a run's network, which `sample` draws from in one, two or four network calls: `sde-gen distill`."""

from __future__ import annotations

import argparse
import contextlib
import json
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from .. import report
from ..distillation.distill import SHARE, count_of, prepare_flow_map, settings_of, train_flow_map
from ..distillation.objective import METHODS
from ..distillation.trajectories import Trajectories, draw_trajectories
from ..locks import held
from ..models.flow_map import FlowMap
from ..models.score import ScoreModel
from ..report.files import atomic_path, write_text
from ..sampling.fitted import law_of
from ..training import CheckpointError, State, TrainResult, load, read_extra, read_state, save
from ..training.checkpoint import checkpoint_of
from ..unknown_numbers import to_json
from .config import ConfigError
from .run_data import config_of_run, load_data
from .sample_job import description_of
from .training_files import environment

TRAJECTORIES = "trajectories.safetensors"
KEPT_EVERY = 60.0
"""Seconds between two checkpoints of a distillation."""
MOST_STEPS = 100_000
"""Of a distillation that time ends."""
Say = Callable[[str], None]


@dataclass(frozen=True)
class DistillSettings:
    """How a run's network becomes a flow map; see `sde_gen.distill`.

    minutes: the time that trajectories and training take together, a quarter of it the trajectories at most; steps: of training, an end
    that may come before; trajectories: how many, None: as many as `distill` takes; strengths: of guidance, None: none; batch, lr: of the
    training, None: its own.
    """

    minutes: float = 5.0
    steps: int | None = None
    method: str = "regression"
    strengths: tuple[float, float] | None = None
    trajectories: int | None = None
    nodes: int = 16
    seed: int = 0


DISTILL_EXAMPLES = """examples:
  %(prog)s --run runs/digits-vp --out runs/digits-few       five minutes; then
  sde-gen sample --run runs/digits-few --steps 4 --samples 1000 --out few.npz
  %(prog)s --run runs/labels --out runs/labels-few --strengths 1 4     guidance distilled in: sample --guidance 2.5 costs no more calls

The same command goes on with what it was stopped in, and says so where all is there."""


def add_distill_flags(parser: argparse.ArgumentParser) -> None:
    """The flags of `distill`."""
    default = DistillSettings()
    parser.add_argument("--run", metavar="DIR", type=Path, required=True, help="run directory of the network")
    parser.add_argument("--out", metavar="DIR", type=Path, required=True, help="directory of the flow map")
    parser.add_argument(
        "--minutes", metavar="X", type=float, default=default.minutes, help="trajectories and training (default %(default)g)"
    )
    parser.add_argument("--steps", metavar="N", type=int, help="of training: it ends there where time has not ended it before")
    parser.add_argument("--strengths", metavar=("LOW", "HIGH"), type=float, nargs=2, help="of guidance, to be distilled in")
    parser.add_argument("--method", metavar="NAME", default=default.method, help=f"{', '.join(METHODS)} (default %(default)s)")
    parser.add_argument("--trajectories", metavar="N", type=int, help="of the flow, at most (default: as many as time and memory hold)")
    parser.add_argument("--nodes", metavar="N", type=int, default=default.nodes, help="most steps that can be sampled in (%(default)s)")
    parser.add_argument("--seed", metavar="N", type=int, default=default.seed, help="(default %(default)s)")
    parser.add_argument("--device", metavar="NAME", help="cpu, cuda, cuda:1 (default: cuda where present)")
    parser.add_argument("--threads", metavar="N", type=int, help="threads on the CPU (default: OMP_NUM_THREADS, else free cores)")
    parser.add_argument("--no-progress", action="store_true", help="no progress bar")


def distill_run(
    directory: Path,
    out: Path,
    settings: DistillSettings,
    device: torch.device,
    show: bool = True,
    say: Say = print,
    checkpoint_seconds: float = KEPT_EVERY,
) -> FlowMap:
    """Distill the network of the run `directory` into a flow map in the directory `out`, or go on with it, or read it where it is there.

    ConfigError, one line, for settings that do not fit the run, and for an `out` that holds something else; LockError where another
    process writes there; Interrupted after Ctrl-C, with all that the same command goes on from.
    """
    model, extra, cond, drop = _of_run(directory, settings)
    try:
        if not 0 < settings.minutes < math.inf:
            raise ValueError(f"--minutes must be positive and finite, got {settings.minutes!r}")
        limit = 60 * settings.minutes
        given = {"seed": settings.seed, "steps": MOST_STEPS if settings.steps is None else settings.steps}
        settings_of(given)
        flow = prepare_flow_map(model, settings.method, settings.strengths, settings.nodes, seed=settings.seed).to(device)
        count = count_of(flow, settings.trajectories)
    except (ValueError, TypeError) as error:
        raise ConfigError(str(error)) from error
    identity = json.loads(to_json(asdict(settings) | {"network": law_of(model)}))
    before, state = _earlier(out, identity)
    if before is not None:
        say(f"reusing   the flow map in {out}")
        return before.to(device)
    out.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as hold:
        hold.enter_context(held(out, "wait for it, or give another --out"))
        drawn, seconds = _trajectories(out, identity)
        if drawn is None:
            state = None
            began = time.monotonic()
            told = {name: value.to(device) for name, value in cond.items()}
            drawn = draw_trajectories(model.to(device), flow, count, told, drop, settings.seed, SHARE * limit, show)
            seconds = time.monotonic() - began
            _keep_trajectories(out, identity, drawn, seconds)
            say(f"drawn     {len(drawn)} trajectories of {len(flow.times) - 1} calls in {seconds:.0f} s")
        elif state is not None:
            say(f"resuming  the distillation in {out} at step {state[1]['step']}")

        def keep(step: int, result: TrainResult, complete: bool = False) -> None:
            about = {"complete": complete, "steps": step, "seconds": result.seconds, "environment": environment(device)}
            about |= {name: extra[name] for name in ("data", "data_description") if name in extra}
            about |= {"distillation": identity, "distilled_from": str(directory)}
            kept = None if complete else result.state()
            save(result.raw, out / "checkpoint", ema=result.model.network, extra=about, state=kept)  # type: ignore[arg-type]

        left = settings_of(given | {"max_seconds": max(limit - seconds, 1e-3)})
        how = {"device": device, "progress": show, "on_checkpoint": keep, "checkpoint_seconds": checkpoint_seconds, "resume": state}
        result = train_flow_map(flow, drawn, left, settings.method, on_finish=lambda found: keep(found.steps, found, complete=True), **how)
        say(f"distilled {result.steps} steps of {left.batch} jumps in {result.seconds:.0f} s; one jump to the data leaves {_left(result)}")
        write_text(out / "history.json", to_json({"history": result.history, "linear": result.linear}, 1))
        report.plot_loss(result.history, out / "loss.png", result.linear)
        (out / TRAJECTORIES).unlink(missing_ok=True)
    say(f"flow map  {out}: sde-gen sample --run {out} --steps 4")
    assert isinstance(result.model, FlowMap)
    return result.model


def _left(result: TrainResult) -> str:
    """The last error of held-out jumps from noise to data, beside that of the straight line."""
    last = next((entry["level_loss"] for entry in reversed(result.history) if "level_loss" in entry), None)
    if last is None:
        return "an error that was not measured"
    return f"{last[0]:.1%} of the data's mean square (a straight line {result.linear['linear'][0]:.1%})"


def _of_run(directory: Path, settings: DistillSettings) -> tuple[ScoreModel, dict[str, Any], dict[str, Any], float]:
    """The run's network, what its checkpoint says, the conditions of its training items, and the share that are not told them."""
    if not directory.is_dir():
        raise ConfigError(f"{directory} is not a run directory: {'a file' if directory.exists() else 'it is not there'}")
    checkpoint = checkpoint_of(directory)
    try:
        model, extra = load(checkpoint), read_extra(checkpoint)
    except CheckpointError as error:
        raise ConfigError(f"{directory} holds no trained network: {error}") from error
    extra = extra | {"data_description": description_of(directory, extra).to_config()}
    names = list(model.encoders)
    if not names:
        return model, extra, {}, 0.0
    config = config_of_run(directory)
    shares = config.training.shares_dropped(names)
    if settings.strengths is not None and not shares:
        raise ConfigError("--strengths: training.drop left out no condition, so that there is nothing to push away from")
    cond = load_data(config).conditions(names)
    return model, extra, dict(cond), min(shares.values(), default=0.0) and 0.1


def _earlier(out: Path, identity: dict[str, Any]) -> tuple[FlowMap | None, State | None]:
    """The flow map in `out` where it is done, else the state that it goes on from, else neither."""
    if out.exists() and not out.is_dir():
        raise ConfigError(f"--out {out} is a file; a directory is needed")
    if not (out / "checkpoint").is_dir():
        return None, None
    try:
        extra = read_extra(out / "checkpoint")
        known = extra.get("distillation")
        if known != identity:
            different = [name for name in identity if not isinstance(known, dict) or known.get(name) != identity[name]]
            what = f"a distillation of other settings ({', '.join(different)})" if isinstance(known, dict) else "a run of its own"
            raise ConfigError(f"{out} holds {what}: give another --out, or remove it")
        if not extra.get("complete"):
            return None, read_state(out / "checkpoint")
        found = load(out / "checkpoint")
    except CheckpointError as error:
        raise ConfigError(f"{error}: give another --out, or remove it") from error
    assert isinstance(found, FlowMap)
    return found, None


def _keep_trajectories(out: Path, identity: dict[str, Any], drawn: Trajectories, seconds: float) -> None:
    tensors = {"states": drawn.states} | {f"cond.{name}": value.cpu() for name, value in drawn.cond.items()}
    about = {"identity": to_json(identity), "seconds": repr(seconds)}
    with atomic_path(out / TRAJECTORIES) as temporary:
        save_file({name: value.contiguous() for name, value in tensors.items()}, temporary, about)


def _trajectories(out: Path, identity: dict[str, Any]) -> tuple[Trajectories | None, float]:
    """Those that an earlier command of these settings drew, with the seconds that it took; None where there are none."""
    try:
        with safe_open(out / TRAJECTORIES, "pt") as file:
            about = file.metadata() or {}
            if json.loads(about["identity"]) != identity:
                return None, 0.0
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        cond = {name.removeprefix("cond."): value for name, value in tensors.items() if name.startswith("cond.")}
        return Trajectories(tensors["states"], cond), float(about["seconds"])
    except (OSError, SafetensorError, KeyError, ValueError):
        return None, 0.0
