"""What an importer finds in a file."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..data import Normalizer
from ..models.score import ScoreModel
from ..networks import Network
from ..pickles import Record
from ..sdes import SDE
from .facts import Facts


@dataclass
class Imported:
    """A network with what its output means and the process that it was trained on.

    settings: those of a ScoreModel beside network, sde and normalizer.
    average: "ema" or "raw", or "only" where the file has one set of weights and does not say which.
    licence: of the weights or the code, a note for the user.
    lowest: the smallest value of pictures in the network, -1 or 0; the largest is 1.
    """

    network: Network
    sde: SDE
    settings: dict[str, Any]
    facts: Facts
    average: str
    licence: str
    lowest: int = -1


class ExternalModel(ScoreModel):
    """A score model of a foreign checkpoint; `source` says where it comes from: file, its sha256, format, average ("ema", "raw", or "only"
    where the file has one set of weights), facts (each with its value and whether the file, a preset or the caller says it) and licence."""

    network: Network
    source: dict[str, Any]


def external_model(found: Imported, value_range: tuple[float, float] | None, source: dict[str, Any]) -> ExternalModel:
    """The score model of what was found, in evaluation mode, its parameters without gradients; value_range: that of pictures outside, None
    where the network's own units are those outside."""
    normalizer = None
    if value_range is not None:
        channels, (low, high) = found.network.shape[0], value_range
        low = low if found.lowest else 2 * low - high
        shift, scale = (torch.full((channels, 1, 1), value) for value in ((high + low) / 2, (high - low) / 2))
        normalizer = Normalizer(shift, scale, "range")
    model = ExternalModel(found.network, found.sde, **found.settings, normalizer=normalizer)
    model.source = source | {"average": found.average, "facts": found.facts.told(), "licence": found.licence}
    return model.eval().requires_grad_(False)


def checked_range(values: Sequence[float]) -> tuple[float, float]:
    """The smallest and the largest value of pictures; ValueError where they are none."""
    numbers = [float(value) for value in values]
    if len(numbers) != 2 or not numbers[0] < numbers[1]:
        raise ValueError(f"value_range must be the smallest and the largest value, got {list(values)}")
    return numbers[0], numbers[1]


def tensors(value: Any) -> dict[str, Tensor] | None:
    """A dict of tensors alone, without buffers of other kinds; None for anything else."""
    if not isinstance(value, dict) or not value:
        return None
    return dict(value) if all(isinstance(key, str) and isinstance(part, Tensor) for key, part in value.items()) else None


def mapping(value: Any) -> dict[Any, Any]:
    """A dict, or the items of a record that stands for a class of dicts; else empty."""
    if isinstance(value, Record):
        return value.items
    return value if isinstance(value, dict) else {}
