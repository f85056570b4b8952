"""What an importer finds in a file."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..networks.resampled import ResampledUNet
from ..sdes import SDE
from .facts import Facts
from .pickles import Record


@dataclass
class Imported:
    """A network with what its output means and the process that it was trained on, for data in -1 .. 1.

    settings: those of a ScoreModel beside network, sde and normalizer.
    average: "ema" or "raw", or "only" where the file has one set of weights and does not say which.
    licence: of the weights or the code, a note for the user.
    """

    network: ResampledUNet
    sde: SDE
    settings: dict[str, Any]
    facts: Facts
    average: str
    licence: str


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
