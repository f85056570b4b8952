"""What the checkpoint of a run directory is good for: a network to use, a training to go on with, or neither, in one line."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..data import Dataset
from ..models.score import ScoreModel
from ..training import CheckpointError, State, TrainSettings, load, read_extra, read_state
from ..training.settings import DECAYS
from ..unknown_numbers import to_json
from .config import ConfigError, RunConfig

LENGTH = {"training.steps", "training.max_seconds"}
"""What may differ between a training and one that goes on with it."""
ADVICE = "sde-gen run --retrain replaces it, --out DIR trains beside it"


@dataclass(frozen=True)
class Earlier:
    """What an earlier command left.

    model: its network, of averaged weights; extra: what the checkpoint says of it; state: what the training goes on from, None where
    it has ended as asked; ends: the steps at which it had ended before, each with the schedule of so many steps; longer: it goes on
    beyond the end that it was meant to have; changed: how the data are no longer those that it was trained on, None where they are.
    """

    model: ScoreModel
    extra: dict[str, Any]
    state: State | None
    ends: tuple[int, ...] = ()
    longer: bool = False
    changed: str | None = None


def read_earlier(checkpoint: Path, config: RunConfig, data: Dataset) -> Earlier:
    """What lies at `checkpoint`, for a run of `config` on `data`. ConfigError where it is of other settings or of data of another shape,
    has been trained for longer than is asked for, would have to go on with other data than it began with, or cannot be read."""
    try:
        extra = read_extra(checkpoint)
        model = load(checkpoint)
        if not isinstance(extra.get("steps"), int) or not isinstance(extra.get("seconds"), int | float):
            raise CheckpointError(f"the checkpoint at {checkpoint} does not say how long it was trained")
        different = _differences(_with_new_settings(extra.get("identity", {})), config.identity())
        if extra.get("data") == data.signature():  # the same data, wherever they lie and whatever their file is called
            different = [found for found in different if found[0] not in ("data.name", "data.root")]
        complete = bool(extra.get("complete"))
        state = read_state(checkpoint) if different or not complete else None
    except CheckpointError as error:
        raise ConfigError(f"{error}; {ADVICE}") from error
    shown = "; ".join(f"{key} {to_json(old)} -> {to_json(new)}" for key, old, new in different[:3])
    if not {key for key, _, _ in different} <= LENGTH:
        raise ConfigError(f"{checkpoint} holds a network of other settings ({shown}): {ADVICE}")
    if state is not None and not _is_state(state[1]):
        raise ConfigError(f"the state of the training in {checkpoint} is no such state; {ADVICE}")
    if different and state is not None and not _is_ahead(config.training, extra["steps"], state):
        done = f"{extra['steps']} steps, {extra['seconds']:.3g} s"
        raise ConfigError(f"{checkpoint} holds a network trained for longer ({done}) than is asked for ({shown}): {ADVICE}")
    if state is None and (different or not complete):
        raise ConfigError(f"{checkpoint} was left at step {extra['steps']} with no state to go on from: --retrain trains again")
    changed = changed_data(checkpoint, config, data)
    if state is not None and changed is not None:
        raise ConfigError(f"{changed}, and its training cannot go on with them: {ADVICE}")
    ends = tuple(extra.get("earlier_ends", ())) + ((extra["steps"],) if different and complete else ())
    return Earlier(model, extra, state, ends, bool(different), changed)


def going_on(checkpoint: Path, earlier: Earlier, training: TrainSettings) -> str:
    """Of a training that goes on: from where, to where, and by which schedule."""
    step, seconds = earlier.extra["steps"], earlier.extra["seconds"]
    if not earlier.longer:
        return f"resuming  the training in {checkpoint} at step {step} of {training.steps}; --retrain starts again"
    behind = max(step / training.steps, 0.0 if training.max_seconds is None else min(1.0, seconds / training.max_seconds))
    rate = training.lr * DECAYS[training.decay](behind)
    end = f"{training.steps} steps" + ("" if training.max_seconds is None else f" or {training.max_seconds:g} s")
    return (
        f"going on  with the training in {checkpoint} from step {step} to {end}: the learning rate is from here on that of a training of "
        f"this length (now {rate:.2g}, {training.decay}), which makes another network than one of {end} at once; --retrain trains that"
    )


def changed_data(checkpoint: Path, config: RunConfig, data: Dataset) -> str | None:
    """How the data differ from those that the network in `checkpoint` was trained on, or None; ConfigError where it does not fit them."""
    known, now = read_extra(checkpoint).get("data"), data.signature()
    if not isinstance(known, dict) or known == now:
        return None
    what = f"the network in {checkpoint} was trained on other data of this name"
    for key in ("shape", "classes") if config.data.labels else ("shape",):
        if known.get(key) != now[key]:
            change = f"{key} {to_json(known.get(key))}, now {to_json(now[key])}"
            raise ConfigError(f"{what} ({change}): {ADVICE}")
    values = ", of other values" if known.get("items") == now["items"] else ""
    return f"{what} ({known.get('items')} items, now {now['items']}{values})"


def _is_ahead(training: TrainSettings, step: int, state: State) -> bool:
    """Whether the end that `training` asks for has not been reached; the last evaluation counts as time of the training."""
    return step < training.steps and (training.max_seconds is None or float(state[1].get("seconds", 0.0)) < training.max_seconds)


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
