"""The average of the weights that a checkpoint gives, chosen after the training."""

from __future__ import annotations

import os

from safetensors.torch import load_file

from .checkpoint import (
    DESCRIPTION,
    STATE,
    STATE_VALUES,
    WEIGHTS,
    checkpoint_of,
    copy_file,
    open_checkpoint,
    read_description,
    read_state,
    tensors_file,
    values_file,
)
from .ema import average_of_width
from .store import write_version


def choose_average(path: str | os.PathLike[str], width: float) -> float:
    """Make the weights averaged over `width` those that `load` gives from the checkpoint or run directory at `path`, in a new version of
    the checkpoint; returns how near they are to that average (see `combination`).

    The averages of the training stay, so that another width can be chosen, and a training that goes on goes on from its own. Grids that
    were fitted to other weights stay, and are used for those alone. Raises what `average_of_width` raises, OSError where the disk cannot.
    """
    path = checkpoint_of(path)
    version = open_checkpoint(path)
    found, missed = average_of_width(read_state(version), width)
    others = {key: value for key, value in load_file(version / WEIGHTS).items() if not key.startswith("chosen.")}
    weights = others | {f"chosen.{name}": value for name, value in found.items()}
    description = read_description(version) | {"chosen_width": width}
    kept = {name: copy_file(version / name) for name in (STATE, STATE_VALUES)}
    write_version(path, {WEIGHTS: tensors_file(weights), DESCRIPTION: values_file(description)} | kept)
    return missed
