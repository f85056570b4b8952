"""The forward processes. A new one is a file with a class and a line in `SDES`."""

from __future__ import annotations

from typing import Any

from ..registry import build
from .base import SDE
from .cosine import CosineVPSDE
from .subvp import SubVPSDE
from .ve import VESDE
from .vp import VPSDE

SDES: dict[str, type[SDE]] = {
    "vp": VPSDE,
    "subvp": SubVPSDE,
    "ve": VESDE,
    "cosine": CosineVPSDE,
}


def make_sde(name: str, **settings: Any) -> SDE:
    """The registered SDE `name` with its constructor's settings, for example `make_sde("vp", beta_max=20.0)`.

    Raises ValueError for an unknown name or setting, with the ones allowed, and for a value out of its range.
    """
    return build(SDES, "SDE", name, settings)


__all__ = ["SDE", "SDES", "VESDE", "VPSDE", "CosineVPSDE", "SubVPSDE", "make_sde"]
